"""Base against last, question by question: the change with its interval, what got better, what got worse.

The interval is the paired difference with a standard error clustered by video (CR1), Student's t with clusters - 1 degrees of freedom.
The gate decides; this only describes, so that a report can be read where no gate was run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness import stats
from harness.records import Evaluation, index_records

Credit = Literal["strict", "upstream"]
UPPER = 0.975
"""Upper end of a two-sided 95 % interval."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval, points or percent (0-100)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class StageChange:
    """The paired change of one benchmark between two stages, points. Counts are questions asked in both."""

    benchmark: str
    interval: Interval
    variance: float
    df: float
    n: int
    videos: int
    better: int
    worse: int
    both_right: int
    both_wrong: int
    unmatched: int
    """Questions of only one of the two stages; they are left out of everything above."""


def score_interval(evaluation: Evaluation, credit: Credit = "strict") -> Interval:
    """The score with its 95 % interval, cut to 0-100. The strict score states its error; the upstream one's comes from its records."""
    s = evaluation.score
    value, se, df = s.strict_pct, s.se_pct, s.videos - 1
    if credit == "upstream":
        value = s.upstream_pct
        if evaluation.records:
            mean = stats.cluster_mean(
                np.array([r.upstream for r in evaluation.records]),
                stats.design([r.video_id for r in evaluation.records], [r.task for r in evaluation.records]),
            )
            se, df = 100 * float(mean.se), mean.df
    h = stats.t_quantile(UPPER, max(df, 1)) * se
    return Interval(value, max(0.0, value - h), min(100.0, value + h))


def mean_score(evaluations: Mapping[str, Evaluation], names: Sequence[str]) -> Interval:
    """The unweighted mean of several benchmarks; they are independent, so variances add."""
    k = len(names)
    value = sum(evaluations[b].score.strict_pct for b in names) / k
    h = stats.t_quantile(UPPER, math.inf) * math.sqrt(sum(evaluations[b].score.se_pct ** 2 for b in names)) / k
    return Interval(value, max(0.0, value - h), min(100.0, value + h))


def compare(first: Evaluation, last: Evaluation, credit: Credit = "strict") -> StageChange:
    """The paired change of the score; tasks of a benchmark weigh equally, as in its score.

    An upstream change is the difference of the two stated scores (on MVBench lmms-eval leaves empty answers out), its error the records'.
    """
    a, b = index_records(first.records), index_records(last.records)
    both = [(a[k], b[k]) for k in a if k in b]
    name, unmatched = last.score.benchmark, len(a) + len(b) - 2 * len(both)
    if not both:
        return StageChange(name, Interval(0.0, -100.0, 100.0), math.inf, 1.0, 0, 0, 0, 0, 0, 0, unmatched)
    d = stats.design([x.video_id for x, _ in both], [x.task for x, _ in both])
    diffs = np.array([getattr(y, credit) - getattr(x, credit) for x, y in both])
    mean = stats.cluster_mean(diffs, d)
    better, worse = int((diffs > 0).sum()), int((diffs < 0).sum())
    right = sum(getattr(x, credit) == getattr(y, credit) >= 0.5 for x, y in both)
    e, se = 100 * float(mean.estimate), 100 * float(mean.se)
    if credit == "upstream":
        e = last.score.upstream_pct - first.score.upstream_pct
    h = stats.t_quantile(UPPER, mean.df) * se if mean.df > 0 else math.inf
    return StageChange(
        name,
        Interval(e, max(-100.0, e - h), min(100.0, e + h)),
        se**2,
        float(max(mean.df, 1)),
        len(both),
        d.videos,
        better,
        worse,
        right,
        len(both) - better - worse - right,
        unmatched,
    )


def compare_all(
    first: Mapping[str, Evaluation], last: Mapping[str, Evaluation], names: Sequence[str], credit: Credit = "strict"
) -> dict[str, StageChange]:
    """`compare` for every benchmark that both stages measured and share at least one question of."""
    out = {b: compare(first[b], last[b], credit) for b in names if b in first and b in last}
    return {b: c for b, c in out.items() if c.n}


def mean_change(changes: Sequence[StageChange]) -> Interval:
    """The unweighted mean of the benchmarks' changes; degrees of freedom after Welch and Satterthwaite."""
    k = len(changes)
    value = sum(c.interval.value for c in changes) / k
    total = sum(c.variance for c in changes)
    if not math.isfinite(total):
        return Interval(value, -100.0, 100.0)
    spread = sum(c.variance**2 / c.df for c in changes)
    h = stats.t_quantile(UPPER, total**2 / spread if spread > 0 else math.inf) * math.sqrt(total) / k
    return Interval(value, max(-100.0, value - h), min(100.0, value + h))
