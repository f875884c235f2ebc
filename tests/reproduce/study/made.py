"""Records of studies that never ran: answers drawn with known gains. Their scale says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from reproduce.study.records import Asked, Questions, Record, pack
from savi.base.digests import sha256_json

SCALE = "made up for a test"
QUESTIONS = Questions(
    benchmarks={
        "egoschema": Asked(tasks=[("egoschema_subset", 120)], videos=" ".join(str(i) for i in range(120)), ids=sha256_json("e")),
        "nextqa": Asked(tasks=[("nextqa_mc_test", 120)], videos=" ".join(str(i // 2) for i in range(120)), ids=sha256_json("n")),
    }
)


def made_records(
    gains: Mapping[str, Sequence[float]], bases: int, *, seeds: int = 1, base_sd: float = 2.0, frozen: str = ""
) -> list[Record]:
    """For each variant the points gained at each iteration over the base, for `bases` bases that differ by `base_sd` points."""
    out = []
    for b in range(1, bases + 1):
        rng = np.random.default_rng(b)
        first = (rng.random(QUESTIONS.n) < 0.5).astype(float)
        own = float(rng.normal(0, base_sd))
        for name, steps in gains.items():
            for k in range(seeds):
                stages = [pack(first), *(pack(_after(first, step + own, [b, k, i])) for i, step in enumerate(steps, start=1))]
                pairs = [_quality(30.0 + 2 * own, i) for i in range(len(steps))]
                record = Record(
                    scale=SCALE, base=f"recipe-{b}", base_fingerprint=f"base {b}", seed=100 * b + k, variant=name,
                    settings=sha256_json(name), frozen=frozen, questions=QUESTIONS.digest, stages=stages, pairs=pairs,
                    wall_s=60.0, versions={"python": "3"},
                )  # fmt: skip
                out.append(record)
    return out


def _after(first: np.ndarray, points: float, seed: Sequence[int]) -> np.ndarray:
    """The base's answers with a tenth of them changed, and so many points more of them right."""
    chance, net = np.random.default_rng(seed).random(len(first)), points / 100
    return np.where(first == 1, chance >= 0.1 + 2 * max(-net, 0), chance < 0.1 + 2 * max(net, 0)).astype(float)


def _quality(gap: float, iteration: int) -> dict[str, float | int | None]:
    right = {"initial_pct": 50.0, "revised_pct": 50.0 + gap - iteration, "precision_pct": 90.0 - iteration}
    return {"asked": 200, "valid_pct": 80.0, "pairs": 90, **right}
