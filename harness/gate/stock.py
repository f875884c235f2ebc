"""Stock lmms-eval result folders (`--log_samples`) as evaluations, so that any model it runs can be candidate or reference.

Such samples say less than our records: no options (so only empty and degenerate answers are known to be unreadable), no fingerprint of
videos, weights or frames, and for some tasks no video. What cannot be checked is said by `UNKNOWN` in the provenance, which the gate prints
as a warning; stock folders are compared with stock folders only, since question ids are lmms-eval's.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.benchmark import Benchmark
from benchmarks.catalog import CATALOG
from harness.integrity import UNKNOWN, task_mean_pct
from harness.records import Evaluation, Provenance, QuestionRecord, RecordError, Score, Status, prompts_fingerprint, records_sha256
from harness.scoring import clustered_se_pct, is_degenerate
from harness.tables.leaderboard.entry import LeaderboardError
from harness.tables.leaderboard.stock import StockRun, StockTask, stock_runs

RESULTS = "*_results.json"


def has_stock(path: Path) -> bool:
    """Whether a folder holds stock lmms-eval results."""
    return any(path.rglob(RESULTS))


def load_stock(path: Path) -> dict[str, Evaluation]:
    """Evaluations of the benchmarks whose samples are all there.

    Raises:
        RecordError: files that cannot be trusted, several models, or no whole benchmark with samples.
    """
    try:
        runs = stock_runs(sorted(path.rglob(RESULTS)))
    except LeaderboardError as e:
        raise RecordError(str(e)) from e
    if len(runs) > 1:
        raise RecordError(f"{path}: results of several models ({', '.join(sorted({r.name for r in runs}))}); name one model's folder")
    out = {}
    for b in CATALOG.values():
        tasks = {t: runs[0].tasks.get(t) for t in b.tasks}
        if all(t is not None and t.samples is not None for t in tasks.values()):
            out[b.name] = _evaluation(b, {n: t for n, t in tasks.items() if t is not None}, runs[0])
    if not out:
        raise RecordError(f"{path}: no benchmark with all its tasks and their samples; run lmms-eval with --log_samples on whole groups")
    return out


def _evaluation(benchmark: Benchmark, tasks: dict[str, StockTask], run: StockRun) -> Evaluation:
    records = [
        _record(benchmark, name, s, f"{task.source}:{i}") for name, task in tasks.items() for i, s in enumerate(task.samples or [], 1)
    ]
    for name, task in tasks.items():
        if len(task.samples or []) != task.effective:
            raise RecordError(f"{task.source}: {len(task.samples or [])} samples of {name}, the result file says {task.effective}")
    subtasks = {t: task_mean_pct([r for r in records if r.task == t], "strict") for t in tasks}
    score = Score(
        benchmark=benchmark.name,
        scale="unstated",
        n=len(records),
        n_expected=sum(t.original for t in tasks.values()),
        videos=len({r.video_id for r in records}),
        upstream_pct=sum(t.value for t in tasks.values()) / len(tasks) * 100 / benchmark.unit,
        strict_pct=task_mean_pct(records, "strict"),
        se_pct=clustered_se_pct(records),
        chance_pct=0.0,
        subtasks=subtasks,
        statuses=dict(Counter(r.status for r in records)),
        provenance=_provenance(run, records),
        records_sha256=records_sha256(records),
    )
    return Evaluation(score, records)


def _provenance(run: StockRun, records: list[QuestionRecord]) -> Provenance:
    config = run.config
    return Provenance(
        model=f"{run.name} {config.get('model_args') or ''}".strip(),
        weights="",
        media=UNKNOWN,
        prompts=prompts_fingerprint(records),
        generation={"gen_kwargs": str(config.get("gen_kwargs") or "")},
        frames={"num_frames": 0, "source": "lmms-eval"},
        versions={k: str(run.raw[f"{k}_version"]) for k in ("lmms_eval", "transformers") if run.raw.get(f"{k}_version")},
        seed=int(config.get("random_seed") or 0),
    )


def _record(benchmark: Benchmark, task: str, sample: dict[str, Any], place: str) -> QuestionRecord:
    try:
        credit = benchmark.credit(sample)
        answer = sample["filtered_resps"]
        answer = str(answer[0] if isinstance(answer, list) and answer else answer or "")
        prompt, doc = str(sample.get("input") or ""), str(sample["doc_hash"])
    except (KeyError, TypeError, ValueError) as e:
        raise RecordError(f"{place}: no sample as lmms-eval 0.7 leaves it ({type(e).__name__}: {e}); another version?") from e
    status: Status = "empty" if not answer.strip() else "degenerate" if is_degenerate(answer) else "ok"
    strict = credit.right if status == "ok" else 0.0
    target = str(sample.get("target"))
    return QuestionRecord(
        benchmark=benchmark.name,
        task=task,
        doc_id=sample["doc_id"],
        question_id=f"{task} {sample['doc_id']} {doc[:16]}",
        video_id=credit.video or f"{UNKNOWN} {task} {sample['doc_id']}",
        prompt=prompt,
        target=target,
        answer=answer,
        parsed=target if strict else None,
        upstream=credit.right,
        strict=strict,
        status=status,
        frames=0,
    )
