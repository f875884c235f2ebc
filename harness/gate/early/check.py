"""Early stopping: ask videos in random order and stop as soon as the whole set's verdict is certain at level alpha.

Knows no model: `Ask` hands over the records of all questions on some videos, however they were made (see `harness.gate.early.ask`; in tests
from a table).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.gate.decide import conclude, excuse
from harness.gate.decision import ALL, Decision, GateResult, GateUsageError
from harness.gate.early import sequence
from harness.gate.early.plan import CREDITS, Plan, Track, order_seed, plan
from harness.gate.evidence.changes import changed_questions
from harness.gate.settings import GateSettings
from harness.integrity import IntegrityProblem, StatusLimits, check_evaluation, compare_versions, reading_rule
from harness.reading import READING_VERSION
from harness.records import Evaluation, QuestionRecord

Ask = Callable[[str, Sequence[str]], Sequence[QuestionRecord]]
"""Called with a benchmark and video ids; returns the candidate's records of all questions on those videos, in any order."""
Progress = Callable[[str, int, int, sequence.Look], None]
"""Called after each look with benchmark (or `all`), questions asked, questions in the set, and what is known."""


@dataclass(frozen=True)
class AskedShare:
    """How much of a benchmark had to be asked, and which questions."""

    benchmark: str
    questions: int
    of: int
    videos: int
    of_videos: int
    ids: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Share of the questions, 0-1."""
        return self.questions / self.of if self.of else 0.0


@dataclass(frozen=True)
class CheckResult:
    """The gate result on what was asked, how much that was, and what the order was drawn from."""

    gate: GateResult
    asked: list[AskedShare]
    nonce: str

    @property
    def share(self) -> float:
        """Share of all questions asked, 0-1."""
        total = sum(a.of for a in self.asked)
        return sum(a.questions for a in self.asked) / total if total else 0.0


class _Run:
    """A check on its way."""

    def __init__(self, plan: Plan, ask: Ask, settings: GateSettings, progress: Progress | None) -> None:
        self.plan, self.ask, self.settings, self.progress = plan, ask, settings, progress
        self.records: dict[str, list[QuestionRecord]] = {n: [] for n in plan.known}
        self.problems: list[IntegrityProblem] = []
        # Any benchmark's fail fails the whole, so they share alpha; a pass needs all that are required, so each has alpha.
        self.fail_level = settings.alpha / len(plan.known)
        self.looks = {key: self._look(t) for key, t in plan.tracks.items()}

    def _look(self, track: Track, *, bounds: bool = False) -> sequence.Look:
        level = self.settings.alpha
        return track.look(alpha=level, alpha_fail=level if track.name == ALL else self.fail_level, bounds=bounds or self.required(track))

    def required(self, track: Track) -> bool:
        return self.settings.is_required(track.question, track.name, mean=bool(self.plan.averaged))

    @property
    def wanted(self) -> set[str]:
        """Benchmarks whose questions may still be needed."""
        open_ = {t.name for key, t in self.plan.tracks.items() if self.required(t) and self.looks[key].verdict is None}
        if self.problems or any(k.verdict == "fail" for k in self.looks.values()):
            return set()
        return open_ - {ALL} | (set(self.plan.averaged) if ALL in open_ else set())

    def draw(self, drawn: Sequence[tuple[str, int]]) -> None:
        """Ask some videos, in drawing order, and look."""
        answers: dict[str, QuestionRecord] = {}
        for name in dict.fromkeys(n for n, _ in drawn):
            known = self.plan.known[name]
            videos = [v for n, v in drawn if n == name]
            records = self.ask(name, [known.names[v] for v in videos])
            self.problems += _same_questions(name, [r for v in videos for r in known.questions[v]], records)
            self.problems += _judged(name, records, self.settings.limits)
            if self.problems:
                return
            self.records[name] += records
            answers |= {f"{name} {r.question_id}": r for r in records}
        for name, v in drawn:
            known = self.plan.known[name]
            asked = [(known.weight[r.question_id], answers[f"{name} {r.question_id}"], r) for r in known.questions[v]]
            for question, credit in CREDITS.items():
                total = sum(weight * (credit(now) - credit(before)) for weight, now, before in asked)
                self.plan.tracks[question, name].totals.append(total)
                if name in self.plan.averaged:
                    self.plan.tracks[question, ALL].totals.append(total / len(self.plan.averaged))
        touched = {n for n, _ in drawn}
        touched |= {ALL} if touched & set(self.plan.averaged) else set()
        for key, track in self.plan.tracks.items():
            if track.name in touched:
                self.looks[key] = self._look(track)
                if self.progress is not None and self.required(track):
                    self.progress(track.name, self.count(track.name), track.of, self.looks[key])

    def count(self, name: str) -> int:
        """Questions asked."""
        return sum(len(self.records[n]) for n in (self.plan.averaged if name == ALL else (name,)))

    def decisions(self) -> list[Decision]:
        """The verdicts as they stand. A benchmark that was not needed any more stays without one."""
        return [self._decision(t, self._look(t, bounds=True)) for t in self.plan.tracks.values()]

    def _decision(self, track: Track, look: sequence.Look) -> Decision:
        names, credit = self.plan.averaged if track.name == ALL else (track.name,), CREDITS[track.question]
        before = {(n, r.question_id): credit(r) for n in names for q in self.plan.known[n].questions for r in q}
        changed = [credit(r) - before[n, r.question_id] for n in names for r in self.records[n]]
        totals, asked = np.array(track.totals), self.count(track.name)
        drawn = float(track.population.draw[track.order[: len(totals)]].sum())
        estimate = min(max(float(totals.sum()) / max(drawn, 1e-12), look.low), look.high) if len(totals) else 0.0
        p = _anytime_p(totals, track) if look.drawn < track.population.size else (0.0 if look.verdict == "pass" else 1.0)
        points = 100 * track.margin
        # A format decision speaks of answers that cannot be read, whose share rises where readable ones are lost.
        sign = -100 if track.question == "format" else 100
        what, worse = ("a rise of unreadable answers by", "unreadable answers rose") if sign < 0 else ("a loss of", "worse")
        note = {
            "pass": f"{what} {points:g} points or more over the whole set is ruled out",
            "fail": f"{worse} by {points:g} points or more over the whole set",
            None: "not needed any more",
        }[look.verdict]
        return Decision(
            question=track.question,
            benchmark=track.name,
            n=asked,
            videos=len(totals),
            estimate=sign * estimate + 0.0,  # no -0.0
            low=min(sign * look.low, sign * look.high) + 0.0,
            high=max(sign * look.low, sign * look.high) + 0.0,
            margin=points,
            verdict=look.verdict or "inconclusive",
            mde=0.0,  # asked to the end the set's difference is known exactly, so no difference is too small
            n_needed=asked,
            p_value=p,
            p_adjusted=p,
            method="confidence sequence by betting, videos drawn without replacement",
            note=f"{note}; {asked:,} of {track.of:,} questions asked ({100 * asked / track.of:.0f} %)",
            reference_pct=track.reference_pct,
            gained=sum(d > 0 for d in changed),
            lost=sum(d < 0 for d in changed),
            required=self.required(track),
            veto=self.settings.has_veto(track.question),
        )


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
            message = f"{field} differs from the baseline's for {len(differ)} questions, first {differ[0]!r}"
            out.append(IntegrityProblem(name, "both", code, message))
    failed = [r for r in got if r.status == "failed"]
    if failed:
        message = f"{len(failed)} questions got no answer, first {failed[0].question_id!r}: {failed[0].error}"
        out.append(IntegrityProblem(name, "candidate", "failed", message))
    return out


def _read_as_now(baseline: Evaluation) -> list[IntegrityProblem]:
    """The candidate's replies are read by this version's rule, so the baseline's must have been too."""
    rule = reading_rule(baseline.score)
    if rule in (None, READING_VERSION):
        return []
    message = f"its replies were read by rule {rule}, this version reads by rule {READING_VERSION}: evaluate the baseline again"
    return [IntegrityProblem(baseline.score.benchmark, "baseline", "reading", message)]


def _judged(name: str, records: Sequence[QuestionRecord], limits: StatusLimits) -> list[IntegrityProblem]:
    share = 100.0 * sum(r.status == "judged" for r in records) / max(len(records), 1)
    if share <= limits.judged:
        return []
    text = f"{share:.2f} % of the {len(records):,} answers asked last are judged, at most {limits.judged:g} % may be"
    return [IntegrityProblem(name, "candidate", "judged", text)]


def _anytime_p(totals: np.ndarray, track: Track) -> float:
    """Anytime-valid p value of "a loss of the margin or more": one over the largest capital ever held."""
    if len(totals) == 0:
        return 1.0
    pop = track.population
    game = sequence.play(totals, pop.draw[track.order[: len(totals)]], pop, target=-track.margin, direction=1)
    return math.exp(-max(0.0, min(700.0, float(game.log_capital(-track.margin).max()))))


def check(
    baseline: Mapping[str, Evaluation],
    ask: Ask,
    settings: GateSettings | None = None,
    *,
    nonce: str,
    weights: str = "",
    versions: Mapping[str, str] | None = None,
    batch: int | None = None,
    progress: Progress | None = None,
    candidate_name: str = "",
    reference_name: str = "",
) -> CheckResult:
    """Check a candidate against a baseline run. Videos of all benchmarks are drawn in one random order (see `plan`); `weights` and `nonce`
    are what nobody can know before; `batch` videos are asked between two looks; `versions` are those that the candidate is asked with.

    It stops when every required decision is certain, and at the first fail of any benchmark, also a rise of answers that cannot be read.
    The mean's verdict differs from the whole set's with probability at most alpha; so does each benchmark's pass; the benchmarks' fails
    share another alpha; all that holds for scores and for unreadable answers each. Where only the mean is required, a benchmark whose fail
    is not certain by then stays without a verdict, and so do unreadable answers, which are never required to pass.

    Raises:
        GateUsageError: settings out of range, an unknown benchmark, or none.
    """
    s = settings or GateSettings()
    s.check()
    names = list(s.benchmarks or baseline)
    unknown = [n for n in names if n not in baseline]
    if unknown or not names:
        raise GateUsageError(f"the baseline has no {', '.join(unknown) or 'benchmark'}; it has {', '.join(baseline) or 'none'}")
    if batch is not None and batch < 1:
        raise GateUsageError(f"batch must be at least 1 video, got {batch}")
    whole = {n: baseline[n] for n in names}
    scale = baseline[names[0]].score.scale
    problems = [p for n in names for p in (*check_evaluation(baseline[n], side="baseline", limits=s.limits), *_read_as_now(baseline[n]))]
    if versions is not None:
        problems += [p for n in names for p in compare_versions(n, versions, baseline[n].score.provenance.versions)]
    problems = excuse(problems, s)
    if any(p.stops for p in problems):
        nothing = [AskedShare(n, 0, len(e.records), 0, e.score.videos) for n, e in whole.items()]
        return CheckResult(conclude([], problems, s, candidate=candidate_name, reference=reference_name, scale=scale), nothing, nonce)
    drawing = plan(whole, names, s, order_seed(whole, weights, nonce))
    run = _Run(drawing, ask, s, progress)
    size = batch or sequence.batch_size(len(drawing.order), sum(len(e.records) for e in whole.values()), len(names))
    left = list(drawing.order)
    while wanted := run.wanted:
        drawn = [x for x in left if x[0] in wanted][:size]
        taken = set(drawn)
        left = [x for x in left if x not in taken]
        run.draw(drawn)
    asked = [
        AskedShare(n, len(ids), len(whole[n].records), len(track.totals), track.population.size, tuple(ids))
        for n in names
        for ids, track in [(sorted(r.question_id for r in run.records[n]), drawing.tracks["no_regression", n])]
    ]
    decisions = [] if run.problems else run.decisions()
    changed = {n: changed_questions(run.records[n], [r for q in drawing.known[n].questions for r in q]) for n in names}
    gate = conclude(
        decisions, [*problems, *run.problems], s, candidate=candidate_name, reference=reference_name, scale=scale, changed=changed
    )
    return CheckResult(gate, asked, nonce)
