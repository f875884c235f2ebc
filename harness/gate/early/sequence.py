"""An anytime-valid bound on the whole set's paired difference, while videos are drawn in random order without replacement.

A benchmark is a finite set of N videos; video j holds a known weight of questions and an unknown total x_j, its share of the difference
D = sum x_j. Videos are drawn one after another with known probabilities q_j / (sum of q over what is left). Under a hypothesised D the next
y = x / q then has a known expectation, m_t = (D - S_{t-1}) / Q_t, so betting on it is a fair game whose capital is a nonnegative
martingale: it ever exceeds 1/alpha with probability at most alpha, however often one looks (Ville). Bets use earlier draws only. Two games:
one bets on "better than D", one on "worse". Waudby-Smith and Ramdas 2020 (sampling without replacement) and 2023 (estimating means by
betting, section 5); Shekhar et al. 2023 (unequal drawing probabilities).

Why unequal probabilities: a bet must survive the worst video that could come, and drawn evenly the worst is the video with most questions,
which holds every bet down. q_j between "even" and "by the questions that could be lost" is chosen before anything is asked, from what is
known then (question counts, the baseline's answers).

Everything is vectorised over leading axes [..., t], so that simulations and the real thing run the same lines. Fractions, not points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness.stats import Design

Floats = NDArray[np.float64]
Direction = Literal[1, -1]

SAFETY = 0.995
"""Share of the largest allowed bet that is ever placed: no single video can bankrupt a game."""
TRUST = 6.0
"""Trust in "no difference", in units of the draws it takes to tell the boundary from it; tuned on simulations with other seeds than
reported."""
BEYOND = 2.0
"""The game for a fail starts by expecting a loss of (1 + BEYOND) margins."""
PRIOR_DRAWS = 10.0
"""Draws the guessed variance is worth."""
DISCORDANCE = 0.12
"""Share of questions expected to change. Like the three above it only tunes the bets; the guarantee rests on none of them."""


@dataclass(frozen=True)
class Population:
    """What is known before any answer. All arrays [N], one entry a video.

    `low`, `high`: least and largest total a video can have (a question the baseline got right can only be lost, one it got wrong only be
    gained). `draw`: drawing probabilities of the first draw (sum 1). `spread`: guessed variance of y = x / draw.
    """

    low: Floats
    high: Floats
    draw: Floats
    spread: float
    least: float = field(init=False)
    most: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "least", float((self.low / self.draw).min()))
        object.__setattr__(self, "most", float((self.high / self.draw).max()))

    @property
    def size(self) -> int:
        """Videos."""
        return len(self.low)

    def order(self, rng: np.random.Generator) -> NDArray[np.intp]:
        """A random drawing order: exponential clocks, which is drawing one after another with probabilities in proportion to `draw`."""
        return np.argsort(rng.exponential(size=self.size) / self.draw)


def population(
    design: Design, baseline: Floats, *, margin: float, discordance: float = DISCORDANCE, draw: Floats | None = None
) -> Population:
    """Population of a paired comparison, drawn in proportion to `draw`, or with probabilities chosen for the fewest questions to be
    expected.

    `baseline` [Q]: the baseline's credit of each question (0-1); `margin` (fraction) is the boundary to be decided.
    """
    right = design.totals(baseline)
    wrong = design.totals(1.0 - baseline)
    squares = np.bincount(design.clusters, weights=design.weights**2, minlength=design.videos)
    questions = np.bincount(design.clusters, minlength=design.videos).astype(float)
    if draw is not None:
        q = draw / draw.sum()
        return Population(-right, wrong, q, spread=discordance * float((squares / q).sum()))
    best: tuple[float, Population] | None = None
    for tilt in (0.05, 0.2, 0.5, math.inf):
        by = design.cluster_weight if math.isinf(tilt) else right + tilt * design.cluster_weight
        for even in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, math.inf):
            q = np.ones_like(by) if math.isinf(even) else by + even * by.mean()
            q = q / q.sum()
            pop = Population(-right, wrong, q, spread=discordance * float((squares / q).sum()))
            cost = _expected_share(pop, margin, questions)
            if best is None or cost < best[0]:
                best = (cost, pop)
    assert best is not None
    return best[1]


def _expected_share(pop: Population, margin: float, questions: Floats, level: float = 3.7) -> float:
    """Guessed share of questions asked, over no change (the usual case), a gain and a loss of a few margins: a cost to compare plans by."""
    per_draw = float((pop.draw * questions).sum()) / questions.sum()
    total = 0.0
    no_change, gain, loss = margin, 4.3 * margin, 2.3 * margin
    lowest, highest = -pop.least - margin, pop.most + margin
    for weight, gap, worst in ((3.0, no_change, lowest), (1.0, gain, lowest), (1.0, loss, highest)):
        square = pop.spread + gap * gap
        stake = min(gap / square, SAFETY / worst) if worst > 0 else gap / square
        growth = stake * gap - stake * stake * square / 2
        draws = per_draw * level / max(growth, 1e-12)
        total += weight * draws / (1.0 + draws)
    return total


@dataclass(frozen=True)
class Game:
    """One betting game over draws [..., t]: the outcomes and bets, which do not depend on the hypothesis it is later held against."""

    y: Floats
    before: Floats
    """Sum of x before each draw."""
    left: Floats
    """Drawing probability left before each draw."""
    stake: Floats
    direction: Direction
    pop: Population

    def log_capital(self, d: Floats | float) -> Floats:
        """Log capital after each draw [..., t] against "the whole set's difference is `d`" (scalar or [...]).

        It falls (rises) in `d` for direction +1 (-1), so one hypothesis speaks for all beyond it.
        """
        m = (np.asarray(d, dtype=np.float64)[..., None] - self.before) / self.left
        worst = m - self.pop.least if self.direction > 0 else self.pop.most - m
        # The last videos' expectation is their very outcome, up to rounding: an extreme outcome is no impossible one.
        possible = worst > -1e-9 * (self.pop.most - self.pop.least)
        stake = np.minimum(self.stake, SAFETY / np.maximum(worst, 1e-12))
        gain = self.direction * stake * (self.y - m)
        # An expectation outside what any video left could have: the hypothesis is refuted outright.
        return np.cumsum(np.where(possible, np.log1p(np.maximum(gain, -1.0 + 1e-12)), np.inf), axis=-1)


def play(x: Floats, draw: Floats, pop: Population, *, target: float, direction: Direction) -> Game:
    """Place the bets of a game that is to decide whether D lies beyond `target` (direction +1: above, -1: below).

    `x` [..., t]: totals of the videos in drawing order, `draw` [..., t]: their drawing probabilities. Kelly's size, with the mean of
    what is left guessed from the draws so far, shrunk towards no difference (+1) or a clear loss (-1), and the variance from the draws
    so far.
    """
    y = x / draw
    t = np.arange(x.shape[-1], dtype=np.float64)
    before = np.cumsum(x, axis=-1) - x
    squares = np.cumsum(y * y, axis=-1) - y * y
    used = np.cumsum(draw, axis=-1) - draw
    left = np.maximum(1.0 - used, draw)
    var = (PRIOR_DRAWS * pop.spread + squares) / (PRIOR_DRAWS + t)
    pull = min(TRUST * pop.spread / max(target * target, 1e-12) / pop.size, 10.0)
    expected = 0.0 if direction > 0 else target * (1.0 + BEYOND)
    mean = (pull * expected + before) / (pull + used)
    gap = direction * (mean - (target - before) / left)
    stake = np.maximum(gap / np.maximum(var + gap * gap, 1e-300), 0.0)
    return Game(y, before, left, stake, direction, pop)


def crossed(game: Game, d: Floats | float, alpha: float) -> NDArray[np.bool_]:
    """Whether the game had refuted "D = d" at or before each draw [..., t]."""
    return np.logical_or.accumulate(game.log_capital(d) >= math.log(1.0 / alpha), axis=-1)


Certain = Literal["pass", "fail"]


@dataclass(frozen=True)
class Look:
    """What is known after the draws so far: bounds on the whole set's difference (fractions) and the verdict if it is certain."""

    drawn: int
    low: float
    high: float
    verdict: Certain | None


def look(
    x: Floats,
    order: NDArray[np.intp],
    pop: Population,
    *,
    margin: float,
    alpha: float,
    alpha_fail: float | None = None,
    bounds: bool = True,
) -> Look:
    """Bounds and verdict after the videos `order[:t]` had totals `x` [t]; each bound is wrong with probability at most alpha at any time.

    `pass`: a whole-set loss of `margin` or more is refuted; `fail`: anything better than it is (at `alpha_fail`, by default alpha). Once
    all videos are drawn the bounds are the point itself. Bounds are the best ever reached and never leave what logic allows; without
    `bounds`, which cost most of the time, they are what logic allows.
    """
    t = len(x)
    rest = order[t:]
    done = float(x.sum())
    logic = (done + float(pop.low[rest].sum()), done + float(pop.high[rest].sum()))
    if t == pop.size:
        return Look(t, done, done, "pass" if done > -margin + 1e-12 else "fail")
    low, high = logic
    verdict: Certain | None = None
    if t:
        draw = pop.draw[order[:t]]
        up, down = (play(x, draw, pop, target=-margin, direction=s) for s in (1, -1))  # type: ignore[arg-type]
        if bounds:
            low = max(low, _root(lambda d: float(up.log_capital(d).max()), -1.0, 1.0, math.log(1 / alpha), falling=True))
            high = min(high, _root(lambda d: float(down.log_capital(d).max()), -1.0, 1.0, math.log(1 / alpha), falling=False))
        if bool(crossed(up, -margin, alpha)[-1]):
            verdict = "pass"
        elif bool(crossed(down, -margin, alpha_fail or alpha)[-1]):
            verdict = "fail"
    if logic[0] > -margin + 1e-12:
        verdict = "pass"
    elif logic[1] <= -margin + 1e-12:
        verdict = "fail"
    return Look(t, low, high, verdict)


def _root(f: Callable[[float], float], a: float, b: float, level: float, *, falling: bool) -> float:
    """Where monotone f crosses `level` (the outermost hypothesis not refuted), by bisection to 1e-6; errs on the wide side."""
    for _ in range(22):
        mid = (a + b) / 2
        if (f(mid) >= level) == falling:
            a = mid
        else:
            b = mid
    return a if falling else b


def batch_size(videos: int, questions: int, benchmarks: int = 1) -> int:
    """Videos between two looks: 400 looks, but at least 16 questions of each benchmark asked together, so that a model is kept busy."""
    return max(1, math.ceil(videos / 400), math.ceil(16 * benchmarks * videos / max(questions, 1)))


@dataclass(frozen=True)
class Runs:
    """How simulated runs ended: videos drawn [S], verdict [S] (1 pass, 0 fail), and whether each had to exhaust the set [S]."""

    drawn: NDArray[np.intp]
    passed: NDArray[np.bool_]
    exhausted: NDArray[np.bool_]


def run_all(x: Floats, orders: NDArray[np.intp], pop: Population, *, margin: float, alpha: float, batch: int) -> Runs:
    """What `look` would have said after every `batch` videos, for many orders at once. `x`, `orders` [S, N] in drawing order."""
    n = pop.size
    draw = pop.draw[orders]
    up, down = (crossed(play(x, draw, pop, target=-margin, direction=s), -margin, alpha) for s in (1, -1))  # type: ignore[arg-type]
    done = np.cumsum(x, axis=-1)
    rest_low = float(pop.low.sum()) - np.cumsum(pop.low[orders], axis=-1)
    rest_high = float(pop.high.sum()) - np.cumsum(pop.high[orders], axis=-1)
    up = up | (done + rest_low > -margin + 1e-12)
    down = down | (done + rest_high <= -margin + 1e-12)
    looks = np.minimum(np.arange(batch, n + batch, batch), n) - 1
    up_at, down_at = up[..., looks], down[..., looks]
    up_at[..., -1] = done[..., -1] > -margin + 1e-12
    down_at[..., -1] = ~up_at[..., -1]
    first_up, first_down = (np.where(a.any(-1), a.argmax(-1), len(looks)) for a in (up_at, down_at))
    first = np.minimum(first_up, first_down)
    return Runs(looks[first] + 1, first_up <= first_down, first == len(looks) - 1)
