"""The study's estimator: the mean of a difference over base models and questions, with an interval that contains the error of both.

Every base answers the same questions, so bases and questions are crossed random effects; questions on one video belong together, so the
video is what is drawn. A base's loop seeds are its own (no two bases share one), so what differs between bases holds their seeds' error
too. The variances are those of a two-way random effects analysis, by moments, which in balanced data are a mixed model's REML estimates;
the interval is a t interval with Satterthwaite's degrees of freedom instead of the normal one. `reproduce.study.coverage` shows why.
Knows arrays alone, in fractions; results are in points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.stats import Design, Floats, cluster_mean, t_quantile

LEVEL = 0.95
ESTIMATOR = "two-way random effects (bases x videos), variances by moments, t with Satterthwaite's degrees of freedom"


@dataclass(frozen=True)
class Parts:
    """Squared standard errors of the mean of each of many data sets [...], in fractions: what varies between bases (`base`), between videos
    (`video`), and the part that both contain (`both`); `df` [...] of their sum."""

    mean: Any
    base: Any
    video: Any
    both: Any
    video_df: float
    bases: int

    @property
    def variance(self) -> Any:
        """Of the mean. The common part counts once; chance may make it look larger than either, which is no reason for a smaller error."""
        return np.maximum(np.maximum(self.base + self.video - self.both, self.base), self.video)

    @property
    def df(self) -> Any:
        """Satterthwaite 1946; never fewer than the part with the fewest has."""
        b, v = max(self.bases - 1, 1), self.video_df
        under = self.base**2 / b + self.video**2 / v + self.both**2 / (b * v)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.maximum(np.where(under > 0, self.variance**2 / under, v), min(b, v))


def parts(differences: Floats, design: Design) -> Parts:
    """Where the error of a mean comes from. `differences` [..., B, Q]: of each base (mean over its seeds) on each question.

    With one base there is nothing between bases, and the error is that of its questions alone.
    """
    found = cluster_mean(differences, design)
    base_means, influence = np.atleast_1d(np.asarray(found.estimate)), found.influence
    bases, videos = differences.shape[-2], design.videos
    factor = videos / (videos - 1)
    shared = influence.mean(axis=-2)
    video = factor * (shared**2).sum(axis=-1)
    zero = np.zeros_like(video)
    base = base_means.var(axis=-1, ddof=1) / bases if bases > 1 else zero
    both = factor * ((influence - shared[..., None, :]) ** 2).sum(axis=(-2, -1)) / (bases * (bases - 1)) if bases > 1 else zero
    squares = design.cluster_weight**2
    video_df = max(1.0, min(videos - 1.0, float(squares.sum() ** 2 / (squares**2).sum()) - 1.0))
    return Parts(base_means.mean(axis=-1), base, video, both, video_df, bases)


@dataclass(frozen=True)
class Estimate:
    """A mean difference in points with its interval (`LEVEL`), and how it comes about.

    `base_sd`: how much bases differ beyond their questions' error (0 where no more than that; None: one base). `base_se`, `question_se`:
    the two parts of the standard error. `each`: the difference of each base.
    """

    points: float
    low: float
    high: float
    df: float
    bases: int
    base_sd: float | None
    base_se: float
    question_se: float
    each: tuple[float, ...]

    @property
    def half(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2

    def text(self) -> str:
        """As in a table: +2.1 [+0.4, +3.8]."""
        return f"{self.points:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def estimate(differences: Floats, design: Design, level: float = LEVEL) -> Estimate:
    """The mean of `differences` [B, Q] (fractions, -1 to 1) over bases and questions."""
    p = parts(differences, design)
    variance, df = float(p.variance), float(p.df)
    half = t_quantile((1 + level) / 2, df) * math.sqrt(variance) if variance > 0 else 0.0
    each = np.atleast_1d(np.asarray(cluster_mean(differences, design).estimate))
    return Estimate(
        points=100 * float(p.mean),
        low=100 * (float(p.mean) - half),
        high=100 * (float(p.mean) + half),
        df=df,
        bases=p.bases,
        base_sd=None if p.bases < 2 else 100 * math.sqrt(max(0.0, float(p.base - p.both)) * p.bases),
        base_se=100 * math.sqrt(max(0.0, float(p.base))),
        question_se=100 * math.sqrt(max(0.0, float(p.video))),
        each=tuple(100 * float(x) for x in each),
    )
