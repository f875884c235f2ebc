"""What all evidence shares: credits in a fixed order, the design of an evaluation, and a tested mean as evidence's figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from harness import stats
from harness.gate.settings import GateSettings
from harness.records import Evaluation, QuestionRecord


def values(evaluation: Evaluation, of: Callable[[QuestionRecord], float], order: Sequence[str]) -> stats.Floats:
    """`of` each record [n], in the order of the given question ids."""
    by_id = {r.question_id: of(r) for r in evaluation.records}
    return np.array([by_id[q] for q in order], dtype=np.float64)


def ids(evaluation: Evaluation) -> list[str]:
    """Question ids in the order of the records."""
    return [r.question_id for r in evaluation.records]


def credits(evaluation: Evaluation, kind: Literal["strict", "upstream"], order: Sequence[str] | None = None) -> stats.Floats:
    """Credits [n] of the records (fractions), in the order of the given question ids (default: the records')."""
    return values(evaluation, lambda r: getattr(r, kind), ids(evaluation) if order is None else order)


def design_of(evaluation: Evaluation) -> stats.Design:
    """Videos and tasks of an evaluation's questions, in the order of its records."""
    return stats.design([r.video_id for r in evaluation.records], [r.task for r in evaluation.records])


def spread(estimate: float, se: float, df: float, n: int, margin: float, settings: GateSettings, *, beyond: float = 0.0) -> dict[str, Any]:
    """Estimate, bounds, MDE, n needed and power to rule out the margin (points), bounds cut at what a difference of percentages can be.

    `beyond`: what the test asks more than the t test does (`stats.beyond_t`)."""
    half = stats.t_quantile(1 - settings.alpha, df) * se
    mde = stats.mde(se, df, settings.alpha, settings.power) + beyond
    return {
        "estimate": estimate,
        "low": max(-100.0, estimate - half),
        "high": min(100.0, estimate + half),
        "mde": mde if math.isfinite(mde) else None,
        "n_needed": stats.n_needed(n, mde, margin) if se > 0 else None,
        "power": stats.t_power(margin - beyond, se, df, settings.alpha),
    }
