"""`python -m reproduce study`: the micro experiment over seeds and controls, kept as small result files."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from savi.base.cli import KEPT, errors, stop
from savi.base.errors import ExitCode
from savi.base.former import listed


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("study")(study_command)


def study_command(
    seeds: Annotated[list[str], typer.Option(help="Loop seeds; repeated or with commas.")] = ["0,1,2"],  # noqa: B006  # typer copies it
    controls: Annotated[  # typer copies it
        list[str], typer.Option(help="none (the method) and controls; repeated or with commas.")
    ] = ["none,reversed,blind,sft"],  # noqa: B006
    scale: Annotated[str, typer.Option(help="micro or smoke.")] = "micro",
    iterations: Annotated[int | None, typer.Option(help="Iterations of each run.", min=1)] = None,
    twins_seed: Annotated[int | None, typer.Option(help="Seed of the small benchmarks.")] = None,
    base: Annotated[str | None, typer.Option(help="Another base model: a folder.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting of the scale, for every run, as training.epochs=2; may be repeated.")
    ] = None,
    control_seeds: Annotated[int | None, typer.Option(help="Seeds of each control, the first so many; all by default.", min=1)] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the runs; what is finished there is not run again.")] = Path(
        "runs/study"
    ),
    keep: Annotated[Path | None, typer.Option(help="Where study.json, README.md and study.csv go; OUT by default.")] = None,
    jobs: Annotated[int, typer.Option(help="Runs at a time.", min=1)] = 1,
) -> None:
    """Run the experiment for several seeds and controls and gather what came out. Exit code 5: a run failed (see its log; run again)."""
    from reproduce.scale import ScaleError, load_scale, read_settings
    from reproduce.study.study import CONTROLS, Plan, run_all, write_study

    names = tuple(listed(controls))
    unknown = [c for c in names if c not in CONTROLS]
    if unknown or not names:
        what = f"unknown control {', '.join(unknown)}" if unknown else "an empty list of controls"
        stop(f"{what}; controls are {', '.join(CONTROLS)}", ExitCode.USAGE)
    try:
        numbers = tuple(int(seed) for seed in listed(seeds))
    except ValueError:
        stop(f"--seeds {','.join(seeds)!r}: numbers separated by commas, as 0,1,2", ExitCode.USAGE)
    plan = Plan(out, numbers, names, scale, iterations, twins_seed, base, control_seeds, tuple(settings or ()))
    with errors(kept=KEPT):
        read_settings(settings or [])
        if load_scale(scale).data == "real":
            raise ScaleError(f"scale {scale!r} needs real data; a study runs at a scale of synthetic data (micro, smoke)")
        run_all(plan, jobs=jobs)
    command = "python -m reproduce " + shlex.join(sys.argv[1:])
    for path in write_study(plan, command, keep or out):
        typer.echo(str(path))
    typer.echo((keep or out).joinpath("README.md").read_text(encoding="utf-8"))
