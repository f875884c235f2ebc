"""Rules that adjust p values for several benchmarks asked the same question. A new rule is one object in this file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from harness.stats import Floats, holm


@dataclass(frozen=True)
class Multiplicity:
    """A rule: its name, what it guarantees, and the adjustment along the last axis ([..., m], order kept)."""

    name: str
    guarantees: str
    adjust: Callable[[Sequence[float] | Floats], Floats]


def _bonferroni(p: Sequence[float] | Floats) -> Floats:
    a = np.asarray(p, dtype=np.float64)
    return np.minimum(a * a.shape[-1], 1.0) if a.size else a


def _unadjusted(p: Sequence[float] | Floats) -> Floats:
    return np.asarray(p, dtype=np.float64)


HOLM = Multiplicity("holm", "a false verdict in any benchmark at most alpha of the time (Holm 1979)", holm)
BONFERRONI = Multiplicity("bonferroni", "as Holm, with less power", _bonferroni)
UNADJUSTED = Multiplicity("none", "alpha for each benchmark alone", _unadjusted)

RULES: dict[str, Multiplicity] = {r.name: r for r in (HOLM, BONFERRONI, UNADJUSTED)}
