"""The gate: integrity first, then one decision a question and a benchmark, then one verdict and an exit code.

Reads evaluations (records and scores) and published numbers, returns a `GateResult`; knows no files, models or consoles (those are
`harness.gate.cli`, `harness.gate.ci`). A pass is always evidence (a rejected null hypothesis), never the lack of evidence against. All
figures in points, 0-100. The reasons for every choice are in docs/gate.md.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from benchmarks.catalog import CATALOG
from harness.gate.exceptions import ApprovedException
from harness.gate.integrity import IntegrityProblem, StatusLimits, check_evaluation, check_pair, check_sets
from harness.records import Evaluation

Verdict = Literal["pass", "fail", "inconclusive"]
Overall = Literal["pass", "fail", "inconclusive", "integrity"]
Question = Literal["no_regression", "improved", "published_score", "published_gain"]

EXIT_CODES: dict[str, int] = {"pass": 0, "fail": 1, "usage": 2, "inconclusive": 3, "integrity": 4, "infrastructure": 5}
QUESTION_TEXT: dict[str, str] = {
    "no_regression": "no worse than the baseline by more than the margin",
    "improved": "better than the baseline",
    "published_score": "score equal to the published one within the margin",
    "published_gain": "gain over the base model equal to the published gain within the margin",
}
ALL = "all"
"""Benchmark name of the decision on the unweighted mean over benchmarks."""
PUBLISHED_ROUNDING = 0.05
"""A number published with one decimal is known to +-0.05 points."""
SMALL_SCALES = frozenset({"micro", "smoke"})
GATE_SCHEMA = 1
CODE_TO_EXCUSE = frozenset({"versions", "unparsed", "empty", "degenerate", "judged"})


class GateUsageError(ValueError):
    """The gate was asked something it must not or cannot answer (exit 2)."""


class GateFileError(ValueError):
    """A gate.json that is none."""


@dataclass(frozen=True)
class GateSettings:
    """What is asked. `margin` (points) overrides every benchmark's frozen margin; `run` is the candidate's name, for exceptions."""

    alpha: float = 0.05
    margin: float | None = None
    benchmarks: tuple[str, ...] | None = None
    power: float = 0.8
    require_improvement: bool = False
    limits: StatusLimits = field(default_factory=StatusLimits)
    exceptions: tuple[ApprovedException, ...] = ()
    run: str = ""
    today: dt.date | None = None

    def check(self) -> None:
        """Raises: GateUsageError: a value is out of range."""
        if not 0 < self.alpha < 0.5:
            raise GateUsageError(f"alpha must lie between 0 and 0.5, got {self.alpha}")
        if self.margin is not None and not 0 < self.margin < 50:
            raise GateUsageError(f"margin must be between 0 and 50 points, got {self.margin}")
        if not 0.5 <= self.power < 1:
            raise GateUsageError(f"power must be at least 0.5 and below 1, got {self.power}")

    def margin_of(self, benchmark: str) -> float:
        """The margin in points. Raises: GateUsageError: none given and the benchmark is not in the catalog."""
        if self.margin is not None:
            return self.margin
        if benchmark not in CATALOG:
            raise GateUsageError(f"benchmark {benchmark!r} is not in the catalog, so it has no frozen margin: give --margin")
        return CATALOG[benchmark].margin.points


@dataclass(frozen=True)
class Decision:
    """One question about one benchmark, with everything needed to judge the answer. Points (0-100) throughout.

    `low` and `high` are one-sided bounds at level 1 - alpha each (a 90 % interval for alpha 0.05): `pass` and `fail` can be read off them.
    `mde` is the smallest effect seen with the stated power; `n_needed` the questions that would show an effect of `margin` with that power.
    """

    question: Question
    benchmark: str
    n: int
    videos: int
    estimate: float
    low: float
    high: float
    margin: float
    verdict: Verdict
    mde: float | None
    n_needed: int | None
    p_value: float
    p_adjusted: float
    method: str
    note: str = ""
    required: bool = True
    candidate_pct: float | None = None
    reference_pct: float | None = None
    gained: int | None = None
    """Questions right now and wrong before."""
    lost: int | None = None
    excused_by: str | None = None


@dataclass(frozen=True)
class GateResult:
    """All decisions, all integrity problems, the overall verdict and its exit code."""

    decisions: list[Decision]
    integrity: list[IntegrityProblem]
    verdict: Overall
    exit_code: int
    exceptions: list[str]
    """Approved exceptions that concern this run, as text, used or expired."""
    candidate: str = ""
    reference: str = ""
    scale: str = ""
    alpha: float = 0.05
    reasons: list[str] = field(default_factory=list)
    """What made the verdict what it is, in words."""

    def to_json(self) -> str:
        """JSON text; infinite values become null."""
        return json.dumps({"schema": GATE_SCHEMA, **_finite(asdict(self))}, indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | Mapping[str, Any]) -> GateResult:
        """Read what `to_json` wrote (text, or an already parsed object).

        Raises:
            GateFileError: not a gate result of this schema.
        """
        try:
            raw = dict(json.loads(text) if isinstance(text, str) else text)
            if raw.pop("schema") != GATE_SCHEMA:
                raise GateFileError(f"gate result of another schema; this tool reads {GATE_SCHEMA}")
            raw["decisions"] = [
                Decision(**{**d, **{k: _bound(d[k], s) for k, s in (("low", -math.inf), ("high", math.inf))}}) for d in raw["decisions"]
            ]
            raw["integrity"] = [IntegrityProblem(**p) for p in raw["integrity"]]
            result = cls(**raw)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as e:
            raise GateFileError(f"not a gate result: {type(e).__name__}: {e}") from e
        if result.verdict not in get_args(Overall) or result.exit_code != EXIT_CODES[result.verdict]:
            raise GateFileError(f"verdict {result.verdict!r} with exit code {result.exit_code}: the file was changed")
        return result

    def of(self, question: str, benchmark: str) -> Decision:
        """The decision on `question` about `benchmark`. Raises: KeyError: there is none."""
        for d in self.decisions:
            if (d.question, d.benchmark) == (question, benchmark):
                return d
        raise KeyError(f"no decision on {question} for {benchmark}")


def _bound(value: float | None, infinite: float) -> float:
    return infinite if value is None else value


def _finite(x: Any) -> Any:
    if isinstance(x, float) and not math.isfinite(x):
        return None
    if isinstance(x, dict):
        return {k: _finite(v) for k, v in x.items()}
    return [_finite(v) for v in x] if isinstance(x, list | tuple) else x


def _names(wanted: tuple[str, ...] | None, *sets: Mapping[str, object]) -> list[str]:
    have = set.intersection(*(set(s) for s in sets))
    names = [n for n in (wanted or sorted(have)) if n in have]
    return sorted(names, key=lambda n: (list(CATALOG).index(n) if n in CATALOG else len(CATALOG), n))


def _excuse(problems: Sequence[IntegrityProblem], s: GateSettings) -> list[IntegrityProblem]:
    return [replace(p, excused_by=_excuse_for(p.benchmark, p.code, s)) if p.code in CODE_TO_EXCUSE else p for p in problems]


def _excuse_for(benchmark: str, code: str, s: GateSettings) -> str | None:
    today = s.today or dt.date.today()
    for e in s.exceptions:
        if e.covers_case(benchmark=benchmark, code=code, run=s.run, today=today):
            return e.text(today)
    return None


def conclude(
    decisions: Sequence[Decision],
    problems: Sequence[IntegrityProblem],
    s: GateSettings,
    *,
    candidate: str = "",
    reference: str = "",
    scale: str = "",
) -> GateResult:
    """Combine decisions into a result: integrity before everything, then any required `fail`, then any required `inconclusive`, then
    `pass`."""
    today = s.today or dt.date.today()
    problems = _excuse(problems, s)
    decided = [
        replace(d, excused_by=_excuse_for(d.benchmark, d.question, s)) if d.verdict != "pass" and d.required else d for d in decisions
    ]
    open_problems = [p for p in problems if p.excused_by is None]
    counted = [d for d in decided if d.required and d.excused_by is None]
    reasons: list[str] = []
    verdict: Overall
    if open_problems:
        verdict = "integrity"
        reasons = [f"{p.benchmark} ({p.side}): {p.message}" for p in open_problems]
    elif not any(d.required for d in decided):
        verdict, reasons = "inconclusive", ["nothing was decided"]
    else:
        worst = [v for v in ("fail", "inconclusive") if any(d.verdict == v for d in counted)]
        verdict = worst[0] if worst else "pass"  # type: ignore[assignment]
        reasons = [f"{d.benchmark}: {d.note or QUESTION_TEXT[d.question]}" for d in counted if d.verdict == verdict != "pass"]
    concerned = [e.text(today) for e in s.exceptions if e.run == s.run]
    return GateResult(decided, problems, verdict, EXIT_CODES[verdict], concerned, candidate, reference, scale, s.alpha, reasons)


def _checked(
    evaluations: Mapping[str, Evaluation], names: Sequence[str], side: Literal["candidate", "baseline"], s: GateSettings
) -> list[IntegrityProblem]:
    misnamed = [
        IntegrityProblem(n, side, "benchmark", f"the folder is called {n!r}, its score says {evaluations[n].score.benchmark!r}")
        for n in names
        if evaluations[n].score.benchmark != n
    ]
    return misnamed + [p for n in names for p in check_evaluation(evaluations[n], side=side, limits=s.limits)]


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
    from harness.gate.paired import adjust, decide_mean, decide_pair

    s = settings or GateSettings()
    s.check()
    if not candidate and not baseline:
        raise GateUsageError("no evaluation to compare")
    problems = check_sets(candidate, baseline, s.benchmarks)
    names = _names(s.benchmarks, candidate, baseline)
    problems += _checked(candidate, names, "candidate", s) + _checked(baseline, names, "baseline", s)
    for n in names:
        problems += check_pair(candidate[n], baseline[n])
    if any(p.excused_by is None for p in _excuse(problems, s)):
        names = []
    pairs = [decide_pair(candidate[n], baseline[n], s.margin_of(n), s) for n in names]
    decisions = adjust([d for p in pairs for d in p.decisions], s)
    if len(pairs) > 1:
        decisions += decide_mean(pairs, s)
    scale = next((e.score.scale for e in candidate.values()), "")
    return conclude(decisions, problems, s, candidate=candidate_name, reference=reference_name, scale=scale)


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
        GateUsageError: a micro or smoke evaluation (never compared with a paper's number), a number out of range, nothing in common.
    """
    from harness.gate.published import adjust_published, decide_gain, decide_score

    s = settings or GateSettings()
    s.check()
    for e in [*candidate.values(), *(base or {}).values()]:
        if e.score.scale in SMALL_SCALES:
            raise GateUsageError(
                f"{e.score.benchmark} was evaluated at scale {e.score.scale!r}: a {e.score.scale} score is measured on small synthetic "
                "videos by a tiny model and is "
                "never compared with a published number; compare with another run of the same scale (--against RUN)"
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
    if any(p.excused_by is None for p in _excuse(problems, s)):
        names, gains = [], []
    decisions = [decide_score(candidate[n], published[n], s.margin_of(n), s) for n in names]
    if base and published_base:
        decisions += [decide_gain(candidate[n], base[n], published[n] - published_base[n], s.margin_of(n), s) for n in gains]
    scale = next((e.score.scale for e in candidate.values()), "")
    return conclude(adjust_published(decisions, s), problems, s, candidate=candidate_name, reference=reference_name, scale=scale)


def credits(e: Evaluation, kind: Literal["strict", "upstream"], order: Sequence[str] | None = None) -> np.ndarray:
    """Credits [n] of the records (fractions), in the order of the given question ids."""
    if order is None:
        return np.array([getattr(r, kind) for r in e.records], dtype=np.float64)
    by_id = {r.question_id: getattr(r, kind) for r in e.records}
    return np.array([by_id[q] for q in order], dtype=np.float64)
