"""What effect a paired comparison can show, and how many questions an effect takes: the planning side of the gate, from discordance alone.

A paired difference of questions in {-1, 0, 1} with discordance p has variance p - effect^2; m questions on a video with intra-video
correlation multiply it by 1 + (m - 1) icc. The one-sided t test over videos is `stats.t_power`'s, the one the gate uses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.catalog import Benchmark
from harness import stats
from harness.gate.decision import GateUsageError


@dataclass(frozen=True)
class PowerRow:
    """Planning figures of one benchmark (points, percent)."""

    benchmark: str
    n: int
    videos: int
    discordance: float
    margin: float
    mde: float
    """Smallest paired effect seen one-sided with the asked power."""
    mde_unpaired: float
    """The same if the two runs' scores were compared without pairing (70 % right)."""
    power_at_margin: float
    """Power to rule out a loss of the margin when nothing changed on the whole."""
    n_needed: int
    """Questions that see `effect` (or the margin, where none is asked about) with the asked power."""


def paired_se(n: int, discordance: float, per_video: float, icc: float, effect: float = 0.0) -> float:
    """Standard error of a paired difference (fraction), `discordance` as a fraction.

    Raises:
        GateUsageError: an effect larger than the discordance.
    """
    if abs(effect) > discordance:
        raise GateUsageError(
            f"an effect of {100 * effect:g} points needs at least {100 * abs(effect):g} % discordant answers, got {100 * discordance:g}"
        )
    return math.sqrt((discordance - effect * effect) * (1 + (per_video - 1) * icc) / n)


def _mde(n: int, discordance: float, per_video: float, icc: float, alpha: float, power: float) -> float:
    return stats.mde(paired_se(n, discordance, per_video, icc), max(1, round(n / per_video) - 1), alpha, power)


def needed(effect: float, discordance: float, per_video: float, icc: float, alpha: float, power: float) -> int:
    """Fewest questions whose MDE is at most `effect` (fractions), by doubling and halving."""
    high = 4
    while _mde(high, discordance, per_video, icc, alpha, power) > effect:
        high *= 2
        if high > 10**12:
            raise GateUsageError(f"an effect of {100 * effect:g} points is too small to plan for")
    low = high // 2
    while high - low > 1:
        mid = (low + high) // 2
        if _mde(mid, discordance, per_video, icc, alpha, power) > effect:
            low = mid
        else:
            high = mid
    return high


def power_table(
    benchmarks: Sequence[Benchmark],
    *,
    effect: float | None = None,
    n: int | None = None,
    discordance: float = 12.0,
    per_video: float | None = None,
    icc: float = 0.05,
    alpha: float = 0.05,
    power: float = 0.8,
) -> list[PowerRow]:
    """One row a benchmark. `effect` in points, `discordance` in percent.

    Raises:
        GateUsageError: a value out of range.
    """
    if not 0 < alpha < 0.5:
        raise GateUsageError(f"alpha must lie between 0 and 0.5, got {alpha}")
    if effect is not None and not 0 < effect <= 100:
        raise GateUsageError(f"effect must be above 0 and at most 100 points, got {effect}")
    p = discordance / 100
    rows = []
    for b in benchmarks:
        m = per_video if per_video is not None else b.n / b.videos
        k = n or b.n
        margin = b.margin.points
        se = paired_se(k, p, m, icc)
        df = max(1, round(k / m) - 1)
        unpaired = math.sqrt(2 * 0.7 * 0.3 * (1 + (m - 1) * icc) / k)
        rows.append(
            PowerRow(
                benchmark=b.name,
                n=k,
                videos=round(k / m),
                discordance=discordance,
                margin=margin,
                mde=100 * stats.mde(se, df, alpha, power),
                mde_unpaired=100 * stats.mde(unpaired, df, alpha, power),
                power_at_margin=stats.t_power(margin / 100, se, df, alpha),
                n_needed=needed((effect if effect is not None else margin) / 100, p, m, icc, alpha, power),
            )
        )
    return rows


def text(rows: Sequence[PowerRow]) -> str:
    """The rows as an aligned table."""
    head = ("benchmark", "n", "videos", "margin", "MDE paired", "MDE unpaired", "power at margin", "n needed")
    body = [
        (
            r.benchmark,
            f"{r.n:,}",
            f"{r.videos:,}",
            f"{r.margin:g}",
            f"{r.mde:.2f}",
            f"{r.mde_unpaired:.2f}",
            f"{r.power_at_margin:.2f}",
            f"{r.n_needed:,}",
        )
        for r in rows
    ]
    widths = [max(len(x[i]) for x in (head, *body)) for i in range(len(head))]
    lines = ["  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(x, widths, strict=True))) for x in (head, *body)]
    return "\n".join(lines)
