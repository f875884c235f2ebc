"""From lmms-eval's samples to question records and a score: what upstream credited, what the strict rule credits, and why.

Upstream's credit is taken as lmms-eval's own tasks gave it. The strict rule only ever takes credit away: a guess, an accident of parsing
("It is a blue cube" read as option A) or an empty, failed or degenerate answer earns nothing. So strict <= upstream for every question,
and the difference is free credit. An answer counts as read (status `ok`) only where lmms-eval's credit agrees with `harness.reading`;
where the two read different options, neither is beyond doubt. Reads plain dictionaries; knows no model, no lmms-eval and no files.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.benchmark import Benchmark, Form
from harness.reading import read_reply
from harness.records import Data, Evaluation, Provenance, QuestionRecord, ReadBy, Score, Status, records_sha256
from savi.base.errors import ExitCode, SaviError

_DEGENERATE_WORDS = 4
_DEGENERATE_CHARS = 8


class ScoringError(SaviError, ValueError):
    """A sample that does not look as its task makes it: names the task, the document and the field."""

    exit_code = ExitCode.BROKEN


@dataclass(frozen=True)
class Asked:
    """A document in one form for all benchmarks: the question, its options, the right reply, the video (relative to HF_HOME)."""

    question: str
    options: tuple[str, ...]
    target: str
    form: Form
    video: str

    @property
    def chance(self) -> float:
        """What blind guessing earns, 0-1."""
        return 1.0 / len(self.options)


@dataclass(frozen=True)
class ScoredReply:
    """What the model said to one question, and how it came about. `read_by`: how lmms-eval came to its credit; `raw`: the text before
    lmms-eval removed its reasoning tags, where that changed it; `decoder`: what decoded the video."""

    text: str
    frames: int
    error: str | None = None
    read_by: ReadBy = "rule"
    raw: str | None = None
    decoder: str = ""


def describe(benchmark: Benchmark, task: str, doc: Mapping[str, Any]) -> Asked:
    """Bring a benchmark's document into the common form.

    Raises:
        ScoringError: the document lacks a field, or its answer is none of its options.
    """
    try:
        document = benchmark.document(task, doc)
        video = benchmark.video_file(task, doc)
    except (KeyError, IndexError, ValueError, TypeError) as e:
        raise ScoringError(
            f"{task}: a document does not look as expected ({type(e).__name__}: {e}); fields: {', '.join(map(str, doc))}"
        ) from e
    return Asked(document.question, document.options, document.target, benchmark.form(task), video)


def question_id(task: str, asked: Asked) -> str:
    """Hash of a question's content: task, video, question, options and key. Equal between runs, whatever the order of the documents."""
    content = [task, asked.video, asked.question, list(asked.options), asked.target]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:20]


def unique_ids(ids: Sequence[str]) -> list[str]:
    """Tell apart documents with the very same content (real sets have some): the second becomes `<id>-2`, in document order."""
    seen: Counter[str] = Counter()
    out = []
    for i in ids:
        seen[i] += 1
        out.append(i if seen[i] == 1 else f"{i}-{seen[i]}")
    return out


def read(asked: Asked, answer: str) -> str | None:
    """What a reply settles on: a letter, or yes/no; None where that cannot be told."""
    return read_reply(asked.form, asked.options, answer)


def is_degenerate(answer: str) -> bool:
    """One token repeated and nothing else: four words or more of one kind, or eight characters."""
    words = answer.split()
    if len(words) >= _DEGENERATE_WORDS:
        return len(set(words)) == 1
    text = "".join(words)
    return len(text) >= _DEGENERATE_CHARS and len(set(text)) == 1


def upstream_credit(benchmark: Benchmark, sample: Mapping[str, Any]) -> float:
    """The credit (0 or 1) lmms-eval gave one sample, from the fields its task writes.

    Raises:
        ScoringError: the sample lacks its task's metric.
    """
    try:
        return benchmark.credit(sample).right
    except (KeyError, TypeError, ValueError) as e:
        raise ScoringError(
            f"{benchmark.title}, document {sample.get('doc_id')}: no {benchmark.metric} as expected ({type(e).__name__}: {e})"
        ) from e


def status_of(reply: ScoredReply, parsed: str | None) -> Status:
    """How a reply was read (see `harness.records.Status`), where `parsed` is what both rules read in it."""
    if reply.error is not None:
        return "failed"
    if not reply.text.strip():
        return "empty"
    if is_degenerate(reply.text):
        return "degenerate"
    return "ok" if parsed is not None else "unparsed"


def record(benchmark: Benchmark, task: str, sample: Mapping[str, Any], asked: Asked, reply: ScoredReply, qid: str) -> QuestionRecord:
    """One question's record. Strict credit needs upstream's credit, status `ok` and the right option named beyond doubt."""
    upstream = upstream_credit(benchmark, sample)
    parsed = read(asked, reply.text) if reply.error is None and reply.read_by == "rule" else None
    if (parsed == asked.target) != (upstream == 1):  # lmms-eval read another option
        parsed = None
    status = status_of(reply, parsed)
    return QuestionRecord(
        benchmark=benchmark.name,
        task=task,
        doc_id=int(sample["doc_id"]),
        question_id=qid,
        video_id=benchmark.video_id(asked.video),
        prompt=_encodable(str(sample["arguments"][0])),
        target=asked.target,
        answer=_encodable(reply.text),
        parsed=parsed,
        upstream=upstream,
        strict=upstream if status == "ok" and parsed == asked.target else 0.0,
        status=status,
        frames=reply.frames,
        video_path=asked.video,
        error=reply.error and _encodable(reply.error),
        read_by=reply.read_by,
        raw=reply.raw and _encodable(reply.raw),
        decoder=reply.decoder,
    )


def _encodable(text: str) -> str:
    """The text with U+FFFD for lone surrogates, which no UTF-8 file can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def clustered_se_pct(records: Sequence[QuestionRecord]) -> float:
    """Standard error (points) of the mean over tasks of the strict credit, questions on one video taken as one draw.

    Linearised: a question weighs 1 / (tasks * questions of its task), its residual is taken from its task's mean, residuals are summed by
    video, and their squares over videos, times G / (G - 1). 0 with fewer than two videos.
    """
    by_task: dict[str, list[float]] = defaultdict(list)
    for r in records:
        by_task[r.task].append(r.strict)
    mean = {t: sum(v) / len(v) for t, v in by_task.items()}
    cluster: dict[str, float] = defaultdict(float)
    for r in records:
        cluster[r.video_id] += (r.strict - mean[r.task]) / (len(by_task) * len(by_task[r.task]))
    g = len(cluster)
    return 100.0 * math.sqrt(sum(x * x for x in cluster.values()) * g / (g - 1)) if g > 1 else 0.0


def score(
    benchmark: Benchmark,
    records: Sequence[QuestionRecord],
    chances: Sequence[float],
    upstream_by_task: Mapping[str, float],
    *,
    scale: str,
    n_expected: int,
    provenance: Provenance,
    wall_s: float,
    limit: int | None = None,
    data: Data = "",
) -> Evaluation:
    """Aggregate records to a benchmark's score.

    `chances`: blind guessing's expectation of each record (0-1); `upstream_by_task`: lmms-eval's own headline value of each task in 0-100.

    Raises:
        ScoringError: no records, or a task without records or upstream value.
    """
    strict: dict[str, list[float]] = {t: [] for t in benchmark.tasks}
    chance: dict[str, list[float]] = {t: [] for t in benchmark.tasks}
    for r, c in zip(records, chances, strict=True):
        strict[r.task].append(r.strict)
        chance[r.task].append(c)
    empty = [t for t in benchmark.tasks if not strict[t] or t not in upstream_by_task]
    if empty:
        raise ScoringError(
            f"{benchmark.title}: no answers for {', '.join(empty)}; a mean over its {len(benchmark.tasks)} tasks needs all of them"
        )
    subtasks = {t: 100.0 * sum(v) / len(v) for t, v in strict.items()}
    counts = Counter(r.status for r in records)
    k = len(benchmark.tasks)
    return Evaluation(
        Score(
            benchmark=benchmark.name,
            scale=scale,
            n=len(records),
            n_expected=n_expected,
            limit=limit,
            videos=len({r.video_id for r in records}),
            upstream_pct=sum(upstream_by_task[t] for t in benchmark.tasks) / k,
            strict_pct=sum(subtasks.values()) / k,
            se_pct=clustered_se_pct(records),
            chance_pct=sum(100.0 * sum(v) / len(v) for v in chance.values()) / k,
            subtasks=subtasks,
            statuses={s: counts[s] for s in sorted(counts)},
            provenance=provenance,
            wall_s=wall_s,
            records_sha256=records_sha256(records),
            data=data,
            to_judge=sum(r.read_by == "judge" for r in records),
        ),
        list(records),
    )
