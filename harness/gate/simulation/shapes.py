"""The hard shapes: losses that come as whole videos, few videos, sizes that go with the effect, one giant, losses put in a chosen place.

Each is a way in which a real loss of the margin once passed too often. Differences are drawn as they would come, not as the tests assume.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from harness import stats
from harness.gate.early import sequence
from harness.gate.evidence.formats import FORMAT_MARGIN
from harness.gate.simulation.simulate import Floats, Rate, SimulationPlan, better, chunks

MARGIN = 0.015
NOISE = 0.05
"""Share of questions that change for no reason, half each way."""

Draw = Callable[[int, np.random.Generator], Floats]


@dataclass(frozen=True)
class Shape:
    """A design with a way to draw differences [sims, Q] on it; their mean is -`loss`."""

    name: str
    design: stats.Design
    draw: Draw
    loss: float = MARGIN


def of_sizes(sizes: list[int] | np.ndarray) -> stats.Design:
    """One task, so many questions on each video."""
    videos = np.repeat(np.arange(len(sizes)), sizes)
    return stats.design(videos, np.zeros(len(videos), int))


def breaking(design: stats.Design, chance: Floats, *, gain: float = 0.0, noise: float = NOISE) -> Draw:
    """Whole videos break, each with its `chance` [G]; other questions are gained with probability `gain`, beside the noise."""

    def draw(sims: int, rng: np.random.Generator) -> Floats:
        z = rng.random((sims, design.n))
        x = (z > 1 - noise / 2 - gain).astype(np.float64) - (z < noise / 2)
        broken = rng.random((sims, design.videos)) < chance
        return np.where(broken[:, design.clusters], -1.0, x)

    return draw


def losses() -> list[Shape]:
    """Shapes with a true loss of exactly the margin."""
    out = []
    for videos in (410, 100, 40):
        d = of_sizes([13] * videos)
        out.append(Shape(f"whole videos break, {videos} x 13", d, breaking(d, np.full(videos, MARGIN))))
    sizes = np.maximum(1, np.round(np.random.default_rng(1).lognormal(2.2, 0.6, 410))).astype(int)
    d = of_sizes(sizes)
    chance = MARGIN * sizes * sizes.sum() / float((sizes**2).sum())  # the more questions, the likelier; the loss stays the margin
    out.append(Shape("larger videos break more often, 410", d, breaking(d, chance)))
    d = of_sizes([1300] + [13] * 100)
    out.append(Shape("one video holds half, 101", d, breaking(d, np.full(101, MARGIN))))
    return out


def offset() -> Shape:
    """Rare large losses and many small gains that make up for them: no difference on the whole."""
    d, broken = of_sizes([13] * 410), 0.02
    return Shape(
        "rare whole videos lost, single questions gained", d, breaking(d, np.full(410, broken), gain=broken / (1 - broken)), loss=0.0
    )


def simulate_shape(plan: SimulationPlan, number: int) -> list[Rate]:
    """False passes in one of `losses`."""
    shape = losses()[number]
    passed = [np.asarray(stats.mean_test(m, -MARGIN).p_above) <= plan.alpha for m in _means(shape, plan, number)]
    floored = shape.design.videos < 100 or float(shape.design.cluster_weight.max()) > 0.1
    detail = "the floor decides: such a set cannot rule the margin out" if floored else ""
    return [Rate("a loss of the margin passes", shape.name, float(np.concatenate(passed).mean()), plan.sims, plan.alpha, detail=detail)]


def simulate_offset(plan: SimulationPlan) -> list[Rate]:
    """False news where losses and gains make up for each other."""
    shape = offset()
    news = [(better(m), better(m, worse=True)) for m in _means(shape, plan, 20)]
    return [
        Rate(f"no difference on the whole counts as {what}", shape.name, share, plan.sims, plan.alpha)
        for k, what in enumerate(("improved", "worse"))
        for share in [float((np.concatenate([x[k] for x in news]) <= plan.alpha).mean())]
    ]


def simulate_format(plan: SimulationPlan, videos: int) -> list[Rate]:
    """False fails for unreadable answers: whole videos become unreadable, no more than the margin allows on the whole."""
    d, margin = of_sizes([13] * videos), FORMAT_MARGIN / 100
    shape = Shape(f"all answers on a video, {videos} x 13", d, breaking(d, np.full(videos, margin), noise=0.0), loss=margin)
    failed = [np.asarray(stats.mean_test(m, -margin).p_below) <= plan.alpha for m in _means(shape, plan, 1000 + videos)]
    share = float(np.concatenate(failed).mean())
    return [Rate("unreadable answers that rise by the margin fail", shape.name, share, plan.sims, plan.alpha)]


def _means(shape: Shape, plan: SimulationPlan, key: int) -> list[stats.ClusterMean]:
    rng = plan.rng(30, key)
    return [stats.cluster_mean(shape.draw(size, rng), shape.design) for size in chunks(plan.sims, shape.design.n)]


def placed(plan: SimulationPlan, videos: int = 500, lost: int = 40, hidden: int = 300) -> list[Rate]:
    """An 8-point loss placed after the first draws of one known order, met by orders that cannot be known; and a loss of just the margin
    packed into as few videos as hold it."""
    d = of_sizes([1] * videos)
    base = np.ones(videos)
    out: list[Rate] = []
    for name, margin, where in (
        (f"{lost} of {videos} lost behind {hidden} draws", 0.025, np.arange(hidden, hidden + lost)),
        ("the margin lost in the largest videos", MARGIN, None),
    ):
        if where is None:
            d = of_sizes([13] * 400 + [130] * 10)
            base = np.ones(d.n)
            where = np.flatnonzero(d.clusters >= 400)[: int(np.ceil(MARGIN * d.n))]
        diff = np.zeros(d.n)
        diff[where] = -1.0
        pop = sequence.population(d, base, margin=margin)
        x, rng, wrong = d.totals(diff), plan.rng(31, len(out)), 0
        for size in chunks(plan.sims, d.videos):
            orders = np.argsort(rng.exponential(size=(size, d.videos)) / pop.draw, axis=-1)
            ended = sequence.run_all(x[orders], orders, pop, margin=margin, alpha=plan.alpha, batch=sequence.batch_size(pop.size, d.n))
            wrong += int(ended.passed.sum())
        out.append(Rate("early verdict differs from the full set's", name, wrong / plan.sims, plan.sims, plan.alpha))
    return out
