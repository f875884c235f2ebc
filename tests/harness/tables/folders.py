"""Result folders as this harness and as lmms-eval 0.7.3 leave them, with chosen answers right."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks.catalog import CATALOG
from harness.records import Evaluation, Provenance, QuestionRecord, Score, write_evaluation


def credits(n: int, right: int, seed: int = 0) -> list[int]:
    out = [1] * right + [0] * (n - right)
    random.Random(seed).shuffle(out)
    return out


def write_run(
    folder: Path,
    right: Sequence[int],
    *,
    benchmark: str = "egoschema",
    scale: str = "micro",
    a_video: int = 1,
    salt: str = "",
    data: Literal["", "real", "micro"] = "",
    expected: int | None = None,
) -> Path:
    """An eval folder of ours with one benchmark."""
    task = CATALOG[benchmark].tasks[0]
    records = [
        QuestionRecord(
            benchmark=benchmark, task=task, doc_id=i, question_id=f"{salt}{i:064d}", video_id=f"v{i // a_video}", prompt="?", target="A",
            answer="A", parsed="A", upstream=float(r), strict=float(r), status="ok", frames=8,
        )
        for i, r in enumerate(right)
    ]  # fmt: skip
    pct = 100 * sum(right) / len(right)
    score = Score(
        benchmark=benchmark, scale=scale, n=len(right), n_expected=expected or len(right),
        videos=len({r.video_id for r in records}), upstream_pct=pct,
        strict_pct=pct, se_pct=1.0, chance_pct=20.0, subtasks={task: pct}, statuses={"ok": len(right)},
        provenance=Provenance(model="m", weights="w", media="x", prompts="p", generation={}, frames={}, versions={}), data=data,
    )  # fmt: skip
    write_evaluation(folder, Evaluation(score, records))
    return folder


def sample(benchmark: str, i: int, right: int) -> dict[str, Any]:
    """A line of samples jsonl: the metric as each task's process_results leaves it."""
    metric: Any = {
        "mvbench": {"pred_answer": "A", "gt_answer": "A" if right else "B", "score": right},
        "perceptiontest": {"video_name": f"v{i // 3}", "question": "?", "pred_id": 0, "answer_id": "0", "correct": right},
        "tempcompass": {"video_id": f"v{i // 3}", "question": "?", "gt-answer": "A", "match_success": True, "rating": right, "dim": "x"},
        "nextqa": float(right),
        "egoschema": {"pred": 0, "ground_truth": "0" if right else "1"},
        "videomme": {"question_id": f"q{i}", "videoID": f"v{i // 3}", "pred_answer": "A", "answer": "A", "score": float(right)},
        "longvideobench": {"id": f"q{i}", "duration_group": 15, "answer": "A", "parsed_pred": "A" if right else "B"},
    }[benchmark]
    return {"doc_id": i, "target": "A", "filtered_resps": ["A"], "doc_hash": "x", "input": "?", CATALOG[benchmark].metric: metric}


def write_stock(
    folder: Path,
    right: Sequence[int],
    *,
    benchmark: str = "egoschema",
    model: str = "org/stock",
    samples: bool = True,
    date: str = "20261122_100000",
) -> Path:
    """A folder as lmms-eval's own command line leaves it."""
    b = CATALOG[benchmark]
    folder.mkdir(parents=True, exist_ok=True)
    value = b.unit * sum(right) / len(right)
    raw = {
        "results": {t: {"alias": t, f"{b.metric},none": value, f"{b.metric}_stderr,none": "N/A"} for t in b.tasks},
        "configs": {t: {"task": t} for t in b.tasks},
        "n-samples": {t: {"original": len(right), "effective": len(right)} for t in b.tasks},
        "config": {"model": "savi", "model_args": f"pretrained={model}"},
        "model_name": model, "lmms_eval_version": "unknown@unknown", "date": date,
    }  # fmt: skip
    (folder / f"{date}_results.json").write_text(json.dumps(raw))
    if samples:
        for t in b.tasks:
            lines = [json.dumps(sample(benchmark, i, r)) + "\n" for i, r in enumerate(right)]
            (folder / f"{date}_samples_{t}.jsonl").write_text("".join(lines))
    return folder
