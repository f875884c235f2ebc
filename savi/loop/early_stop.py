"""When to stop the loop by what the model itself shows, without any label.

While it learns, its critiques change ever fewer of its answers. Where they change more of them again, it has become a worse critic or gives
worse answers, and more training would follow it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from savi.loop.journal import AlignCounts

Z = 1.645
"""The one-sided 5 % point of the normal distribution."""


def stopped_at(counts: Sequence[AlignCounts]) -> int | None:
    """The first iteration (from 1) whose critiques changed a significantly larger share of the answers than those of an earlier one, by a
    one-sided two-proportion z test at 5 %; None where there is none. `counts`: of each iteration's pairs, in order."""
    seen = [(one.pairs - one.equal, one.pairs + one.dropped.get("unchanged", 0)) for one in counts]
    for t in range(1, len(seen)):
        if any(_rises(before, seen[t]) for before in seen[:t]):
            return t + 1
    return None


def _rises(before: tuple[int, int], now: tuple[int, int]) -> bool:
    (a, n), (b, m) = before, now
    if not n or not m:
        return False
    share = (a + b) / (n + m)
    error = math.sqrt(share * (1 - share) * (1 / n + 1 / m))
    return error > 0 and (b / m - a / n) / error > Z
