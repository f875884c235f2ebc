"""Whether the study's intervals contain the truth as often as they say: simulated studies with known variances, several estimators.

Answers are simulated, not effects: on each question a model gains, loses or keeps its point, questions share a part of what happens to them
between bases, and a base has its own gain. A 95 % interval has to contain the true gain in 95 of 100 studies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import stats as sps

from benchmarks.catalog import select
from harness.stats import Design, Floats, cluster_mean, combined, design, t_quantile
from harness.tables.table import Cell, Row, Table
from reproduce.study.estimate import ESTIMATOR, LEVEL, parts

EFFECT = 0.02
BLOCK = 20
"""Studies simulated at a time: bounds memory."""
ALIKE = 0.3
"""How much questions on one video share of what happens to them (correlation of the latent values)."""
RESAMPLES = 200


@dataclass(frozen=True)
class World:
    """What a study is drawn from: `bases` with `seeds` runs each, the standard deviations of their gains in points, the share of answers
    that change, and how much of what happens to a question is the same for all bases (0-1, correlation of the latent values)."""

    bases: int
    base_sd: float
    seed_sd: float
    shared: float
    changed: float = 0.26
    seeds: int = 1


@cache
def twins_design(size: str = "micro") -> Design:
    """Tasks and videos as the synthetic twins have them: as many questions in each task, as many on a video."""
    made = []
    for benchmark in select(None):
        tasks = np.repeat(np.arange(len(benchmark.tasks)), benchmark.twin_task(size))  # type: ignore[arg-type]
        made.append(design(np.floor(np.arange(len(tasks)) / benchmark.twin_per_video).astype(np.int64), tasks))
    return combined(made)


def draw(world: World, plan: Design, rng: np.random.Generator, studies: int) -> Floats:
    """Differences [studies, bases, Q] of simulated studies, each base's mean over its seeds: -1, 0 or 1 for one seed."""
    n = (studies, world.bases, world.seeds)
    gains = EFFECT + (rng.normal(0, world.base_sd, n[:2])[..., None] + rng.normal(0, world.seed_sd, n)) / 100
    up, down = (sps.norm.ppf(np.clip((world.changed + sign * gains) / 2, 1e-9, 1 - 1e-9)) for sign in (1, -1))

    def latent(*shape: int) -> Floats:
        of_video = rng.standard_normal((*shape, plan.videos))[..., plan.clusters]
        return np.asarray(np.sqrt(ALIKE) * of_video + np.sqrt(1 - ALIKE) * rng.standard_normal((*shape, plan.n)))

    value = np.sqrt(world.shared) * latent(studies, 1, 1) + np.sqrt(1 - world.shared) * latent(*n)
    changes = (value < up[..., None]).astype(np.float64) - (value > -down[..., None])
    return np.asarray(changes.mean(axis=2))


Interval = Callable[[Floats, Design], tuple[Floats, Floats]]
"""Differences [S, B, Q] -> the mean [S] and half the width [S] of each study's interval."""


def _two_way(differences: Floats, plan: Design) -> tuple[Floats, Floats]:
    p = parts(differences, plan)
    return p.mean, sps.t.ppf((1 + LEVEL) / 2, p.df) * np.sqrt(p.variance)


def _mixed(differences: Floats, plan: Design) -> tuple[Floats, Floats]:
    p = parts(differences, plan)
    own = np.maximum(p.base - p.both, 0.0) + np.maximum(p.video - p.both, 0.0) + p.both
    return p.mean, sps.norm.ppf((1 + LEVEL) / 2) * np.sqrt(own)


def _bases(differences: Floats, plan: Design) -> tuple[Floats, Floats]:
    p = parts(differences, plan)
    return p.mean, t_quantile((1 + LEVEL) / 2, p.bases - 1) * np.sqrt(p.base)


def _questions(differences: Floats, plan: Design) -> tuple[Floats, Floats]:
    p = parts(differences, plan)
    return p.mean, t_quantile((1 + LEVEL) / 2, p.video_df) * np.sqrt(p.video)


def _bootstrap(differences: Floats, plan: Design) -> tuple[Floats, Floats]:
    """Bases and videos drawn again with replacement, independently (Owen 2007); half the distance of the outer percentiles."""
    totals, rng = cluster_mean(differences, plan).totals, np.random.default_rng(0)
    bases, videos = totals.shape[1:]
    b = rng.multinomial(bases, np.full(bases, 1 / bases), RESAMPLES) / bases
    v = rng.multinomial(videos, np.full(videos, 1 / videos), RESAMPLES).astype(np.float64)
    weight = v @ plan.cluster_weight
    drawn = np.einsum("rb,sbg,rg->sr", b, totals, v / weight[:, None], optimize=True)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    return totals.sum(axis=-1).mean(axis=-1), (high - low) / 2


ESTIMATORS: dict[str, tuple[str, Interval]] = {
    "two-way": (f"the study's: {ESTIMATOR}", _two_way),
    "mixed model": ("the same variances, none below 0 (a mixed model's REML estimates in balanced data), normal interval", _mixed),
    "crossed bootstrap": (f"bases and videos resampled independently, {RESAMPLES} times, percentiles", _bootstrap),
    "bases only": ("t interval over bases' means; leaves out the questions' error", _bases),
    "questions only": ("t interval over videos; leaves out the bases' error", _questions),
}
WORLDS = tuple(World(bases, *sds, shared) for bases in (6, 12) for sds in ((1.0, 1.1), (1.4, 1.6)) for shared in (0.0, 0.5, 1.0))
"""The variances seen at micro scale (base 1.0-1.4, loop seed 1.1-1.6 points; questions 1.2-1.4 where all bases share them)."""


@dataclass(frozen=True)
class Covered:
    """How often an estimator's intervals held the truth, percent, with the simulation's own standard error; `width` in points."""

    world: World
    estimator: str
    coverage_pct: float
    error_pct: float
    width: float
    question_se: float
    """The standard deviation over studies that questions alone bring, in points, when all of it is shared."""


def simulate(world: World, studies: int, *, seed: int = 0, estimators: tuple[str, ...] = tuple(ESTIMATORS)) -> list[Covered]:
    """Coverage of each estimator in one world."""
    plan, hits = twins_design(), dict.fromkeys(estimators, 0)
    width = dict.fromkeys(estimators, 0.0)
    spread: list[float] = []
    for differences in _blocks(world, plan, studies, seed):
        spread += list(np.sqrt(parts(differences, plan).video))
        for name in estimators:
            mean, half = ESTIMATORS[name][1](differences, plan)
            hits[name] += int((np.abs(mean - EFFECT) <= half).sum())
            width[name] += float(half.sum())
    out = []
    for name in estimators:
        share = hits[name] / studies
        error = max(share * (1 - share), 1 / studies) / studies
        out.append(Covered(world, name, 100 * share, 100 * error**0.5, 200 * width[name] / studies, 100 * float(np.mean(spread))))
    return out


def _blocks(world: World, plan: Design, studies: int, seed: int) -> Iterator[Floats]:
    rng = np.random.default_rng(seed)
    for start in range(0, studies, BLOCK):
        yield draw(world, plan, rng, min(BLOCK, studies - start))


def coverage_table(found: list[Covered], studies: int) -> Table:
    """A row a kind of study, a column an estimator: coverage in percent, and the width of the interval in points."""
    names = list(dict.fromkeys(one.estimator for one in found))
    rows = []
    for world in dict.fromkeys(one.world for one in found):
        mine = {one.estimator: one for one in found if one.world == world}
        label = f"{world.bases} bases, SD {world.base_sd} + {world.seed_sd}, {100 * world.shared:.0f} % shared"
        cells = [Cell(mine[name].coverage_pct, f"{mine[name].coverage_pct:.1f} ({mine[name].width:.1f})") for name in names]
        rows.append(Row(label, tuple(cells)))
    worst = max(one.error_pct for one in found if one.estimator == "two-way")
    return Table(
        title=f"Coverage of 95 % intervals in percent (width in points), {studies:,} simulated studies a row",
        scale="simulated",
        label_title="study",
        columns=tuple(names),
        rows=tuple(rows),
        notes=(
            f"The simulation's own standard error is at most {worst:.1f} (two-way).",
            "SD: of the gain between base models and between loop seeds of one, points. Shared: how much of what happens to a question is "
            "the same for all base models (correlation). Each base has one loop seed.",
            *(f"{name}: {ESTIMATORS[name][0]}." for name in names),
        ),
    )
