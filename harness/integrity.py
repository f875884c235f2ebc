"""May these scores be compared at all? Each doubt is an `IntegrityProblem` with a code, a place and what would fix it.

Checked before any statistics: scores that are not comparable are not compared. Reads only records and scores; knows no model, no
lmms-eval and no files.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from benchmarks.benchmark import Benchmark
from harness.reading import read_letter, read_yes_no
from harness.records import (
    QUESTIONS_FILE,
    SCHEMA_VERSION,
    SCORE_FILE,
    Evaluation,
    QuestionRecord,
    Score,
    Status,
    prompts_fingerprint,
    records_sha256,
)

Side = Literal["candidate", "baseline", "both"]

EXAMPLES = 3
UPSTREAM_TOLERANCE_PCT = 0.02
"""lmms-eval rounds some of its scores to two decimals."""
UNKNOWN = "unknown"
"""A fingerprint nobody took (stock lmms-eval results): what it would show cannot be checked, which is said."""
IGNORED_VERSIONS = frozenset({"savi"})
"""Our own version may differ: it is what a pull request changes."""
SAME_PIXELS = frozenset({"decord", "pyav"})
"""Decoders that give the same bytes where both are right (tests/savi/video/test_films.py)."""


@dataclass(frozen=True)
class StatusLimits:
    """Largest share (percent of questions) of answers that were never made or that an outside judge read (ours). Answers that cannot be
    read (unparsed, empty, degenerate) are the model's own doing: the gate decides on them, see `harness.gate.evidence.formats`."""

    judged: float = 0.0
    failed: float = 0.0


@dataclass(frozen=True)
class IntegrityProblem:
    """One reason not to compare, or (`warns`) to look twice. `code` is stable and machine-readable; `message` names place and fix."""

    benchmark: str
    side: Side
    code: str
    message: str
    excused_by: str | None = None
    warns: bool = False

    @property
    def stops(self) -> bool:
        """Whether it forbids the comparison."""
        return not self.warns and self.excused_by is None


def _some(items: Iterable[str], total: int | None = None) -> str:
    """The first few of `items`, and how many more there are."""
    listed = list(items)
    n = len(listed) if total is None else total
    shown = ", ".join(repr(x) for x in listed[:EXAMPLES])
    return f"{shown} and {n - EXAMPLES} more" if n > EXAMPLES else shown


def task_mean_pct(records: Sequence[QuestionRecord], credit: Literal["strict", "upstream"], *, skip_empty: bool = False) -> float:
    """Unweighted mean of the tasks' mean credits, 0-100; NaN for no records. `skip_empty`: as MVBench, empty answers leave the
    denominator."""
    sums: dict[str, list[float]] = {}
    for r in records:
        if not (skip_empty and r.status in ("empty", "failed")):
            s = sums.setdefault(r.task, [0.0, 0.0])
            s[0] += getattr(r, credit)
            s[1] += 1
        else:
            sums.setdefault(r.task, [0.0, 0.0])
    if not sums:
        return math.nan
    return 100.0 * sum(s / n if n else 0.0 for s, n in sums.values()) / len(sums)


def edited(evaluation: Evaluation) -> str | None:
    """What is wrong where the records are not byte for byte those the score was made of (or nothing says what they were), and the fix.

    A score older than the checksum is refused too: taking the field out of the file must not be the way past it.
    """
    questions, score = f"{evaluation.score.benchmark}/{QUESTIONS_FILE}", f"{evaluation.score.benchmark}/{SCORE_FILE}"
    stated = evaluation.score.records_sha256
    if not stated:
        return (
            f"{score} has no records_sha256 (older than the field, or taken out), so nothing tells whether {questions} was edited: "
            "evaluate again"
        )
    found = records_sha256(evaluation.records)
    if found == stated:
        return None
    return (
        f"{questions} was edited after it was scored: the SHA-256 of its records is {found[:12]}…, {score} says {stated[:12]}…; put both "
        "files back as the evaluation wrote them, or evaluate again"
    )


def check_evaluation(evaluation: Evaluation, *, side: Side = "candidate", limits: StatusLimits | None = None) -> list[IntegrityProblem]:
    """Everything one benchmark's evaluation can contradict by itself: counts, ids, frames, statuses, and the score its records give."""
    limits = limits or StatusLimits()
    score, records = evaluation.score, evaluation.records
    out: list[IntegrityProblem] = []

    def problem(code: str, message: str) -> None:
        out.append(IntegrityProblem(score.benchmark, side, code, message))

    if score.schema_version != SCHEMA_VERSION:
        problem(
            "schema", (f"score.json has schema {score.schema_version}, this tool reads {SCHEMA_VERSION}: evaluate again with this version")
        )
    if not records:
        problem("no_records", "there are no question records: evaluate again")
        return out
    change = edited(evaluation)
    if change is not None:
        problem("records", change)
    n = len(records)
    if n != score.n_expected and not _limited(evaluation):
        problem("count", f"{n:,} questions recorded, {score.n_expected:,} expected: the set is not complete")
    if n != score.n:
        problem("count", f"score.json says n={score.n:,}, questions.jsonl has {n:,} lines")
    twice = [q for q, c in Counter(r.question_id for r in records).items() if c > 1]
    if twice:
        problem("duplicates", f"{len(twice):,} question ids occur more than once: {_some(twice)}")
    other = sorted({r.benchmark for r in records} - {score.benchmark})
    if other:
        problem("benchmark", f"records of another benchmark in this file: {_some(other)}")
    nameless = sum(not r.video_id for r in records)
    if nameless:
        problem("videos", f"{nameless:,} records have no video_id, so they cannot be clustered")
    videos = len({r.video_id for r in records})
    if videos != score.videos:
        problem("videos", f"score.json says {score.videos:,} videos, the records name {videos:,}")
    if prompts_fingerprint(records) != score.provenance.prompts:
        problem("prompts", "the questions and prompts are not those score.json was made with: questions.jsonl was changed or reordered")
    out += _check_statuses(evaluation, side, limits)
    out += _check_frames(evaluation, side)
    out += _unknown(evaluation, side)
    out += _check_score(evaluation, side)
    return out


def _limited(evaluation: Evaluation) -> bool:
    """Whether it says itself that it asked a part: fine beside a run of the same part, never beside a number of the whole set."""
    limit = evaluation.score.limit
    counts = Counter(record.task for record in evaluation.records)
    return limit is not None and len(evaluation.records) < evaluation.score.n_expected and max(counts.values()) <= limit


def _check_statuses(evaluation: Evaluation, side: Side, limits: StatusLimits) -> list[IntegrityProblem]:
    score, records = evaluation.score, evaluation.records
    out: list[IntegrityProblem] = []
    counts = Counter(r.status for r in records)
    stated = {k: v for k, v in score.statuses.items() if v}
    if stated != dict(counts):
        out.append(IntegrityProblem(score.benchmark, side, "statuses", f"score.json counts {stated}, the records have {dict(counts)}"))
    for status in get_args(Status):
        limit = getattr(limits, status, None)
        share = 100.0 * counts[status] / len(records)
        if limit is not None and share > limit:
            ids = (r.question_id for r in records if r.status == status)
            out.append(
                IntegrityProblem(
                    score.benchmark,
                    side,
                    status,
                    f"{counts[status]:,} of {len(records):,} answers ({share:.2f} %) are {status}, at most {limit:g} % may be: "
                    f"{_some(ids, counts[status])}",
                )
            )
    hidden = [r.question_id for r in records if r.error is not None and r.status != "failed"]
    if hidden:
        out.append(
            IntegrityProblem(
                score.benchmark, side, "swallowed", (f"{len(hidden):,} answers carry an error but are scored as answers: {_some(hidden)}")
            )
        )
    credited = [r.question_id for r in records if r.strict > 0 and (r.status != "ok" or r.parsed != r.target or r.strict > r.upstream)]
    if credited:
        message = (
            f"{len(credited):,} answers have strict credit they cannot have (read as another option, or not at all): {_some(credited)}"
        )
        out.append(IntegrityProblem(score.benchmark, side, "credit", message))
    known = score.provenance.media != UNKNOWN  # stock samples do not say how an answer was read
    read_otherwise = [r.question_id for r in records if known and _contradicts(r)]
    if read_otherwise:
        message = f"{len(read_otherwise):,} answers do not say what was read from them: {_some(read_otherwise)}; the record was changed"
        out.append(IntegrityProblem(score.benchmark, side, "answers", message))
    return out


_OPENS = re.compile(r"\s*(?:\([A-E]\)|[A-E](?=\s*$|[.):,]))")
_UNKNOWN_OPTIONS = ("",) * 5


def _contradicts(record: QuestionRecord) -> bool:
    """Whether an answer that opens with a letter (or says yes/no) was recorded as another, or a status does not fit the text."""
    if record.status == "failed":
        return bool(record.answer) or record.error is None
    if (record.status == "empty") != (not record.answer.strip()):
        return True
    if record.status != "ok" or record.parsed is None:
        return False
    if record.parsed in ("yes", "no"):
        return read_yes_no(record.answer) not in (None, record.parsed)
    return _OPENS.match(record.answer) is not None and read_letter(record.answer, _UNKNOWN_OPTIONS) not in (None, record.parsed)


def _unknown(evaluation: Evaluation, side: Side) -> list[IntegrityProblem]:
    """What stock lmms-eval results leave unsaid, as a warning."""
    if evaluation.score.provenance.media != UNKNOWN:
        return []
    alone = sum(r.video_id.startswith(UNKNOWN) for r in evaluation.records)
    videos = f"; the videos of {alone:,} questions are not said, so these count as independent" if alone else ""
    message = f"lmms-eval's own samples: weights, videos' bytes, frames shown and later edits cannot be checked{videos}"
    return [IntegrityProblem(evaluation.score.benchmark, side, "unknown", message, warns=True)]


def _check_frames(evaluation: Evaluation, side: Side) -> list[IntegrityProblem]:
    asked = evaluation.score.provenance.frames.get("num_frames")
    if not isinstance(asked, int) or isinstance(asked, bool):
        return [
            IntegrityProblem(
                evaluation.score.benchmark, side, "frames", ("score.json does not say how many frames were asked for (frames.num_frames)")
            )
        ]
    wrong = [r for r in evaluation.records if r.frames != asked and r.status != "failed"]
    if not wrong:
        return []
    shown = _some(f"{r.video_id}: {r.frames}" for r in wrong)
    return [
        IntegrityProblem(
            evaluation.score.benchmark, side, "frames", (f"{len(wrong):,} questions were asked on other than {asked} frames: {shown}")
        )
    ]


def _check_score(evaluation: Evaluation, side: Side) -> list[IntegrityProblem]:
    out: list[IntegrityProblem] = []
    for credit, stated in (("strict", evaluation.score.strict_pct), ("upstream", evaluation.score.upstream_pct)):
        found = task_mean_pct(evaluation.records, credit)  # type: ignore[arg-type]
        ways = [found] if credit == "strict" else [found, task_mean_pct(evaluation.records, credit, skip_empty=True)]  # type: ignore[arg-type]
        tolerance = 1e-6 if credit == "strict" else UPSTREAM_TOLERANCE_PCT
        if not any(abs(w - stated) <= tolerance for w in ways):  # NaN fails here, as it must
            out.append(
                IntegrityProblem(
                    evaluation.score.benchmark,
                    side,
                    "score",
                    (f"score.json says {credit} {stated:.4f}, its records give {found:.4f}: one of the files was changed"),
                )
            )
    per_task: dict[str, list[float]] = {}
    for r in evaluation.records:
        per_task.setdefault(r.task, []).append(r.strict)
    for task, stated in evaluation.score.subtasks.items():
        credits = per_task.get(task)
        if credits is None or not abs(100.0 * sum(credits) / len(credits) - stated) <= 1e-6:
            out.append(IntegrityProblem(evaluation.score.benchmark, side, "score", f"task {task}: score.json and the records disagree"))
            break
    return out


def check_whole(evaluation: Evaluation, benchmark: Benchmark) -> list[IntegrityProblem]:
    """Whether an evaluation is of the benchmark's whole set, as a published number is: its tasks, their questions and the videos are the
    catalog's."""
    found, sizes = Counter(r.task for r in evaluation.records), dict(zip(benchmark.tasks, benchmark.sizes, strict=True))
    videos = len({r.video_id for r in evaluation.records})
    differ = [f"{t}: {found[t]:,} of {sizes.get(t, 0):,}" for t in sorted(found | sizes) if found[t] != sizes.get(t, 0)]
    if videos != benchmark.videos:
        differ.append(f"videos: {videos:,} of {benchmark.videos:,}")
    if not differ:
        return []
    shown = "; ".join(differ[:EXAMPLES]) + (f" and {len(differ) - EXAMPLES} more" if len(differ) > EXAMPLES else "")
    message = f"not the whole set that the published number is of ({shown}): evaluate every question, without --limit"
    return [IntegrityProblem(benchmark.name, "candidate", "whole_set", message)]


def reading_rule(score: Score) -> int | None:
    """By which rule the replies were read (`harness.reading.READING_VERSION`): 1 where an older score does not say; None for stock
    results, which are not read here."""
    if score.provenance.media == UNKNOWN:
        return None
    return int(score.provenance.reading.get("rule") or 1)


def check_pair(candidate: Evaluation, baseline: Evaluation) -> list[IntegrityProblem]:
    """Whether two evaluations of one benchmark saw the same questions in the same way (everything but the weights)."""
    name = candidate.score.benchmark
    out: list[IntegrityProblem] = []

    def problem(code: str, message: str) -> None:
        out.append(IntegrityProblem(name, "both", code, message))

    a, b = candidate.score, baseline.score
    if a.scale != b.scale:
        problem("scale", f"candidate is of scale {a.scale!r}, baseline of {b.scale!r}: scales are never compared")
    mine = {r.question_id: r for r in candidate.records}
    theirs = {r.question_id: r for r in baseline.records}
    only_a, only_b = mine.keys() - theirs.keys(), theirs.keys() - mine.keys()
    if only_a or only_b:
        problem(
            "questions",
            f"n {len(mine):,} against {len(theirs):,}; only in candidate: {len(only_a):,} ({_some(sorted(only_a)) or 'none'}), "
            f"only in baseline: {len(only_b):,} ({_some(sorted(only_b)) or 'none'})",
        )
    both = mine.keys() & theirs.keys()
    for code, field in (("prompts", "prompt"), ("targets", "target"), ("videos", "video_id"), ("tasks", "task"), ("frames", "frames")):
        differ = sorted(
            q for q in both if getattr(mine[q], field) != getattr(theirs[q], field) and "failed" not in (mine[q].status, theirs[q].status)
        )
        if differ:
            problem(code, f"{field} differs for {len(differ):,} questions: {_some(differ)}")
    p, q = a.provenance, b.provenance
    if p.media != q.media:
        problem("media", f"the videos differ (fingerprints {p.media[:12]} and {q.media[:12]}): evaluate both on the same files")
    if p.prompts != q.prompts:
        problem("prompts", f"the prompts' fingerprints differ ({p.prompts[:12]} and {q.prompts[:12]})")
    _compare("generation", p.generation, q.generation, problem_to=out, name=name)
    if p.reading and q.reading:
        _compare("reading", p.reading, q.reading, problem_to=out, name=name)
    elif UNKNOWN not in (p.media, q.media):  # of stock results it is said already that this is not known
        _compare("reading", {"rule": reading_rule(a)}, {"rule": reading_rule(b)}, problem_to=out, name=name)
    frames = [{**x.frames, "decoder": "pyav"} if x.frames.get("decoder") in SAME_PIXELS else x.frames for x in (p, q)]
    _compare("frame_settings", frames[0], frames[1], problem_to=out, name=name)
    out += compare_versions(name, p.versions, q.versions)
    if p.seed != q.seed:
        problem("seed", f"seed {p.seed} against {q.seed}")
    return out


_RELEASE = re.compile(r"(\d+)\.(\d+)")


def compare_versions(name: str, candidate: Mapping[str, str], baseline: Mapping[str, str]) -> list[IntegrityProblem]:
    """Another release (major.minor) may read or answer otherwise, so it stops; a patch level or a build tag warns, as does a version that
    only one side states."""
    shown: dict[bool, list[str]] = {True: [], False: []}
    for k in sorted((candidate.keys() | baseline.keys()) - IGNORED_VERSIONS):
        x, y = candidate.get(k), baseline.get(k)
        if x != y:
            releases = [m.groups() if m else v for v in (x, y) for m in [_RELEASE.match(v or "")]]
            shown[x is None or y is None or releases[0] == releases[1]].append(f"{k}: {x or 'unknown'} against {y or 'unknown'}")
    return [
        IntegrityProblem(name, "both", "versions", f"versions differ: {'; '.join(texts)}", warns=warns)
        for warns, texts in shown.items()
        if texts
    ]


def _compare(
    code: str, candidate: Mapping[str, object], baseline: Mapping[str, object], *, problem_to: list[IntegrityProblem], name: str
) -> None:
    keys = [k for k in sorted(candidate.keys() | baseline.keys()) if candidate.get(k) != baseline.get(k)]
    if keys:
        shown = "; ".join(f"{k}: {candidate.get(k)!r} against {baseline.get(k)!r}" for k in keys)
        problem_to.append(IntegrityProblem(name, "both", code, f"{code.replace('_', ' ')} differ: {shown}"))


def check_sets(
    candidate: Mapping[str, object], baseline: Mapping[str, object], wanted: Sequence[str] | None = None
) -> list[IntegrityProblem]:
    """Benchmarks that one side lacks (of those `wanted`, or of all that either has)."""
    names = list(wanted) if wanted else sorted(candidate.keys() | baseline.keys())
    out: list[IntegrityProblem] = []
    sides: tuple[tuple[Side, Mapping[str, object]], ...] = (("candidate", candidate), ("baseline", baseline))
    for name in names:
        for side, has in sides:
            if name not in has:
                out.append(IntegrityProblem(name, side, "missing", f"the {side} has no {name}: evaluate it, or name those to compare"))
    return out
