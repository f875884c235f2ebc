"""The gate tested on itself: made-up answers with a known truth, the real functions of `stats` and `sequence`, thousands of times.

Two kinds of truth, for the two kinds of claim. `sampled`: videos come from a superpopulation with a given expected difference (what the
gate on full runs speaks of). `exact`: a finite set whose whole-set difference is exactly the given one, drawn in many orders (what early
stopping speaks of). Within a video, answers change together (`rho`, correlation of the underlying normal variables).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats as sps

from benchmarks.benchmark import Benchmark
from benchmarks.catalog import CATALOG, PAPER
from harness import stats
from harness.gate.early import sequence

Floats = NDArray[np.float64]
ACCURACY = 0.7
"""Share of questions the simulated baseline gets right."""
MDE_SIMS = 100
"""Runs whose stated smallest effect is looked at."""
CHUNK_CELLS = 3_000_000
"""Questions times simulations held at once."""


def layout(benchmark: Benchmark, seed: int = 0) -> stats.Design:
    """A design with the benchmark's real numbers of questions, videos and tasks; questions spread over videos at random, at least one
    each."""
    rng = np.random.default_rng([seed, benchmark.n])
    sizes = 1 + rng.multinomial(benchmark.n - benchmark.videos, np.full(benchmark.videos, 1 / benchmark.videos))
    tasks = rng.permutation(np.repeat(np.arange(len(benchmark.sizes)), benchmark.sizes))
    return stats.design(np.repeat(np.arange(benchmark.videos), sizes), tasks)


def chunks(total: int, cells: int) -> Iterator[int]:
    """Split `total` simulations so that each part holds at most CHUNK_CELLS numbers."""
    step = max(1, CHUNK_CELLS // cells)
    for start in range(0, total, step):
        yield min(step, total - start)


def _latent(design: stats.Design, sims: int, rho: float, rng: np.random.Generator) -> Floats:
    own = rng.standard_normal((sims, design.n))
    if rho == 0:
        return own
    return np.asarray(math.sqrt(rho) * rng.standard_normal((sims, design.videos))[:, design.clusters] + math.sqrt(1 - rho) * own)


def sampled(design: stats.Design, sims: int, *, effect: float, discordance: float, rho: float, rng: np.random.Generator) -> Floats:
    """Differences [sims, Q] in {-1, 0, 1} with expectation `effect` and `discordance` of them not 0 (fractions).

    Raises:
        ValueError: the effect is larger than the discordance.
    """
    if abs(effect) > discordance:
        raise ValueError(f"an effect of {effect} needs at least that share of discordant answers, got {discordance}")
    z = _latent(design, sims, rho, rng)
    lost, gained = (discordance - effect) / 2, (discordance + effect) / 2
    return (z > sps.norm.ppf(1 - gained)).astype(np.float64) - (z < sps.norm.ppf(lost))


def exact(
    design: stats.Design, baseline: Floats, sims: int, *, effect: float, discordance: float, rho: float, rng: np.random.Generator
) -> Floats:
    """Differences [sims, Q] whose mean is `effect` to within one question a task (rounded down), losses only where `baseline` [Q] is
    right."""
    z = _latent(design, sims, rho, rng)
    out = np.zeros_like(z)
    rows = np.arange(sims)[:, None]
    for task in range(design.task_weight.shape[1]):
        n = int((design.tasks == task).sum())
        net = math.floor(effect * n + 1e-9)
        lost = max(0, round((discordance * n - net) / 2))
        gained = lost + net
        for count, sign, pool in ((lost, -1.0, 1.0), (gained, 1.0, 0.0)):
            where = np.flatnonzero((design.tasks == task) & (baseline == pool))
            if count > len(where):
                raise ValueError(f"{count} changed answers wanted where only {len(where)} questions could change")
            if count > 0:
                key = -sign * z[:, where]
                picked = where[np.argpartition(key, count - 1, axis=1)[:, :count]] if count < len(where) else np.tile(where, (sims, 1))
                out[rows, picked] = sign
    return out


def baseline_credits(design: stats.Design, rng: np.random.Generator) -> Floats:
    """A baseline's credits [Q]: ACCURACY of each task's questions right."""
    out = np.zeros(design.n)
    for task in range(design.task_weight.shape[1]):
        where = np.flatnonzero(design.tasks == task)
        out[rng.permutation(where)[: round(ACCURACY * len(where))]] = 1.0
    return out


@dataclass(frozen=True)
class GateSample:
    """The gate's arithmetic on simulated runs: arrays [S], in fractions."""

    p_pass: Floats
    p_fail: Floats
    p_better: Floats | None
    mde: float
    """The smallest effect the gate would state, the median of some runs."""


def gate_sample(
    design: stats.Design,
    margin: float,
    sims: int,
    *,
    effect: float,
    discordance: float,
    rho: float,
    rng: np.random.Generator,
    alpha: float = 0.05,
    power: float = 0.8,
    news: bool = False,
) -> GateSample:
    """Simulate full runs and put them through the same functions as the gate's evidence; with `news`, improvement and MDE too."""
    parts: list[tuple[Any, Any, Any]] = []
    mdes: list[float] = []
    for size in chunks(sims, design.n):
        mean = stats.cluster_mean(sampled(design, size, effect=effect, discordance=discordance, rho=rho, rng=rng), design)
        test = stats.mean_test(mean, -margin)
        parts.append((test.p_above, test.p_below, better(mean) if news else np.zeros(size)))
        if news and len(mdes) < MDE_SIMS:
            mdes += stated_mdes(mean, test, alpha, power)
    p_pass, p_fail, flips = (np.concatenate(x) for x in zip(*parts, strict=True))
    return GateSample(p_pass, p_fail, flips if news else None, float(np.median(mdes)) if mdes else math.nan)


def stated_mdes(mean: stats.ClusterMean, test: stats.MeanTest, alpha: float, power: float) -> list[float]:
    """The smallest effect (fraction) that the gate states in each of the first `MDE_SIMS` simulations."""
    some = replace(mean, influence=mean.influence[:MDE_SIMS])
    beyond = stats.beyond_t(some, test.se[:MDE_SIMS], test.df, alpha)
    return [stats.mde(float(se), test.df, alpha, power) + float(b) for se, b in zip(test.se[:MDE_SIMS], beyond, strict=True)]


def better(mean: stats.ClusterMean, *, worse: bool = False) -> Floats:
    """p values [S] of "better than the baseline" (or worse), as the gate computes them."""
    test, side = stats.mean_test(mean, 0.0), int(worse)
    flips = np.array([stats.sign_flip(t, draws=1_999, seed=i)[side] for i, t in enumerate(mean.totals)])
    return np.maximum(flips, test.p_below if worse else test.p_above)


@dataclass(frozen=True)
class Rate:
    """A simulated share with its standard error; `limit` is what it has to keep (with two standard errors' tolerance), `at_least` which
    way."""

    what: str
    benchmark: str
    share: float
    sims: int
    limit: float | None = None
    at_least: bool = False
    detail: str = ""

    @property
    def se(self) -> float:
        """Standard error of the share."""
        return math.sqrt(max(self.share * (1 - self.share), 1e-12) / self.sims)

    @property
    def holds(self) -> bool:
        """Whether the limit is kept within two standard errors (at the limit itself, so that a share of 0 or 1 has some too)."""
        if self.limit is None:
            return True
        slack = 2 * math.sqrt(self.limit * (1 - self.limit) / self.sims)
        return self.share >= self.limit - slack if self.at_least else self.share <= self.limit + slack


@dataclass(frozen=True)
class Saving:
    """Questions asked until certain, as a share of the set (mean over simulations), for one effect and discordance (points, percent)."""

    benchmark: str
    effect: float
    discordance: float
    share: float
    p90: float
    wrong: float
    """Share of simulations whose verdict differs from the full set's."""
    questions: float


@dataclass(frozen=True)
class Simulation:
    """Everything one run of `simulate` found, with the settings it was run with."""

    settings: dict[str, Any]
    rates: list[Rate]
    savings: list[Saving]

    @property
    def holds(self) -> bool:
        """Whether every stated error rate was kept."""
        return all(r.holds for r in self.rates)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "settings": self.settings,
            "rates": [{**asdict(r), "se": r.se, "holds": r.holds} for r in self.rates],
            "savings": [asdict(s) for s in self.savings],
        }


@dataclass(frozen=True)
class SimulationPlan:
    """What to simulate. `margin` in points for all benchmarks (None: each one's frozen margin); the rest as fractions or plain counts."""

    sims: int = 2000
    seed: int = 0
    alpha: float = 0.05
    margin: float | None = None
    discordance: float = 0.13
    rho: float = 0.05
    power: float = 0.8
    benchmarks: tuple[str, ...] = PAPER
    effects: tuple[float, ...] = (-10.0, -5.0, -3.0, -1.5, 0.0, 2.0, 5.0)
    discordances: tuple[float, ...] = (0.06, 0.13, 0.2)
    saving_margin: float = 1.5
    saving_sims: int = 200

    def margin_of(self, benchmark: Benchmark) -> float:
        """Margin as a fraction."""
        return (self.margin if self.margin is not None else benchmark.margin.points) / 100

    def rng(self, *key: int) -> np.random.Generator:
        """An independent stream for each part, whatever else runs."""
        return np.random.default_rng([self.seed, 7, *key])


AGAIN = 4
"""So many times the simulations measure a row again that was outside its limit."""
Part = Callable[[SimulationPlan], list[Rate]]
"""Some rows of the table, which can be measured again with another plan."""


def gate_parts(plan: SimulationPlan) -> list[Part]:
    """Error rates and power of the gate on full runs."""
    parts: list[Part] = [partial(_benchmark_rates, position=i) for i in range(len(plan.benchmarks))]
    return [*parts, _any_of_several, simulate_mean] if len(plan.benchmarks) > 1 else parts


def sequence_parts(plan: SimulationPlan) -> list[Part]:
    """Coverage of the sequence at every draw, and verdicts that differ from the full set's, at the boundary too."""
    found: list[Part] = []
    for i, name in enumerate(plan.benchmarks):
        boundary = -100 * plan.margin_of(CATALOG[name])
        found += [partial(_sequence_rates, position=i, effect=e, key=j) for j, e in enumerate((boundary, -5.0, 0.0, 5.0))]
    return found


@lru_cache(maxsize=32)
def _same(plan: SimulationPlan, position: int) -> GateSample:
    """Identical models on one benchmark."""
    b = CATALOG[plan.benchmarks[position]]
    known: dict[str, Any] = {"discordance": plan.discordance, "rho": plan.rho, "alpha": plan.alpha, "power": plan.power}
    return gate_sample(layout(b), plan.margin_of(b), plan.sims, effect=0.0, rng=plan.rng(position, 0), news=True, **known)


def _benchmark_rates(plan: SimulationPlan, position: int) -> list[Rate]:
    name = plan.benchmarks[position]
    b = CATALOG[name]
    d, m, same = layout(b), plan.margin_of(b), _same(plan, position)
    known: dict[str, Any] = {"discordance": plan.discordance, "rho": plan.rho}
    assert same.p_better is not None
    loss = gate_sample(d, m, plan.sims, effect=-m, rng=plan.rng(position, 1), **known)
    detail = f"MDE {100 * same.mde:.2f} points, margin {100 * m:g}"
    up = gate_sample(d, m, plan.sims, effect=min(same.mde - m, plan.discordance), rng=plan.rng(position, 2), **known)
    down = gate_sample(d, m, plan.sims, effect=max(-m - same.mde, -plan.discordance), rng=plan.rng(position, 3), **known)
    return [
        Rate("identical models fail", name, _share(same.p_fail, plan), plan.sims, plan.alpha),
        Rate("a loss of the margin passes", name, _share(loss.p_pass, plan), plan.sims, plan.alpha),
        Rate("identical models count as improved", name, _share(same.p_better, plan), plan.sims, plan.alpha),
        Rate("power: pass at margin - MDE", name, _share(up.p_pass, plan), plan.sims, plan.power, True, detail),
        Rate("power: fail at margin + MDE", name, _share(down.p_fail, plan), plan.sims, plan.power, True, detail),
    ]


def _share(p: Floats, plan: SimulationPlan) -> float:
    return float((p <= plan.alpha).mean())


def _any_of_several(plan: SimulationPlan) -> list[Rate]:
    """Whether identical models have a fail, or an improvement, on any benchmark."""
    same = [_same(plan, i) for i in range(len(plan.benchmarks))]
    bad = stats.holm(np.stack([s.p_fail for s in same], axis=-1)).min(-1)
    news = stats.holm(np.stack([s.p_better for s in same if s.p_better is not None], axis=-1)).min(-1)
    return [
        Rate("identical models fail", "any (Holm)", _share(bad, plan), plan.sims, plan.alpha),
        Rate("identical models count as improved", "any (Holm)", _share(news, plan), plan.sims, plan.alpha),
    ]


def simulate_mean(plan: SimulationPlan) -> list[Rate]:
    """Error rates and power of the decision on the mean over the benchmarks."""
    designs = [layout(CATALOG[n]) for n in plan.benchmarks]
    m = sum(plan.margin_of(CATALOG[n]) for n in plan.benchmarks) / len(designs)

    def tests(effect: float, key: int) -> tuple[Floats, Floats, float]:
        parts: list[tuple[Any, Any]] = []
        mdes: list[float] = []
        rng = plan.rng(90, key)
        for size in chunks(plan.sims, sum(d.n for d in designs)):
            diffs = [sampled(d, size, effect=effect, discordance=plan.discordance, rho=plan.rho, rng=rng) for d in designs]
            mean = stats.pool([stats.cluster_mean(x, d) for x, d in zip(diffs, designs, strict=True)])
            test = stats.mean_test(mean, -m)
            parts.append((test.p_above, test.p_below))
            if not mdes and key == 0:
                mdes = stated_mdes(mean, test, plan.alpha, plan.power)
        above, below = (np.concatenate(x) for x in zip(*parts, strict=True))
        return above, below, float(np.median(mdes)) if mdes else math.nan

    name = f"mean of {len(designs)}"
    _, below, mde = tests(0.0, 0)
    out = [Rate("identical models fail", name, float((below <= plan.alpha).mean()), plan.sims, plan.alpha)]
    out.append(Rate("a loss of the margin passes", name, float((tests(-m, 1)[0] <= plan.alpha).mean()), plan.sims, plan.alpha))
    detail = f"MDE {100 * mde:.2f} points, margin {100 * m:g}"
    up, down = tests(mde - m, 2)[0], tests(-m - mde, 3)[1]
    out.append(Rate("power: pass at margin - MDE", name, float((up <= plan.alpha).mean()), plan.sims, plan.power, True, detail))
    out.append(Rate("power: fail at margin + MDE", name, float((down <= plan.alpha).mean()), plan.sims, plan.power, True, detail))
    return out


def draws(
    design: stats.Design,
    pop: sequence.Population,
    base: Floats,
    sims: int,
    *,
    effect: float,
    discordance: float,
    rho: float,
    rng: np.random.Generator,
) -> Iterator[tuple[Floats, NDArray[np.intp], Floats]]:
    """Totals in drawing order, orders [s, N] and the exact truth [s], chunk by chunk."""
    for size in chunks(sims, design.n):
        x = design.totals(exact(design, base, size, effect=effect, discordance=discordance, rho=rho, rng=rng))
        orders = np.argsort(rng.exponential(size=x.shape) / pop.draw, axis=-1)
        yield np.take_along_axis(x, orders, -1), orders, x.sum(-1)


def _sequence_rates(plan: SimulationPlan, position: int, effect: float, key: int) -> list[Rate]:
    name = plan.benchmarks[position]
    b = CATALOG[name]
    d, m = layout(b), plan.margin_of(b)
    base = baseline_credits(d, plan.rng(position, 9))
    pop = sequence.population(d, base, margin=m)
    outside, wrong, n = 0, 0, 0
    for x, orders, truth in draws(
        d, pop, base, plan.sims, effect=effect / 100, discordance=plan.discordance, rho=plan.rho, rng=plan.rng(position, 10, key)
    ):
        draw = pop.draw[orders]
        games = [sequence.play(x, draw, pop, target=-m, direction=s) for s in (1, -1)]  # type: ignore[arg-type]
        missed = np.logical_or(*(sequence.crossed(g, truth, plan.alpha / 2)[:, -1] for g in games))
        ended = sequence.run_all(x, orders, pop, margin=m, alpha=plan.alpha, batch=sequence.batch_size(pop.size, d.n))
        outside += int(missed.sum())
        wrong += int((ended.passed != (truth > -m + 1e-12)).sum())
        n += len(x)
    detail = f"true difference {effect:+g} points"
    return [
        Rate("sequence covers the truth at every draw", name, 1 - outside / n, n, 1 - plan.alpha, True, detail),
        Rate("early verdict differs from the full set's", name, wrong / n, n, plan.alpha, detail=detail),
    ]
