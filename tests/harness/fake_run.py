"""A run folder as an experiment leaves it, made without any model: for tests of what reads one.

Scores follow from the drawn records, not the other way round, so a reader that recomputes them must agree.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

from benchmarks.catalog import CATALOG
from harness.gate.gate import gate_runs
from harness.records import Evaluation, Provenance, QuestionRecord, Score, prompts_fingerprint, read_evaluations, write_evaluation

SMALL = {"tempcompass": 60, "perceptiontest": 40, "nextqa": 40, "mvbench": 80, "egoschema": 40, "longvideobench": 40}
MICRO = {"tempcompass": 300, "perceptiontest": 260, "nextqa": 240, "mvbench": 320, "egoschema": 200, "longvideobench": 220}
REAL = {"tempcompass": 5536, "perceptiontest": 19140, "nextqa": 8564, "mvbench": 4000, "egoschema": 500, "longvideobench": 1337}
COLOURS = ("red", "blue", "green", "yellow", "white", "purple")
THINGS = ("circle", "square", "triangle", "cross")
ASKED = (
    "Which way does the {c} {t} move?",
    "What is left of the {c} {t} when the scene ends?",
    "What happens after the {c} {t} appears?",
    "How many shapes are seen with the {c} {t}?",
)
HOSTILE = (
    "<script>window.pwned=1</script><img src=x onerror='window.pwned=1'>",
    "</script><script>window.pwned=1</script>",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 bell",
    "safe \u202egnihtemos\u202c \u2066hidden\u2069 \u200b",
    "null\x00byte and \u2028 line \u2029 paragraph",
    "{{ 7 * 7 }} ${7*7} javascript:alert(1)",
    "W" + "AAAA " * 200_000,
    "z" + "\u0301\u0316" * 300,
)


def _id(*parts: object) -> str:
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:16]


def make_records(
    benchmark: str, n: int, *, gain: float, seed: int, per_video: int = 4, hostile: bool = False, flawed: bool = False
) -> list[QuestionRecord]:
    """Records of one benchmark; `gain` is the probability that a wrong answer of the base (gain 0) has become right."""
    b, out = CATALOG[benchmark], []
    for i in range(n):
        rng = random.Random(f"{benchmark}-{i}")
        move = random.Random(f"{benchmark}-{i}-{seed}-{gain}")
        task, k = b.tasks[i % len(b.tasks)], 2 if b.tasks[i % len(b.tasks)].endswith("yes_no") else min(b.max_options, 4)
        asked = rng.choice(ASKED).format(c=rng.choice(COLOURS), t=rng.choice(THINGS))
        options = [f"{'ABCDE'[j]}. the {rng.choice(COLOURS)} {rng.choice(THINGS)} number {rng.randrange(99)}" for j in range(k)]
        key = "ABCDE"[rng.randrange(k)]
        right = rng.random() < 0.5
        if gain:
            right = move.random() > gain * 0.35 if right else move.random() < gain
        letter = key if right else move.choice([c for c in "ABCDE"[:k] if c != key])
        status, answer, parsed = "ok", letter, letter
        odd = move.random()
        if odd < 0.015:
            status, answer, parsed, right = "unparsed", "the shape goes somewhere I cannot tell", None, False
        elif flawed and odd < 0.03:
            status, answer, parsed, right = "empty", "", None, False
        elif flawed and odd < 0.05:
            status, answer, parsed, right = "failed", "", None, False
        if hostile and i < len(HOSTILE):
            answer = HOSTILE[i]
        video = i // per_video
        out.append(
            QuestionRecord(
                benchmark,
                task,
                i,
                _id(benchmark, i, asked),
                f"{benchmark}_{video:04d}",
                "\n".join([asked, *options, "Answer with the option's letter from the given choices directly."]),
                key,
                answer,
                parsed,
                1.0 if right or (status == "unparsed" and odd < 0.004) else 0.0,
                float(right),
                status,
                0 if status == "failed" else 8,
                f"{b.data_dir}/videos/{video % 12:04d}.mp4",
                "0 decodable frames" if status == "failed" else None,
            )
        )  # type: ignore[arg-type]
    return out


def make_score(records: list[QuestionRecord], *, scale: str, stage: str) -> Score:
    """The score that follows from the records: mean of task means, standard error clustered by video."""
    tasks: dict[str, list[QuestionRecord]] = defaultdict(list)
    for r in records:
        tasks[r.task].append(r)
    strict = {t: sum(r.strict for r in rows) / len(rows) for t, rows in tasks.items()}
    clusters: dict[str, float] = defaultdict(float)
    for t, rows in tasks.items():
        for r in rows:
            clusters[r.video_id] += (r.strict - strict[t]) / len(rows) / len(tasks)
    g = len(clusters)
    se = 100 * math.sqrt(sum(v * v for v in clusters.values()) * g / (g - 1)) if g > 1 else 0.0
    upstream = sum(sum(r.upstream for r in rows) / len(rows) for rows in tasks.values()) / len(tasks)
    p = Provenance(
        f"runs/demo/{stage}/model",
        _id(stage) * 4,
        _id("media") * 4,
        prompts_fingerprint(records),
        {"max_new_tokens": 16, "temperature": 0.0},
        {"num_frames": 8, "rule": "segment middle"},
        {"savi": "0.1.0", "lmms_eval": "0.7.3", "torch": "2.13.0", "transformers": "5.23.0"},
    )
    return Score(
        records[0].benchmark,
        scale,
        len(records),
        len(records),
        g,
        100 * upstream,
        100 * sum(strict.values()) / len(strict),
        se,
        25.0,
        {t: 100 * v for t, v in strict.items()},
        dict(Counter(r.status for r in records)),
        p,
        12.5,
    )


def _write_jsonl(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


def write_videos(hf_home: Path, benchmarks: list[str], count: int = 12) -> None:
    """Small mp4 files where `make_records` says they are: a coloured square walking over a dark field."""
    import av
    import numpy as np

    for b in benchmarks:
        folder = hf_home / CATALOG[b].data_dir / "videos"
        folder.mkdir(parents=True, exist_ok=True)
        for v in range(count):
            rng = random.Random(f"{b}-{v}")
            colour, y, speed = [rng.randrange(80, 256) for _ in range(3)], rng.randrange(8, 44), rng.choice((-5, 5))
            with av.open(str(folder / f"{v:04d}.mp4"), "w") as out:
                stream = out.add_stream("libx264", rate=4, options={"preset": "ultrafast"})
                stream.width = stream.height = 64
                stream.pix_fmt = "yuv420p"
                for t in range(8):
                    frame = np.full((64, 64, 3), 24, np.uint8)
                    x = (26 + speed * t) % 52
                    frame[y : y + 12, x : x + 12] = colour
                    out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                out.mux(stream.encode())


def write_fake_run(
    folder: Path,
    *,
    scale: str = "micro",
    iterations: int = 3,
    sizes: dict[str, int] | None = None,
    seed: int = 0,
    gates: bool = True,
    videos: bool = False,
    hostile: bool = False,
    flawed: bool = False,
) -> Path:
    """Write a whole run folder and return it. `sizes`: questions a benchmark; `flawed`: some answers failed."""
    sizes = sizes or SMALL
    for t in range(iterations + 1):
        stage = f"iter-{t}" if t else "base"
        for b, n in sizes.items():
            gain = 0.0 if not t else 0.14 + 0.05 * t + 0.06 * (len(b) % 3)
            records = make_records(b, n, gain=gain, seed=seed, hostile=hostile, flawed=flawed)
            write_evaluation(folder / stage / "eval", Evaluation(make_score(records, scale=scale, stage=stage), records))
        if not t:
            continue
        d, rng = folder / stage, random.Random(f"{seed}-{t}")
        pairs = [
            {
                "schema_version": 1,
                "pair_id": f"p{i}",
                "video": f"v{i // 3:04d}.mp4",
                "question": rng.choice(ASKED).format(c=rng.choice(COLOURS), t=rng.choice(THINGS)),
                "kind": "spatial" if i % 2 else "temporal",
                "initial": "left",
                "critique": "red goes from x2 y3 to x6 y3 so right",
                "chosen": "right",
                "rejected": HOSTILE[i % 6] if hostile else "left",
                "meta": {},
            }
            for i in range(240)
        ]
        reasons = (
            ["revision equals the initial answer"] * 160
            + ["unreadable critique"] * 41
            + ["unreadable question"] * 17
            + ["<b>odd</b> reason"] * 2
        )
        _write_jsonl(d / "pairs.jsonl", pairs)
        _write_jsonl(d / "dropped.jsonl", [{"video": "v", "reason": r} for r in reasons])
        _write_jsonl(
            d / "train" / "log.jsonl",
            [
                {
                    "step": s,
                    "epoch": s / 40,
                    "loss": 0.69 * math.exp(-s / (50 + 10 * t)) + 0.04 * rng.random() + 0.08,
                    "learning_rate": 3e-4 * (1 - s / 120),
                    "grad_norm": 1 + rng.random(),
                    "rewards/accuracies": min(1.0, 0.5 + s / 200 + 0.06 * rng.random()),
                    "rewards/margins": s / 40 + 0.2 * rng.random(),
                }
                for s in range(1, 121, 2)
            ],
        )
        if gates:
            now = read_evaluations(d)
            against = {"previous": folder / (f"iter-{t - 1}" if t > 1 else "base"), "base": folder / "base"}
            results = {
                k: json.loads(gate_runs(now, read_evaluations(p), candidate_name=stage, reference_name=p.name).to_json())
                for k, p in against.items()
            }
            (d / "gate.json").write_text(json.dumps(results), encoding="utf-8")
    _write_jsonl(
        folder / "failures.jsonl",
        [
            {"what": f"video {i:04d}.mp4", "where": "propose", "why": f"0 decodable frames (truncated at {i} kB)", "stage": "propose"}
            for i in range(7)
        ]
        + [{"what": "reply 12", "where": "iter-1", "why": "no verdict in the critique", "stage": "critique"}],
    )
    (folder / "timings.json").write_text(
        json.dumps(
            {
                s: {"wall_s": w, "peak_memory_gb": 1.4}
                for s, w in (
                    ("base/evaluate", 61.2),
                    ("iter-1/propose", 48.0),
                    ("iter-1/train", 71.5),
                    ("iter-1/evaluate", 63.0),
                    ("iter-2/propose", 46.1),
                    ("iter-2/train", 69.8),
                )
            }
        ),
        encoding="utf-8",
    )
    hf_home = folder / "hf_home"
    run = {
        "name": folder.name,
        "scale": scale,
        "hf_home": "hf_home",
        "git": {"commit": "3f2a9c1e", "dirty": False},
        "seed": seed,
        "machine": {"cpu": "2 cores", "gpu": None},
        "versions": {"python": "3.11", "torch": "2.13.0", "transformers": "5.23.0", "lmms_eval": "0.7.3"},
        "settings": {
            "iterations": {"value": iterations, "source": "paper"},
            "num_frames": {"value": 8, "source": "ours"},
            "dpo.beta": {"value": 0.1, "source": "related work: DPO"},
            "generation.temperature": {"value": 0.0, "source": "release"},
        },
    }
    (folder / "run.json").write_text(json.dumps(run, indent=1), encoding="utf-8")
    if videos:
        write_videos(hf_home, list(sizes))
    return folder


def spoil(evaluation: Evaluation, **changes: object) -> Evaluation:
    """The evaluation with its first record changed."""
    return Evaluation(evaluation.score, [replace(evaluation.records[0], **changes), *evaluation.records[1:]])  # type: ignore[type-var]
