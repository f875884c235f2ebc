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
from harness.gate.decision import Changed, Evidence, GateResult, GateUsageError
from harness.gate.evidence.changes import changed_questions
from harness.gate.evidence.formats import format_evidence
from harness.gate.evidence.paired import pair, paired_evidence
from harness.gate.evidence.published import compare_gain, compare_score, rerun_noise
from harness.gate.settings import GateSettings
from harness.integrity import IntegrityProblem, check_evaluation, check_pair, check_sets, check_whole
from harness.records import Evaluation


def _names(wanted: tuple[str, ...] | None, *sets: Mapping[str, object]) -> list[str]:
    have = set.intersection(*(set(s) for s in sets))
    names = [n for n in (wanted or sorted(have)) if n in have]
    return sorted(names, key=lambda n: (list(CATALOG).index(n) if n in CATALOG else len(CATALOG), n))


def _checked(
    evaluations: Mapping[str, Evaluation], names: Sequence[str], side: Literal["candidate", "baseline"], settings: GateSettings
) -> list[IntegrityProblem]:
    misnamed = [
        IntegrityProblem(n, side, "benchmark", f"the folder is called {n!r}, its score says {evaluations[n].score.benchmark!r}")
        for n in names
        if evaluations[n].score.benchmark != n
    ]
    return misnamed + [p for n in names for p in check_evaluation(evaluations[n], side=side, limits=settings.limits)]


def _comparable(problems: Sequence[IntegrityProblem], settings: GateSettings) -> bool:
    return not any(p.stops for p in excuse(problems, settings))


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
    changed: dict[str, Changed] = {}
    if _comparable(problems, s):
        pairs = [pair(candidate[n], baseline[n], s.margin_of(n)) for n in names]
        evidence = paired_evidence(pairs, in_mean(names), s)
        changed = {n: changed_questions(candidate[n].records, baseline[n].records) for n in names}
    return conclude(
        decide(evidence, s), problems, s, candidate=candidate_name, reference=reference_name, scale=_scale(candidate), changed=changed
    )


def gate_published(
    candidate: Mapping[str, Evaluation],
    base: Mapping[str, Evaluation] | None,
    published: Mapping[str, float],
    settings: GateSettings | None = None,
    *,
    published_base: Mapping[str, float] | None = None,
    reruns: Sequence[Mapping[str, Evaluation]] = (),
    candidate_name: str = "",
    reference_name: str = "paper",
) -> GateResult:
    """Candidate against published scores (0-100), on the score exactly as lmms-eval reports it; with `base` and `published_base` the
    gain too. `reruns` are other evaluations of the same weights, which measure the noise between two runs.

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
    problems += [p for n in names if n in CATALOG for p in check_whole(candidate[n], CATALOG[n])]
    again = {n: [r[n] for r in reruns if n in r] for n in names}
    for n in names:
        problems += _check_reruns(candidate[n], again[n], s)
    gains = [n for n in names if base and published_base and n in base and n in published_base]
    if base:
        problems += _checked(base, gains, "baseline", s)
        for n in gains:
            problems += check_pair(candidate[n], base[n])
    evidence: list[Evidence] = []
    if _comparable(problems, s):
        noise = {n: rerun_noise(candidate[n], again[n]) for n in names}
        evidence = [compare_score(candidate[n], published[n], s.margin_of(n), noise[n], s) for n in names]
        if base and published_base:
            evidence += [compare_gain(candidate[n], base[n], published[n] - published_base[n], s.margin_of(n), noise[n], s) for n in gains]
        evidence += [format_evidence(candidate[n], s) for n in names]
    return conclude(decide(evidence, s), problems, s, candidate=candidate_name, reference=reference_name, scale=_scale(candidate))


def _check_reruns(evaluation: Evaluation, reruns: Sequence[Evaluation], settings: GateSettings) -> list[IntegrityProblem]:
    """Reruns measure noise only where they are whole, of the same weights, on the same questions."""
    out: list[IntegrityProblem] = []
    for r in reruns:
        out += check_evaluation(r, side="candidate", limits=settings.limits) + check_pair(r, evaluation)
        if r.score.provenance.weights != evaluation.score.provenance.weights:
            out.append(IntegrityProblem(evaluation.score.benchmark, "both", "weights", "a rerun is of other weights than the candidate"))
    return out
