"""What a gate is asked: level, margins, benchmarks, limits, approved exceptions."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import get_args

from benchmarks.catalog import CATALOG
from harness.gate.decision import ALL, GateUsageError
from harness.gate.exceptions import ApprovedException
from harness.gate.multiplicity import HOLM, Multiplicity
from harness.gate.policy import Inconclusive, Require
from harness.integrity import StatusLimits


@dataclass(frozen=True)
class GateSettings:
    """What is asked. `margin` (points) overrides every benchmark's frozen margin; `run` is the candidate's name, for exceptions."""

    alpha: float = 0.05
    margin: float | None = None
    benchmarks: tuple[str, ...] | None = None
    power: float = 0.8
    require: Require = "mean"
    """Whose pass is required: the mean's, each benchmark's, or both. A fail of any benchmark fails the whole in any case."""
    require_improvement: bool = False
    inconclusive: Inconclusive = "fail"
    multiplicity: Multiplicity = HOLM
    limits: StatusLimits = field(default_factory=StatusLimits)
    exceptions: tuple[ApprovedException, ...] = ()
    run: str = ""
    today: dt.date | None = None

    @property
    def day(self) -> dt.date:
        """The day on which exceptions must not have expired."""
        return self.today or dt.date.today()

    def check(self) -> None:
        """Raises: GateUsageError: a value is out of range."""
        if not 0 < self.alpha < 0.5:
            raise GateUsageError(f"alpha must lie between 0 and 0.5, got {self.alpha}")
        if self.margin is not None and not 0 < self.margin < 50:
            raise GateUsageError(f"margin must be between 0 and 50 points, got {self.margin}")
        if not 0.5 <= self.power < 1:
            raise GateUsageError(f"power must be at least 0.5 and below 1, got {self.power}")
        for name, value, known in (("require", self.require, Require), ("inconclusive", self.inconclusive, Inconclusive)):
            if value not in get_args(known):
                raise GateUsageError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")

    def is_required(self, question: str, benchmark: str, *, mean: bool) -> bool:
        """Whether a decision must pass; `mean`: there is one on the mean over benchmarks. Published numbers are compared one by one."""
        if question in ("published_score", "published_gain"):
            return True
        if question == "format" or (question == "improved" and not self.require_improvement):
            return False
        return self.require in (("mean", "both") if benchmark == ALL else ("each", "both")) or not mean

    def has_veto(self, question: str) -> bool:
        """Whether a fail of any benchmark fails the whole, even where a pass is not required."""
        return question in ("no_regression", "format")

    def margin_of(self, benchmark: str) -> float:
        """The margin in points. Raises: GateUsageError: none given and the benchmark is not in the catalog."""
        if self.margin is not None:
            return self.margin
        if benchmark not in CATALOG:
            raise GateUsageError(f"benchmark {benchmark!r} is not in the catalog, so it has no frozen margin: give --margin")
        return CATALOG[benchmark].margin.points
