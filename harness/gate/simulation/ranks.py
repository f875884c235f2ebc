"""Sixteen models on one leaderboard: how often a worse (or equal) model is called better, and how many differences are seen.

Runs the leaderboard's own comparison on made-up answers. Models find the same questions hard, as real ones do, and each has videos that
suit it or not (`rho`), so that answers on a video change together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats as sps

from harness import stats
from harness.gate.simulation.shapes import of_sizes
from harness.gate.simulation.simulate import Floats, Rate, SimulationPlan
from harness.tables.leaderboard.ranking import differences, ranks

MODELS = 16
ALIKE = 0.7
"""Correlation between two models' success on a question (of the underlying normal variables): at 70 % right, 22 % of their answers
differ."""

TRUTHS: dict[str, tuple[float, ...]] = {
    "16 equal models": (0.7,) * MODELS,
    "16 models in four equal groups, 2 points apart": tuple(0.7 - 0.02 * (i // 4) for i in range(MODELS)),
    "16 models one point apart": tuple(0.7 - 0.01 * i for i in range(MODELS)),
}


def answers(accuracies: Sequence[float], design: stats.Design, rho: float, rng: np.random.Generator) -> Floats:
    """Credits [models, Q] (0 or 1) with the given accuracies in expectation."""
    n = len(accuracies)
    own = math.sqrt(rho) * rng.standard_normal((n, design.videos))[:, design.clusters]
    noise = math.sqrt(1 - ALIKE - rho) * rng.standard_normal((n, design.n))
    z = math.sqrt(ALIKE) * rng.standard_normal(design.n) + own + noise
    return (z < sps.norm.ppf(np.asarray(accuracies))[:, None]).astype(np.float64)


def simulate_ranks(plan: SimulationPlan, truth: str) -> list[Rate]:
    """False orderings of one `TRUTHS`, on 4,000 questions of 500 videos."""
    design, accuracies = of_sizes([8] * 500), TRUTHS[truth]
    rng = plan.rng(40, list(TRUTHS).index(truth))
    false = told = 0
    for _ in range(plan.sims):
        credits = dict(enumerate(answers(accuracies, design, plan.rho, rng)))
        found = ranks(range(MODELS), {pair: [x] for pair, x in differences(credits, design).items()}, plan.alpha)
        false += any(not low <= true <= high for i, (low, high) in found.items() for true in _true_ranks(accuracies, i))
        told += sum(low - 1 for low, _ in found.values())
    pairs = MODELS * (MODELS - 1) // 2
    detail = f"{100 * told / plan.sims / pairs:.0f} % of the {pairs} pairs told apart"
    return [Rate("a model's true rank is not in its interval (any of 16)", truth, false / plan.sims, plan.sims, plan.alpha, detail=detail)]


def _true_ranks(accuracies: Sequence[float], model: int) -> tuple[int, int]:
    """First and last of the ranks that equal models share: an interval that holds both orders none of them wrongly."""
    mine = accuracies[model]
    return 1 + sum(a > mine for a in accuracies), sum(a >= mine for a in accuracies)
