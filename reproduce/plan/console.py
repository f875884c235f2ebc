"""What `python -m reproduce paper --dry-run` prints: the plan of every scale as tables or JSON, and what training needs on each GPU."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from savi.base.cli import stop
from savi.base.errors import ExitCode

if TYPE_CHECKING:
    from rich.console import Console

    from reproduce.plan.plan import Cost, Plan


def calibrate_machine(device: str, videos: Path | None) -> None:
    """Measure this machine and keep its figures."""
    import torch

    from reproduce.plan.calibrate import calibrate
    from reproduce.plan.figures import keep
    from savi.video.frames import find_videos

    if device == "cuda" and not torch.cuda.is_available():
        stop(
            "--calibrate measures this machine's GPU for this scale, and torch sees none; leave it out to plan with an H200's",
            ExitCode.MACHINE,
        )
    path = keep(calibrate(device, find_videos(videos) if videos is not None else ()), device)
    typer.echo(f"measured this machine -> {path}", err=True)


def print_plans(chosen: str, why: str, overrides: Mapping[str, tuple[Any, str]], *, gpus: int, as_json: bool) -> None:
    """The plan of every scale, the chosen one with the options given."""
    from rich.console import Console

    from reproduce.plan.plan import all_plans, make_plan
    from reproduce.scale import load_scale

    plans = [p if p.scale != chosen else make_plan(load_scale(chosen, overrides), gpus=gpus) for p in all_plans(gpus)]
    if as_json:
        typer.echo(json.dumps({"chosen": chosen, "why": why, "plans": [p.to_dict() for p in plans]}, indent=1))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"dry run: nothing is fetched, made or trained\nscale {chosen}: {why}\n", markup=False)
    plan = next(p for p in plans if p.scale == chosen)
    _print_costs(console, f"scale {plan.scale}: {plan.title}", "stage", [*((c.stage, c) for c in plan.costs), ("all", plan.total)])
    console.print()
    where = "one GPU" if gpus == 1 else f"{gpus} GPUs"
    _print_costs(console, f"all scales (time: on {where}; micro and smoke: 2 CPU cores)", "scale", [(p.scale, p.total) for p in plans])
    console.print()
    if plan.memory:
        _print_memory(console, plan)
        console.print()
    for p in plans:
        console.print(f"{p.scale} needs {p.needs}", markup=False)
    console.print("assumed: " + "; ".join(plan.assumptions), markup=False)


def _print_costs(console: Console, title: str, first: str, rows: Sequence[tuple[str, Cost]]) -> None:
    from rich.table import Table

    from reproduce.plan.plan import hours_text

    view = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for i, column in enumerate((first, "videos", "prompts", "M tokens", "PFLOP", "time", "disk GB")):
        view.add_column(column, justify="left" if i == 0 else "right")
    for label, c in rows:
        view.add_row(
            label, f"{c.videos:,}", f"{c.prompts:,}", f"{c.tokens_m:,.1f}", f"{c.pflop:,.3g}", hours_text(c.hours), f"{c.disk_gb:,.1f}"
        )
    console.print(view)


def _print_memory(console: Console, plan: Plan) -> None:
    """What training needs on each GPU, the ways that this scale can be trained side by side."""
    from rich.table import Table

    where = "the GPU" if plan.gpus == 1 else f"each of {plan.gpus} GPUs"
    view = Table(title=f"scale {plan.scale}, training: GB on {where}", title_justify="left", show_edge=False, pad_edge=False)
    view.add_column("")
    for way in plan.memory:
        view.add_column(way.name.replace(", ", ",\n"), justify="right")
    for part, words in _PARTS.items():
        values = [getattr(way.memory, part) / 1e9 for way in plan.memory]
        view.add_row(words, *(f"{value:,.1f}" if value else "–" for value in values))
    view.add_row("fits a GPU of", *(f"{way.fits} GB" if way.fits else "none" for way in plan.memory))
    console.print(view)


_PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimiser": "optimiser",
    "in_use": "copies and layers in use",
    "activations": "activations and logits",
    "start": "whole, before it is in shards",
    "peak": "at most",
}
