"""Evaluations made from a random generator, complete enough to pass every integrity check."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.catalog import CATALOG
from harness.gate.decision import GateResult
from harness.integrity import task_mean_pct
from harness.reading import READING_VERSION
from harness.records import Evaluation, Provenance, QuestionRecord, Score, prompts_fingerprint, records_sha256

LETTERS = "ABCD"


def records(
    benchmark: str = "egoschema", *, n: int = 200, videos: int = 50, accuracy: float = 0.6, seed: int = 0, tasks: int = 1
) -> list[QuestionRecord]:
    """`n` questions spread over `videos` videos and `tasks` tasks; right with probability `accuracy`."""
    rng = np.random.default_rng(seed)
    own = CATALOG[benchmark].tasks if benchmark in CATALOG else ()
    names = own if len(own) == tasks else [f"{benchmark}_{t}" for t in range(tasks)]
    out = []
    for i in range(n):
        target = LETTERS[i % 4]
        right = rng.random() < accuracy
        answer = target if right else LETTERS[(i + 1) % 4]
        out.append(
            QuestionRecord(
                benchmark=benchmark,
                task=names[i % tasks],
                doc_id=i,
                question_id=f"q{i:05d}",
                video_id=f"v{i % videos:04d}",
                prompt=f"Question {i}?",
                target=target,
                answer=answer,
                parsed=answer,
                upstream=float(right),
                strict=float(right),
                status="ok",
                frames=8,
            )
        )
    return out


def evaluation(
    recs: list[QuestionRecord] | None = None, *, weights: str = "w0", scale: str = "micro", expected: int | None = None, **kw: object
) -> Evaluation:
    """An evaluation whose score agrees with its records."""
    rs = records(**kw) if recs is None else recs  # type: ignore[arg-type]
    by_task: dict[str, list[float]] = {}
    for r in rs:
        by_task.setdefault(r.task, []).append(r.strict)
    provenance = Provenance(
        model="m",
        weights=weights,
        media="media",
        prompts=prompts_fingerprint(rs),
        generation={"temperature": 0.0},
        frames={"num_frames": 8},
        versions={"lmms_eval": "0.7.3", "savi": "0.1"},
        reading={"rule": READING_VERSION},
    )
    score = Score(
        benchmark=rs[0].benchmark,
        scale=scale,
        n=len(rs),
        n_expected=len(rs) if expected is None else expected,
        videos=len({r.video_id for r in rs}),
        upstream_pct=task_mean_pct(rs, "upstream"),
        strict_pct=task_mean_pct(rs, "strict"),
        se_pct=1.0,
        chance_pct=25.0,
        subtasks={t: 100 * sum(v) / len(v) for t, v in by_task.items()},
        statuses=dict(Counter(r.status for r in rs)),
        provenance=provenance,
        records_sha256=records_sha256(rs),
    )
    return Evaluation(score, rs)


def flipped(recs: list[QuestionRecord], *, loss: float = 0.0, gain: float = 0.0, seed: int = 1) -> list[QuestionRecord]:
    """The same questions, another model: `loss` of all questions turn from right to wrong, `gain` from wrong to right."""
    rng = np.random.default_rng(seed)
    right = [i for i, r in enumerate(recs) if r.strict]
    wrong = [i for i, r in enumerate(recs) if not r.strict]
    out = list(recs)
    for pool, count, to in ((right, round(loss * len(recs)), 0.0), (wrong, round(gain * len(recs)), 1.0)):
        for i in rng.choice(pool, size=count, replace=False):
            r = recs[i]
            a = r.target if to else LETTERS[(LETTERS.index(r.target) + 1) % 4]
            out[i] = replace(r, answer=a, parsed=a, strict=to, upstream=to)
    return out


def read_gates(path: Path) -> dict[str, GateResult]:
    """The results in a gate.json."""
    return {against: GateResult.from_json(found) for against, found in json.loads(path.read_text(encoding="utf-8")).items()}
