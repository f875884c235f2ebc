"""The statistics the gate stands on: clustered means, non-inferiority, sign flips, McNemar, Wilson, Holm, power.

Plain functions over numpy arrays in fractions (a credit is 0-1, a difference -1 to 1); nothing here knows records, files or
percentages. Everything that simulations repeat thousands of times takes leading axes, so that the simulated gate and the real one run
the same lines. What scipy.stats offers is called, not rewritten.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats as sps
from scipy.optimize import brentq

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Design:
    """How questions hang together: their weight in the score, their video, their task.

    A score is the unweighted mean of its tasks' means, so a question weighs 1 / (tasks x questions in its task). `weights` [Q] sum to 1,
    `clusters` [Q] number the videos 0..G-1, `tasks` [Q] number the tasks 0..K-1; `task_weight` [G, K] is the weight a video has in a task.
    """

    weights: Floats
    clusters: Ints
    tasks: Ints
    task_weight: Floats

    @property
    def n(self) -> int:
        """Questions."""
        return len(self.weights)

    @property
    def videos(self) -> int:
        """Clusters."""
        return len(self.task_weight)

    @property
    def cluster_weight(self) -> Floats:
        """Weight of each video in the score [G]; sums to 1."""
        return np.asarray(self.task_weight.sum(axis=1))

    @property
    def leverage(self) -> Floats:
        """Share of its tasks that each video holds [G], by weight; 1 where a task has no other video."""
        return np.asarray((self.task_weight**2 / self.task_weight.sum(axis=0)).sum(axis=1) / self.cluster_weight)

    def totals(self, values: Floats) -> Floats:
        """Weighted sum of `values` [..., Q] in each video [..., G]."""
        if values.ndim == 1:
            return np.asarray(np.bincount(self.clusters, weights=self.weights * values, minlength=self.videos), dtype=np.float64)
        flat = (values * self.weights).reshape(-1, self.n)
        order, starts = self._sorted()
        return np.asarray(np.add.reduceat(flat[:, order], starts, axis=1)).reshape(*values.shape[:-1], self.videos)

    def task_means(self, values: Floats) -> Floats:
        """Mean of `values` [..., Q] in each task [..., K]."""
        one_hot = np.zeros((self.n, self.task_weight.shape[1]))
        one_hot[np.arange(self.n), self.tasks] = 1.0
        return np.asarray((values @ one_hot) / one_hot.sum(axis=0))

    def _sorted(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        order = np.argsort(self.clusters, kind="stable")
        counts = np.bincount(self.clusters, minlength=self.videos)
        return order, np.concatenate([[0], np.cumsum(counts)[:-1]])


def design(clusters: Sequence[str] | Ints, tasks: Sequence[str] | Ints) -> Design:
    """Build a `Design` from each question's video and task.

    Raises:
        ValueError: no questions, or the two differ in length.
    """
    if len(clusters) == 0 or len(clusters) != len(tasks):
        raise ValueError(f"a design needs as many videos as tasks and at least one question, got {len(clusters)} and {len(tasks)}")
    _, c = np.unique(np.asarray(clusters), return_inverse=True)
    _, t = np.unique(np.asarray(tasks), return_inverse=True)
    k = int(t.max()) + 1
    w = 1.0 / (k * np.bincount(t, minlength=k)[t])
    tw = np.zeros((int(c.max()) + 1, k))
    np.add.at(tw, (c, t), w)
    return Design(w, c.astype(np.int64), t.astype(np.int64), tw)


def combined(designs: Sequence[Design]) -> Design:
    """Several benchmarks as one design: the unweighted mean of their scores, no video in common."""
    k = len(designs)
    videos, tasks = (np.cumsum([0, *sizes]) for sizes in ([d.videos for d in designs], [d.task_weight.shape[1] for d in designs]))
    weight = np.zeros((videos[-1], tasks[-1]))
    for i, d in enumerate(designs):
        weight[videos[i] : videos[i + 1], tasks[i] : tasks[i + 1]] = d.task_weight / k
    return Design(
        np.concatenate([d.weights for d in designs]) / k,
        np.concatenate([d.clusters + videos[i] for i, d in enumerate(designs)]),
        np.concatenate([d.tasks + tasks[i] for i, d in enumerate(designs)]),
        weight,
    )


@dataclass(frozen=True)
class ClusterMean:
    """A weighted mean and its standard error clustered by video (fractions); arrays where `values` had leading axes."""

    estimate: Any
    se: Any
    df: int
    totals: Floats
    """Weighted sum of the values in each video [..., G]."""
    influence: Floats
    """Weighted sum of each video's deviations from its tasks' means [..., G]; sums to 0."""
    weights: Floats
    """Weight of each video [G]; sums to 1."""
    leverage: Floats
    """`Design.leverage` of each video [G]."""


def cluster_mean(values: Floats, design: Design) -> ClusterMean:
    """Mean of tasks' means with a cluster-robust standard error (CR1: G/(G-1); G-1 degrees of freedom).

    `values` [..., Q]. Linearised: a video's influence is the weighted sum of its questions' deviations from their task's mean. With one
    task this equals OLS on a constant with clustered covariance; with one question a video, the usual s/sqrt(n).
    """
    v = np.asarray(values, dtype=np.float64)
    totals = design.totals(v)
    means = design.task_means(v)
    influence = totals - means @ design.task_weight.T
    g = design.videos
    factor = g / (g - 1) if g > 1 else math.inf
    with np.errstate(invalid="ignore"):
        se = np.sqrt(factor * (influence**2).sum(axis=-1)) if g > 1 else np.full(v.shape[:-1], np.inf)
    est = totals.sum(axis=-1)
    scalar = v.ndim == 1
    return ClusterMean(
        float(est) if scalar else est, float(se) if scalar else se, g - 1, totals, influence, design.cluster_weight, design.leverage
    )


def pool(means: Sequence[ClusterMean]) -> ClusterMean:
    """The unweighted mean of several means (benchmarks). Their errors are added as independent: a video is a draw of its benchmark."""
    k = len(means)
    return ClusterMean(
        sum(m.estimate for m in means) / k,
        np.sqrt(sum(np.asarray(m.se) ** 2 for m in means))[()] / k,
        sum(m.df for m in means),
        np.concatenate([m.totals for m in means], axis=-1) / k,
        np.concatenate([m.influence for m in means], axis=-1) / k,
        np.concatenate([m.weights for m in means]) / k,
        np.concatenate([m.leverage for m in means]),
    )


def null_se(weights: Floats, loss: float) -> float:
    """Least standard error of a paired difference whose mean is -`loss`: whole videos break, the worst case, the larger ones more often.

    The score-test idea (Tango 1998; Yang et al. 2012 for clusters): without it a few changed videos give a tiny estimated error and a too
    easy pass. `weights` [G] sum to 1; a video breaks with a probability proportional to its weight.
    """
    return math.sqrt(loss * (1.0 - loss) * float((weights**3).sum() / (weights**2).sum()))


@dataclass(frozen=True)
class MeanTest:
    """Both one-sided tests of a mean against `null`, and the error they use; arrays where the mean has leading axes."""

    p_above: Any
    """p value of H0: mean <= null."""
    p_below: Any
    """p value of H0: mean >= null."""
    se: Any
    df: float
    floored: Any
    """Whether the error is the null's rather than the data's."""


def mean_test(mean: ClusterMean, null: float) -> MeanTest:
    """Test a mean against `null` (fractions); each p value is the larger of two tests'.

    The t test has the jackknife's standard error, never below `null_se`, and as many degrees of freedom as the weights leave (a video that
    holds half of the questions leaves about one). The second test allows for skewness: see `tilted_p`.
    """
    est, weights, influence = np.asarray(mean.estimate, dtype=np.float64), mean.weights, mean.influence
    g = len(weights)
    if g < 2:
        ones = np.ones_like(est)[()]
        return MeanTest(ones, ones, np.full_like(est, np.inf)[()], 0, np.zeros_like(est, dtype=bool)[()])
    squares = weights**2
    df = max(1.0, min(g - 1.0, float(squares.sum() ** 2 / (squares**2).sum()) - 1.0))
    jackknife = np.sqrt((g - 1) / g * ((influence / (1.0 - np.minimum(mean.leverage, 0.99))) ** 2).sum(axis=-1))
    floor = null_se(weights, abs(null)) if null else 0.0
    se = np.maximum(jackknife, floor)
    scores = influence + (est - null)[..., None] * weights
    above = np.maximum(t_upper(est, se, df, null), tilted_p(scores, df))
    below = np.maximum(t_lower(est, se, df, null), tilted_p(-scores, df))
    return MeanTest(above[()], below[()], se[()], df, (se > jackknife)[()])


def tilted_p(scores: Floats, df: float) -> Any:
    """One-sided p value of H0: the `scores` [..., G] have mean at most 0, allowing for their skewness.

    Nonparametric tilting (Efron 1981; DiCiccio and Romano 1990): the scores are reweighted exponentially until their mean is 0, so the
    null's own skewness counts (few whole videos that break), and the tail beyond the observed mean comes from the saddlepoint
    approximation (Lugannani and Rice 1980, in Barndorff-Nielsen's form), read on Student's t. Where no score is below 0 there is nothing to
    tilt: 0, and the t test beside it decides.
    """
    u = scores / np.maximum(np.sqrt((scores**2).sum(axis=-1, keepdims=True)), 1e-300)
    mean = u.mean(axis=-1)
    tilt = np.zeros(u.shape[:-1])
    for _ in range(30):
        e = tilt[..., None] * u
        w = np.exp(e - e.max(axis=-1, keepdims=True))
        w /= w.sum(axis=-1, keepdims=True)
        at = (w * u).sum(axis=-1)
        slope = np.maximum((w * u * u).sum(axis=-1) - at * at, 1e-300)
        bound = 3.0 + np.abs(tilt)
        tilt = tilt - np.clip(at / slope, -bound, bound)
        if np.all(np.abs(at) < 1e-12):
            break
    e = tilt[..., None] * u
    top = e.max(axis=-1)
    log_mean = top + np.log(np.exp(e - top[..., None]).mean(axis=-1))
    g = u.shape[-1]
    root = np.sign(mean) * np.sqrt(np.maximum(2.0 * g * (-tilt * mean + log_mean), 0.0))
    spread = -tilt * np.sqrt(np.maximum(g * ((u * u).mean(axis=-1) - mean**2), 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        corrected = np.where(np.abs(root) > 1e-4, root + np.log(spread / root) / root, root)
    p = sps.t.sf(np.where(np.isfinite(corrected), corrected, root), df)
    return np.where((u.min(axis=-1) < 0) & (u.max(axis=-1) > 0), p, np.where(mean > 0, 0.0, 1.0))


_BISECTIONS = 12


def beyond_t(mean: ClusterMean, se: Any, df: float, alpha: float) -> Any:
    """How much farther from the null than the t test's critical value an estimate must lie to be rejected by `mean_test` [...], which asks
    `tilted_p` too: at least 0, the larger of both sides, as skewed as the data are. What the smallest effect seen has to allow for.
    """
    critical = np.asarray(t_quantile(1 - alpha, df) * np.asarray(se, dtype=np.float64))
    if df < 1 or not np.all(np.isfinite(critical)) or len(mean.weights) < 2:
        return np.zeros_like(critical)[()]
    out = np.zeros_like(critical)
    for side in (1.0, -1.0):

        def rejected(at: Floats, side: float = side) -> NDArray[np.bool_]:
            return np.asarray(tilted_p(side * mean.influence + at[..., None] * mean.weights, df) <= alpha)

        near, far = critical, 4.0 * critical
        if np.all(enough := rejected(critical)):
            continue
        for _ in range(_BISECTIONS):
            middle = (near + far) / 2
            seen = rejected(middle)
            near, far = np.where(seen, near, middle), np.where(seen, middle, far)
        out = np.maximum(out, np.where(enough, 0.0, far - critical))
    return out[()]


def t_upper(estimate: Any, se: Any, df: float, null: float) -> Any:
    """One-sided p value of H0: mean <= `null` (one-sample t, `df` degrees of freedom)."""
    return _t_p(np.asarray(estimate) - null, se, df)


def t_lower(estimate: Any, se: Any, df: float, null: float) -> Any:
    """One-sided p value of H0: mean >= `null`."""
    return _t_p(null - np.asarray(estimate), se, df)


def _t_p(diff: Any, se: Any, df: float) -> Any:
    if df < 1:
        return np.ones_like(diff)[()]
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(
            np.asarray(se) > 0, diff / np.where(np.asarray(se) > 0, se, 1.0), np.where(diff > 0, np.inf, np.where(diff < 0, -np.inf, 0.0))
        )
    return sps.t.sf(t, df)[()]


@lru_cache(maxsize=4096)
def t_quantile(p: float, df: float) -> float:
    """Quantile of Student's t; infinite for no degrees of freedom."""
    return float(sps.t.ppf(p, df)) if df >= 1 else math.inf


EXACT_FLIPS = 16
"""Up to this many changed videos all their sign flips are enumerated."""


def sign_flip(totals: Floats, *, draws: int = 99_999, seed: int = 0) -> tuple[float, float]:
    """Cluster sign-flip permutation test: one-sided p values (mean > 0, mean < 0).

    `totals` [G]: the weighted difference of each video, whose sign is a coin toss when the two models are exchangeable. Exact where
    few videos changed, and where the totals are whole multiples of their smallest step (one task: counts); otherwise `draws` seeded flips,
    drawn as one binomial for each distinct size, with the observed arrangement counted among them (so that p is never 0).
    """
    changed = totals[np.abs(totals) > 1e-15]
    if len(changed) == 0:
        return 1.0, 1.0
    # In units of the smallest total, rounded once: the observed sum is made of the very numbers that are flipped.
    steps = np.round(changed / np.abs(changed).min(), 9)
    sizes, observed = np.abs(steps), float(steps.sum())
    whole = np.rint(sizes)
    if np.allclose(whole, sizes, rtol=1e-9, atol=0) and whole.sum() <= 50_000:
        return _sign_flip_exact(whole.astype(int), round(observed))
    if len(sizes) <= EXACT_FLIPS:
        sums = np.zeros(1)
        for size in sizes:
            sums = np.concatenate([sums - size, sums + size])
        return float((sums >= observed - 1e-6).mean()), float((sums <= observed + 1e-6).mean())
    rng = np.random.default_rng(seed)
    sums = np.zeros(draws)
    for v, c in zip(*np.unique(sizes, return_counts=True), strict=True):
        sums += v * (2.0 * rng.binomial(int(c), 0.5, size=draws) - c)
    return float((1 + (sums >= observed - 1e-6).sum()) / (draws + 1)), float((1 + (sums <= observed + 1e-6).sum()) / (draws + 1))


def _sign_flip_exact(sizes: NDArray[np.int_], observed: int) -> tuple[float, float]:
    # Number of pluses of each size is binomial; their sum's distribution is the convolution of the (stretched) binomials.
    dist = np.ones(1)
    for v, c in zip(*np.unique(sizes, return_counts=True), strict=True):
        pmf = np.zeros(int(v) * int(c) + 1)
        pmf[:: int(v)] = sps.binom.pmf(np.arange(int(c) + 1), int(c), 0.5)
        dist = np.convolve(dist, pmf)
    plus = (observed + int(sizes.sum())) // 2
    return min(1.0, float(dist[plus:].sum())), min(1.0, float(dist[: plus + 1].sum()))


def mcnemar(gained: int, lost: int) -> tuple[float, float]:
    """Exact one-sided McNemar p values (better, worse) from the discordant counts."""
    if gained + lost == 0:
        return 1.0, 1.0
    test = [float(sps.binomtest(gained, gained + lost, 0.5, alternative=a).pvalue) for a in ("greater", "less")]
    return test[0], test[1]


def wilson(right: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a share (fractions)."""
    ci = sps.binomtest(right, n).proportion_ci(confidence_level=confidence, method="wilson")
    return float(ci.low), float(ci.high)


def holm(p: Sequence[float] | Floats) -> Floats:
    """Holm's step-down adjusted p values along the last axis ([..., m], order kept)."""
    a = np.asarray(p, dtype=np.float64)
    m = a.shape[-1] if a.ndim else 0
    if m == 0:
        return a
    order = np.argsort(a, axis=-1, kind="stable")
    stepped = np.take_along_axis(a, order, -1) * (m - np.arange(m))
    stepped = np.minimum(np.maximum.accumulate(stepped, axis=-1), 1.0)
    out = np.empty_like(a)
    np.put_along_axis(out, order, stepped, -1)
    return out


def t_power(effect: float, se: float, df: float, alpha: float) -> float:
    """Power of the one-sided one-sample t test at a true `effect` (noncentral t)."""
    if df < 1 or not math.isfinite(se):
        return 0.0
    if se == 0:
        return 1.0 if effect > 0 else 0.0
    return float(sps.nct.sf(t_quantile(1 - alpha, df), df, effect / se))


def mde(se: float, df: float, alpha: float, power: float = 0.8) -> float:
    """Smallest true effect (same unit as `se`) the one-sided t test sees with `power`; infinite where there is no error estimate."""
    if df < 1 or not math.isfinite(se):
        return math.inf
    if se == 0:
        return 0.0
    return se * _unit_mde(df, round(alpha, 12), power)


@lru_cache(maxsize=4096)
def _unit_mde(df: float, alpha: float, power: float) -> float:
    guess = t_quantile(1 - alpha, df) + t_quantile(power, df)
    return float(brentq(lambda x: t_power(x, 1.0, df, alpha) - power, 0.0, 4.0 * guess + 10.0, xtol=1e-12))


def n_needed(n: int, mde_now: float, effect: float) -> int | None:
    """Questions needed to see `effect` with the power of `mde_now`, at the discordance and clustering seen; None where unknowable."""
    if effect <= 0 or not math.isfinite(mde_now):
        return None
    return max(1, math.ceil(n * (mde_now / effect) ** 2))
