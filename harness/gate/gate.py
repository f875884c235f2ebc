"""The gate: integrity first, then evidence, then decisions, one verdict and an exit code.

Reads evaluations (records and scores) and published numbers, returns a `GateResult`; knows no files, models or consoles. A pass is always
evidence (a rejected null hypothesis), never the lack of evidence against. All figures in points, 0-100. The reasons for every choice are
in docs/gate.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from benchmarks.catalog import CATALOG, in_mean
from harness.gate.decide import conclude, decide, excuse
from harness.gate.decision import Evidence, GateResult, GateUsageError
from harness.gate.evidence.paired import compare_pair, mean_evidence
from harness.gate.evidence.published import compare_gain, compare_score
from harness.gate.settings import GateSettings
from harness.integrity import IntegrityProblem, check_evaluation, check_pair, check_sets
from harness.records import Evaluation


def _names(wanted: tuple[str, ...] | None, *sets: Mapping[str, object]) -> list[str]:
    have = set.intersection(*(set(s) for s in sets))
    names = [n for n in (wanted or sorted(have)) if n in have]
    return sorted(names, key=lambda n: (list(CATALOG).index(n) if n in CATALOG else len(CATALOG), n))


def _checked(
    evaluations: Mapping[str, Evaluation], names: Sequence[str], side: Literal["candidate", "baseline"], s: GateSettings
) -> list[IntegrityProblem]:
    misnamed = [
        IntegrityProblem(n, side, "benchmark", f"the folder is called {n!r}, its score says {evaluations[n].score.benchmark!r}")
        for n in names
        if evaluations[n].score.benchmark != n
    ]
    return misnamed + [p for n in names for p in check_evaluation(evaluations[n], side=side, limits=s.limits)]


def _comparable(problems: Sequence[IntegrityProblem], s: GateSettings) -> bool:
    return all(p.excused_by is not None for p in excuse(problems, s))


def _scale(evaluations: Mapping[str, Evaluation]) -> str:
    return next((e.score.scale for e in evaluations.values()), "")


def gate_runs(
    candidate: Mapping[str, Evaluation],
    baseline: Mapping[str, Evaluation],
    settings: GateSettings | None = None,
    *,
    candidate_name: str = "",
    reference_name: str = "",
) -> GateResult:
    """Candidate against baseline, both our own runs: paired, clustered by video, on strict credit.

    Raises:
        GateUsageError: settings out of range, a benchmark without margin, or no benchmark at all.
    """
    s = settings or GateSettings()
    s.check()
    if not candidate and not baseline:
        raise GateUsageError("no evaluation to compare")
    problems = check_sets(candidate, baseline, s.benchmarks)
    names = _names(s.benchmarks, candidate, baseline)
    problems += _checked(candidate, names, "candidate", s) + _checked(baseline, names, "baseline", s)
    for n in names:
        problems += check_pair(candidate[n], baseline[n])
    evidence: list[Evidence] = []
    if _comparable(problems, s):
        pairs = [compare_pair(candidate[n], baseline[n], s.margin_of(n), s) for n in names]
        evidence = [p.no_regression for p in pairs] + [p.improved for p in pairs]
        averaged = [p for n, p in zip(names, pairs, strict=True) if n in in_mean(names)]
        if len(averaged) > 1:
            evidence += mean_evidence(averaged, s)
    optional: frozenset[str] = frozenset() if s.require_improvement else frozenset({"improved"})
    decisions = decide(evidence, alpha=s.alpha, rule=s.multiplicity, optional=optional)
    return conclude(decisions, problems, s, candidate=candidate_name, reference=reference_name, scale=_scale(candidate))


def gate_published(
    candidate: Mapping[str, Evaluation],
    base: Mapping[str, Evaluation] | None,
    published: Mapping[str, float],
    settings: GateSettings | None = None,
    *,
    published_base: Mapping[str, float] | None = None,
    candidate_name: str = "",
    reference_name: str = "paper",
) -> GateResult:
    """Candidate against published scores (0-100), on the score exactly as lmms-eval reports it; with `base` and `published_base` the
    gain too.

    Raises:
        GateUsageError: an evaluation on synthetic data (never compared with a paper's number), a number out of range, nothing in common.
    """
    s = settings or GateSettings()
    s.check()
    for e in [*candidate.values(), *(base or {}).values()]:
        if e.score.synthetic:
            raise GateUsageError(
                f"{e.score.benchmark} was evaluated at scale {e.score.scale!r} on synthetic data, which is never compared with a published "
                "number; compare with another run of the same scale (--against RUN)"
            )
    for name, value in [*published.items(), *(published_base or {}).items()]:
        if not 0 <= value <= 100:  # NaN is refused here too
            raise GateUsageError(f"published {name} is {value}, not a percentage between 0 and 100")
    wanted = s.benchmarks or tuple(published)  # one benchmark of six is no reproduction unless it was asked for by name
    if not set(published) & set(candidate):
        raise GateUsageError(
            f"nothing in common: the candidate has {', '.join(candidate) or 'nothing'}, published are {', '.join(published) or 'none'}"
        )
    problems = check_sets(candidate, published, wanted)
    names = _names(wanted, candidate, published)
    problems += _checked(candidate, names, "candidate", s)
    gains = [n for n in names if base and published_base and n in base and n in published_base]
    if base:
        problems += _checked(base, gains, "baseline", s)
        for n in gains:
            problems += check_pair(candidate[n], base[n])
    evidence: list[Evidence] = []
    if _comparable(problems, s):
        evidence = [compare_score(candidate[n], published[n], s.margin_of(n), s) for n in names]
        if base and published_base:
            evidence += [compare_gain(candidate[n], base[n], published[n] - published_base[n], s.margin_of(n), s) for n in gains]
    decisions = decide(evidence, alpha=s.alpha, rule=s.multiplicity)
    return conclude(decisions, problems, s, candidate=candidate_name, reference=reference_name, scale=_scale(candidate))
