"""The audit's arithmetic on its own: GRIM, an unpaired z; what discordance a paired test bears. Pure functions of a few numbers.

GRIM: Brown and Heathers 2017. Paired bound: McNemar 1947.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from statistics import NormalDist


@dataclass(frozen=True)
class Grim:
    """Whether an accuracy can come from n questions: by rounding (either rule for halves) or by cutting digits off."""

    rounded: bool
    truncated: bool
    below: float
    above: float
    """The nearest accuracies that n questions do allow, in percent."""


def grim(value: Decimal, n: int, decimals: int) -> Grim:
    """Check `value` percent, shown with `decimals` decimals, against n questions (each right or wrong)."""
    v, unit = Fraction(value), Fraction(1, 10**decimals)
    low, high = v - unit / 2, v + unit / 2
    rounded = math.ceil(low * n / 100) <= math.floor(high * n / 100)
    k = math.ceil(v * n / 100)
    truncated = Fraction(100 * k, n) < v + unit
    under = math.floor(v * n / 100)
    return Grim(rounded, truncated, float(Fraction(100 * under, n)), float(Fraction(100 * (under + 1), n)))


UNANSWERED = 5
"""How many questions a run may have left unanswered and uncounted before its number is called impossible (ours)."""


def fitting_share(grids: Sequence[int], decimals: int) -> float:
    """Share (0-1) of all percentages with `decimals` decimals that are, rounded, a multiple of 1 / grid for one of the grids."""
    values = [Decimal(k).scaleb(-decimals) for k in range(100 * 10**decimals + 1)]
    return sum(any(grim(v, grid, decimals).rounded for grid in grids) for v in values) / len(values)


def unpaired_z(candidate_pct: float, base_pct: float, n: int) -> float:
    """z of a difference of two accuracies on n questions each, taken as independent (variances not pooled)."""
    p, q = candidate_pct / 100, base_pct / 100
    variance = (p * (1 - p) + q * (1 - q)) / n
    return (p - q) / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, p - q) if p != q else 0.0


def p_below(z: float) -> float:
    """One-sided p-value against "not below": small where z is far under 0."""
    return math.erfc(-z / math.sqrt(2)) / 2


def two_sided(z: float) -> float:
    """Two-sided p-value of a standard normal z."""
    return math.erfc(abs(z) / math.sqrt(2))


def z_crit(alpha: float) -> float:
    """z beyond which a two-sided test at `alpha` is significant."""
    return NormalDist().inv_cdf(1 - alpha / 2)


def max_discordant(gain_points: float, n: int, alpha: float) -> float:
    """Largest discordant share (0-1) with a significant McNemar test: with b + c = D n and b - c = d n, z = d n / sqrt(D n)."""
    return n * (gain_points / 100) ** 2 / z_crit(alpha) ** 2


def max_discordant_exact(gain_points: float, n: int, alpha: float) -> float | None:
    """The same for the exact test: the most discordant questions m, with b - c = round(d n), whose two-sided binomial p is at most alpha.

    None where not even the fewest possible (all of them in one direction) reach alpha. O(n) in the number of questions.
    """
    import numpy as np
    from scipy import stats

    net = round(abs(gain_points) * n / 100)
    if net == 0:
        return None
    m = np.arange(net, n + 1, 2)
    p = np.minimum(1.0, 2 * stats.binom.cdf((m - net) // 2, m, 0.5))
    good = m[p <= alpha]
    return float(good.max()) / n if good.size else None
