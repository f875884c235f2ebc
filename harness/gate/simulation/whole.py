"""Everything `python -m harness simulate` runs, in order."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from multiprocessing import get_context

from harness.gate.simulation.ranks import TRUTHS, simulate_ranks
from harness.gate.simulation.savings import saving_cells
from harness.gate.simulation.shapes import losses, placed, simulate_format, simulate_offset, simulate_shape
from harness.gate.simulation.simulate import (
    AGAIN,
    Part,
    Rate,
    Simulation,
    SimulationPlan,
    gate_parts,
    sequence_parts,
)


def parts(plan: SimulationPlan) -> list[Part]:
    """Error rates, power, hard shapes, ranks and coverage."""
    shapes: list[Part] = [partial(simulate_shape, number=i) for i in range(len(losses()))]
    formats: list[Part] = [partial(simulate_format, videos=n) for n in (410, 100, 40)]
    ranks: list[Part] = [partial(simulate_ranks, truth=t) for t in TRUTHS]
    return [*gate_parts(plan), *shapes, simulate_offset, *formats, *ranks, placed, *sequence_parts(plan)]


def confirmed(part: Part, plan: SimulationPlan) -> list[Rate]:
    """A part's rows. A power lies at its limit by construction, so among a hundred rows some are outside two standard errors by chance:
    such a row is measured again, with other random numbers and `AGAIN` times the simulations, and that measurement counts, by its own,
    narrower tolerance.
    """
    first = part(plan)
    if all(r.holds for r in first):
        return first
    second = part(replace(plan, sims=AGAIN * plan.sims, seed=plan.seed + 1))
    return [
        a if a.holds else replace(b, detail="; ".join(x for x in (b.detail, f"first {a.share:.4f} of {a.sims:,}, so measured again") if x))
        for a, b in zip(first, second, strict=True)
    ]


def simulate(plan: SimulationPlan, jobs: int = 1) -> Simulation:
    """The whole table, and the savings of early stopping, in `jobs` processes: each part has random numbers of its own, so the figures do
    not depend on them.
    """
    if jobs == 1:
        rates, savings = [confirmed(part, plan) for part in parts(plan)], [cell(plan) for cell in saving_cells(plan)]
    else:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            first = [pool.submit(confirmed, part, plan) for part in parts(plan)]
            second = [pool.submit(cell, plan) for cell in saving_cells(plan)]
            rates, savings = [f.result() for f in first], [f.result() for f in second]
    return Simulation(asdict(plan), [r for rows in rates for r in rows], [s for rows in savings for s in rows])
