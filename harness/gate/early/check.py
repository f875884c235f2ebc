"""Early stopping: ask videos in random order and stop as soon as the whole set's verdict is certain at level alpha.

Knows no model: `Ask` hands over the records of all questions on some videos, however they were made (see `harness.gate.early.ask`; in tests
from a table). The order depends on nothing but the seed and the baseline, so a run that is killed and started again draws the same videos,
whose answers the journal then has.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from harness.gate.decide import conclude
from harness.gate.decision import Decision, GateResult, GateUsageError, Verdict
from harness.gate.early import sequence
from harness.gate.evidence.clustered import credits, design_of
from harness.gate.settings import GateSettings
from harness.integrity import IntegrityProblem, StatusLimits, check_evaluation
from harness.records import Evaluation, QuestionRecord

Ask = Callable[[str, Sequence[str]], Sequence[QuestionRecord]]
"""Called with a benchmark and video ids; returns the candidate's records of all questions on those videos, in any order."""
Progress = Callable[[str, int, int, sequence.Look], None]
"""Called after each look with benchmark, questions asked, questions in the set, and what is known."""


@dataclass(frozen=True)
class Asked:
    """How much of a benchmark had to be asked."""

    benchmark: str
    questions: int
    of: int
    videos: int
    of_videos: int

    @property
    def share(self) -> float:
        """Share of the questions, 0-1."""
        return self.questions / self.of if self.of else 0.0


@dataclass(frozen=True)
class CheckResult:
    """The gate result on what was asked, and how much that was."""

    gate: GateResult
    asked: list[Asked]

    @property
    def share(self) -> float:
        """Share of all questions asked, 0-1."""
        total = sum(a.of for a in self.asked)
        return sum(a.questions for a in self.asked) / total if total else 0.0


@dataclass(frozen=True)
class _Set:
    """A benchmark's known half: the baseline's records by video, the design and the drawing order."""

    by_video: list[list[QuestionRecord]]
    names: list[str]
    weight: dict[str, float]
    population: sequence.Population
    order: NDArray[np.intp]


def drawing_order(population: sequence.Population, benchmark: str, seed: int) -> NDArray[np.intp]:
    """Seeded order of the videos (indices into the sorted video ids)."""
    key = int.from_bytes(hashlib.sha256(f"{seed} {benchmark}".encode()).digest()[:8], "big")
    return population.order(np.random.default_rng(key))


def _known(baseline: Evaluation, margin: float, seed: int) -> _Set:
    records = baseline.records
    d = design_of(baseline)
    population = sequence.population(d, credits(baseline, "strict"), margin=margin)
    names = sorted({r.video_id for r in records})
    by_video: list[list[QuestionRecord]] = [[] for _ in names]
    for r, c in zip(records, d.clusters, strict=True):
        by_video[int(c)].append(r)
    weight = {r.question_id: float(w) for r, w in zip(records, d.weights, strict=True)}
    return _Set(by_video, names, weight, population, drawing_order(population, baseline.score.benchmark, seed))


def check_benchmark(
    baseline: Evaluation,
    ask: Ask,
    margin: float,
    s: GateSettings,
    *,
    seed: int = 0,
    batch: int | None = None,
    progress: Progress | None = None,
) -> tuple[Decision | None, list[IntegrityProblem], Asked]:
    """Ask one benchmark until its verdict is certain. `margin` in points; `batch` videos between looks.

    Returns the decision (None where integrity forbids one), the integrity problems and how much was asked.

    Raises:
        GateUsageError: a batch size below 1.
    """
    if batch is not None and batch < 1:
        raise GateUsageError(f"batch must be at least 1 video, got {batch}")
    name = baseline.score.benchmark
    known = _known(baseline, margin / 100, seed)
    n_videos = known.population.size
    of = len(baseline.records)
    step = batch or sequence.batch_size(n_videos, of)
    totals: list[float] = []
    asked: list[QuestionRecord] = []
    look = sequence.look(np.zeros(0), known.order, known.population, margin=margin / 100, alpha=s.alpha)
    while look.verdict is None:
        drawn = known.order[len(totals) : len(totals) + step]
        records = ask(name, [known.names[v] for v in drawn])
        problems = _same_questions(name, [r for v in drawn for r in known.by_video[v]], records)
        if problems:
            return None, problems, Asked(name, len(asked), of, len(totals), n_videos)
        mine = {r.question_id: r for r in records}
        for v in drawn:
            totals.append(sum(known.weight[r.question_id] * (mine[r.question_id].strict - r.strict) for r in known.by_video[v]))
        asked += records
        look = sequence.look(np.array(totals), known.order, known.population, margin=margin / 100, alpha=s.alpha)
        if progress is not None:
            progress(name, len(asked), of, look)
    amount = Asked(name, len(asked), of, len(totals), n_videos)
    problems = _shares(name, asked, s.limits)
    return _decision(known, baseline, asked, totals, look, margin, s, amount), problems, amount


def _same_questions(name: str, wanted: Sequence[QuestionRecord], got: Sequence[QuestionRecord]) -> list[IntegrityProblem]:
    """The candidate was asked exactly the baseline's questions on these videos, in the same words, on as many frames."""
    mine = {r.question_id: r for r in got}
    out: list[IntegrityProblem] = []
    missing = [r.question_id for r in wanted if r.question_id not in mine]
    extra = len(mine) - (len(wanted) - len(missing))
    if missing or extra or len(got) != len(mine):
        message = f"{len(wanted)} questions expected on these videos, {len(got)} came back ({len(missing)} missing, {extra} unknown)"
        return [IntegrityProblem(name, "candidate", "questions", message)]
    for code, field in (("prompts", "prompt"), ("targets", "target"), ("tasks", "task"), ("videos", "video_id"), ("frames", "frames")):
        differ = [
            r.question_id
            for r in wanted
            if getattr(r, field) != getattr(mine[r.question_id], field) and mine[r.question_id].status != "failed"
        ]
        if differ:
            out.append(
                IntegrityProblem(
                    name, "both", code, (f"{field} differs from the baseline's for {len(differ)} questions, first {differ[0]!r}")
                )
            )
    failed = [r for r in got if r.status == "failed"]
    if failed:
        out.append(
            IntegrityProblem(
                name, "candidate", "failed", (f"{len(failed)} questions got no answer, first {failed[0].question_id!r}: {failed[0].error}")
            )
        )
    return out


def _shares(name: str, asked: Sequence[QuestionRecord], limits: StatusLimits) -> list[IntegrityProblem]:
    share = 100.0 * sum(r.status == "judged" for r in asked) / max(len(asked), 1)
    if share <= limits.judged:
        return []
    text = f"{share:.2f} % of the {len(asked):,} answers asked are judged, at most {limits.judged:g} % may be"
    return [IntegrityProblem(name, "candidate", "judged", text)]


def _decision(
    known: _Set,
    baseline: Evaluation,
    asked: Sequence[QuestionRecord],
    totals: Sequence[float],
    look: sequence.Look,
    margin: float,
    s: GateSettings,
    amount: Asked,
) -> Decision:
    drawn = known.population.draw[known.order[: len(totals)]]
    estimate = min(max(float(np.sum(totals)) / max(float(drawn.sum()), 1e-12), look.low), look.high) if totals else 0.0
    before = {r.question_id: r.strict for r in baseline.records}
    p = (
        _anytime_p(np.array(totals), known, margin / 100)
        if look.drawn < known.population.size
        else (0.0 if look.verdict == "pass" else 1.0)
    )
    assert look.verdict is not None
    verdict: Verdict = look.verdict
    what = (
        (f"a loss of {margin:g} points or more over the whole set is ruled out")
        if verdict == "pass"
        else f"worse by {margin:g} points or more over the whole set"
    )
    return Decision(
        question="no_regression",
        benchmark=amount.benchmark,
        n=amount.questions,
        videos=amount.videos,
        estimate=100 * estimate,
        low=100 * look.low,
        high=100 * look.high,
        margin=margin,
        verdict=verdict,
        mde=0.0,  # asked to the end the set's difference is known exactly, so no difference is too small
        n_needed=amount.questions,
        p_value=p,
        p_adjusted=p,
        method="confidence sequence by betting, videos drawn without replacement",
        note=f"{what}; {amount.questions:,} of {amount.of:,} questions asked ({100 * amount.share:.0f} %)",
        reference_pct=baseline.score.strict_pct,
        gained=sum(r.strict > before[r.question_id] for r in asked),
        lost=sum(r.strict < before[r.question_id] for r in asked),
    )


def _anytime_p(totals: np.ndarray, known: _Set, margin: float) -> float:
    """Anytime-valid p value of "a loss of the margin or more": one over the largest capital ever held."""
    if len(totals) == 0:
        return 1.0
    game = sequence.play(totals, known.population.draw[known.order[: len(totals)]], known.population, target=-margin, direction=1)
    return math.exp(-max(0.0, min(700.0, float(game.log_capital(-margin).max()))))


def check(
    baseline: Mapping[str, Evaluation],
    ask: Ask,
    settings: GateSettings | None = None,
    *,
    seed: int = 0,
    batch: int | None = None,
    familywise: bool = False,
    progress: Progress | None = None,
    candidate_name: str = "",
    reference_name: str = "",
) -> CheckResult:
    """Check a candidate against a baseline run, benchmark after benchmark.

    Each verdict differs from the full set's with probability at most alpha. The overall pass needs all to pass, so it is wrong with
    probability at most alpha too; an overall fail is wrong with probability at most alpha times the benchmarks, or alpha with
    `familywise` (each tested at its share of alpha, at the price of asking more).

    Raises:
        GateUsageError: settings out of range, an unknown benchmark, or none.
    """
    s = settings or GateSettings()
    s.check()
    names = list(s.benchmarks or baseline)
    unknown = [n for n in names if n not in baseline]
    if unknown or not names:
        raise GateUsageError(f"the baseline has no {', '.join(unknown) or 'benchmark'}; it has {', '.join(baseline) or 'none'}")
    level = replace(s, alpha=s.alpha / len(names)) if familywise else s
    decisions: list[Decision] = []
    problems: list[IntegrityProblem] = []
    asked: list[Asked] = []
    for name in names:
        margin = s.margin_of(name)
        found = check_evaluation(baseline[name], side="baseline", limits=s.limits)
        problems += found
        if found:
            asked.append(Asked(name, 0, len(baseline[name].records), 0, baseline[name].score.videos))
            continue
        decision, seen, amount = check_benchmark(baseline[name], ask, margin, level, seed=seed, batch=batch, progress=progress)
        problems += seen
        asked.append(amount)
        if decision is not None:
            decisions.append(decision)
    scale = baseline[names[0]].score.scale
    gate = conclude(decisions, problems, s, candidate=candidate_name, reference=reference_name, scale=scale)
    return CheckResult(gate, asked)
