"""What early stopping saves: the share of the questions that are asked until the verdict is certain."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.catalog import CATALOG
from harness import stats
from harness.gate.early import sequence
from harness.gate.simulation.simulate import Saving, SimulationPlan, baseline_credits, chunks, draws, exact, layout

Cell = Callable[[SimulationPlan], list[Saving]]
"""A row of the savings table."""


def saving_cells(plan: SimulationPlan) -> list[Cell]:
    """Share of questions asked until certain, over effects and discordances, for each benchmark and for all together."""
    return [
        partial(_savings, effect=(j, effect), discordance=(k, discordance))
        for k, discordance in enumerate(plan.discordances)
        for j, effect in enumerate(plan.effects)
        if abs(effect) / 100 <= discordance
    ]


def _savings(plan: SimulationPlan, effect: tuple[int, float], discordance: tuple[int, float]) -> list[Saving]:
    """One cell; effect and discordance with their positions, which the random numbers depend on."""
    (j, points), (k, share) = effect, discordance
    rows: list[Saving] = []
    m = plan.saving_margin / 100
    for i, name in enumerate(plan.benchmarks):
        d = layout(CATALOG[name])
        base = baseline_credits(d, plan.rng(i, 9))
        pop = sequence.population(d, base, margin=m)
        per_video = np.bincount(d.clusters, minlength=d.videos)
        asked: list[NDArray[np.intp]] = []
        wrong = 0
        for x, orders, truth in draws(
            d, pop, base, plan.saving_sims, effect=points / 100, discordance=share, rho=plan.rho, rng=plan.rng(i, 20, j, k)
        ):
            ended = sequence.run_all(x, orders, pop, margin=m, alpha=plan.alpha, batch=sequence.batch_size(pop.size, d.n))
            asked.append(np.cumsum(per_video[orders], axis=-1)[np.arange(len(x)), ended.drawn - 1])
            wrong += int((ended.passed != (truth > -m + 1e-12)).sum())
        rows.append(_saving(name, points, share, np.concatenate(asked), wrong, d.n))
    total = sum(CATALOG[r.benchmark].n for r in rows)
    questions = sum(r.questions for r in rows)
    p90 = sum(r.p90 * CATALOG[r.benchmark].n for r in rows) / total
    worst = max(r.wrong for r in rows)
    together = Saving("all", points, 100 * share, questions / total, p90, worst, questions)
    return [*rows, together, *([_mean_saving(plan, points, share, plan.rng(21, j, k))] if len(rows) > 1 else [])]


def _mean_saving(plan: SimulationPlan, effect: float, discordance: float, rng: np.random.Generator) -> Saving:
    """The same where only the mean over the benchmarks is to be decided, all videos drawn in one order."""
    designs = [layout(CATALOG[n]) for n in plan.benchmarks]
    bases = [baseline_credits(d, plan.rng(i, 9)) for i, d in enumerate(designs)]
    d, m = stats.combined(designs), plan.saving_margin / 100
    pop = sequence.population(d, np.concatenate(bases), margin=m)
    per_video = np.bincount(d.clusters, minlength=d.videos)
    asked: list[NDArray[np.intp]] = []
    wrong = 0
    for size in chunks(plan.saving_sims, d.n):
        diffs = [
            exact(one, base, size, effect=effect / 100, discordance=discordance, rho=plan.rho, rng=rng)
            for one, base in zip(designs, bases, strict=True)
        ]
        x = d.totals(np.concatenate(diffs, axis=-1))
        orders = np.argsort(rng.exponential(size=x.shape) / pop.draw, axis=-1)
        batch = sequence.batch_size(pop.size, d.n, len(designs))
        ended = sequence.run_all(np.take_along_axis(x, orders, -1), orders, pop, margin=m, alpha=plan.alpha, batch=batch)
        asked.append(np.cumsum(per_video[orders], axis=-1)[np.arange(size), ended.drawn - 1])
        wrong += int((ended.passed != (x.sum(-1) > -m + 1e-12)).sum())
    return _saving("mean", effect, discordance, np.concatenate(asked), wrong, d.n)


def _saving(name: str, effect: float, discordance: float, asked: NDArray[np.intp], wrong: int, n: int) -> Saving:
    """From the questions `asked` in each simulation [S], of `n`, and how many of the verdicts were wrong."""
    share, p90 = float(asked.mean() / n), float(np.quantile(asked, 0.9) / n)
    return Saving(name, effect, 100 * discordance, share, p90, wrong / len(asked), float(asked.mean()))
