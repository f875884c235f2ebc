"""From what lmms-eval returns for one benchmark to its records and score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.benchmark import Benchmark
from benchmarks.data.layout import expected_n, has_twins
from harness.reading import READING_VERSION
from harness.records import Evaluation, Provenance, QuestionRecord, ReadBy, prompts_fingerprint
from harness.run.journal import Answer
from harness.run.made_from import Plan, versions
from harness.run.offline import Guesses, InfrastructureError, default_arguments
from harness.scoring import ScoredReply, question_id, record, score, unique_ids

if TYPE_CHECKING:
    from harness.run.lmms_model import SaviLmms


def collect(adapter: SaviLmms, plan: Plan, benchmark: Benchmark, results: Mapping[str, Any], guesses: Guesses, wall_s: float) -> Evaluation:
    """The benchmark's evaluation, records in document order.

    Raises:
        InfrastructureError: lmms-eval returned other documents than it scored.
    """
    records: list[QuestionRecord] = []
    chances: list[float] = []
    upstream: dict[str, float] = {}
    for task in benchmark.tasks:
        samples, read_by = results["samples"][task], guesses.by_task[task]
        if len(read_by) != len(samples):
            raise InfrastructureError(f"{task}: lmms-eval returned {len(samples)} samples for {len(read_by)} scored documents")
        pairs = sorted(zip(samples, read_by, strict=True), key=lambda p: int(p[0]["doc_id"]))
        asked = [adapter.asked[task, int(sample["doc_id"])] for sample, _ in pairs]
        ids = unique_ids([question_id(task, a) for a in asked])
        for (sample, by), a, qid in zip(pairs, asked, ids, strict=True):
            reply = reply_of(sample, adapter.answers[task, int(sample["doc_id"])], by)
            records.append(record(benchmark, task, sample, a, reply, qid))
            chances.append(a.chance)
        upstream[task] = float(results["results"][task][f"{benchmark.metric},none"]) * 100.0 / benchmark.unit
    return score(
        benchmark, records, chances, upstream, scale=plan.scale, n_expected=expected_n(plan.hf_home, benchmark), limit=plan.limit,
        provenance=_provenance(adapter, plan, benchmark, records), wall_s=wall_s, data="micro" if has_twins(plan.hf_home) else "real",
    )  # fmt: skip


def reply_of(sample: Mapping[str, Any], answer: Answer, read_by: ReadBy) -> ScoredReply:
    """A sample's reply as lmms-eval scored it (its reasoning tags removed), and as the model gave it where more than blanks was removed."""
    text = str(sample["filtered_resps"][0])
    raw = None if answer.text.strip() == text.strip() else answer.text
    return ScoredReply(text, answer.frames, answer.error or None, read_by, raw, answer.decoder)


def _provenance(adapter: SaviLmms, plan: Plan, benchmark: Benchmark, records: Sequence[QuestionRecord]) -> Provenance:
    return Provenance(
        model=plan.name,
        weights=plan.weights,
        media=adapter.media.fingerprint(benchmark, (r.video_path for r in records)),
        prompts=prompts_fingerprint(records),
        generation=dict(adapter.generation.get(benchmark.tasks[0], {})),
        frames=adapter.frame_settings,
        versions=versions(),
        seed=plan.seed,
        reading={"reasoning_tags": str(default_arguments().reasoning_tags), "rule": READING_VERSION},
    )
