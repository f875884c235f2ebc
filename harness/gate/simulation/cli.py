"""The command line of the simulation: `simulate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from harness.gate.output.console import Alpha, AsJson, Benchmarks, names, stop
from harness.gate.policy import EXIT_CODES
from savi.base.former import former_options


@former_options(processes="--jobs")
def simulate(
    sims: Annotated[int, typer.Option(min=10, help="Simulations of each error rate.")] = 2000,
    saving_sims: Annotated[int, typer.Option(min=10, help="Simulations of each cell of the savings table.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed.")] = 2412,
    alpha: Alpha = 0.05,
    discordance: Annotated[float, typer.Option(min=0.5, max=60, help="Percent of questions that change between two models.")] = 13.0,
    rho: Annotated[
        float, typer.Option(min=0, max=0.9, help=("Correlation of the changes within a video (of the underlying normal variables)."))
    ] = 0.05,
    margin: Annotated[float, typer.Option(help="Margin of the savings table, in points.")] = 1.5,
    benchmarks: Benchmarks = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for gate_simulation.{md,json,svg}.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes on this machine; the figures do not depend on it.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Test the gate on itself: error rates, power, coverage and savings with the six benchmarks' real sizes.

    Exit code 1: an error rate, a power or a coverage is not what the gate says.
    """
    from benchmarks.catalog import UnknownBenchmarkError, select
    from harness.gate.simulation.report import markdown, write
    from harness.gate.simulation.simulate import SimulationPlan
    from harness.gate.simulation.whole import simulate as run

    try:
        chosen = tuple(b.name for b in select(names(benchmarks)))
    except UnknownBenchmarkError as e:
        stop(str(e), EXIT_CODES["usage"])
    plan = SimulationPlan(
        sims=sims,
        seed=seed,
        alpha=alpha,
        discordance=discordance / 100,
        rho=rho,
        benchmarks=chosen,
        saving_margin=margin,
        saving_sims=saving_sims,
    )
    result = run(plan, processes)
    if out is not None:
        write(result, out)
    typer.echo(json.dumps(result.to_dict(), indent=1) if as_json else markdown(result))
    if not result.holds:
        raise typer.Exit(EXIT_CODES["fail"])


def register(app: typer.Typer) -> None:
    """Mount `simulate` on the harness's command line."""
    app.command()(simulate)
