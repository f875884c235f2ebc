"""`python -m benchmarks`: what is measured, what of it is on this machine, and the synthetic micro world."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.catalog import CATALOG, select
from savi.base.cli import KEPT, errors, print_json, run_app, stop
from savi.base.errors import ExitCode

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The benchmarks and the synthetic micro world.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Home = Annotated[Path | None, typer.Option("--hf-home", help="Where the data sets lie (default: HF_HOME, else ~/.cache/huggingface).")]


def _home(given: Path | None) -> Path:
    return (given or Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))).expanduser().resolve()


def _print(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else 140).print(table)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """The benchmarks: lmms-eval task, questions, videos, headline key, margin."""
    if as_json:
        print_json([{**asdict(b), "n": b.n} for b in CATALOG.values()])
        return
    t = Table("benchmark", "lmms-eval task", "data set", "split", "questions", "videos", "key", "margin", "download")
    for b in CATALOG.values():
        t.add_row(
            b.name + (" (optional)" if b.optional else ""),
            b.group,
            b.repo,
            b.split,
            f"{b.n:,}",
            f"{b.videos:,}",
            f"{b.metric} (0-{b.unit})",
            f"±{b.margin.points:g}",
            f"{b.download_gb:g} GB",
        )
    _print(t)


@app.command()
def check(
    benchmarks: Annotated[list[str] | None, typer.Argument(help="Benchmarks (default: the paper's six).")] = None,
    hf_home: Home = None,
    as_json: AsJson = False,
) -> None:
    """What of the data sets is on this machine. Exit code 5 where something is missing. Downloads nothing."""
    from benchmarks.data.layout import check as look
    from benchmarks.data.layout import fix_command

    home = _home(hf_home)
    with errors():
        found = [look(home, b) for b in select(benchmarks)]
    if as_json:
        print_json({"hf_home": str(home), "benchmarks": [{**asdict(s), "ready": s.ready} for s in found]})
    else:
        t = Table("benchmark", "state", "questions", "videos", "on disk", "missing", "note", title=f"data sets below {home}")
        for s in found:
            state = "[green]ready[/]" if s.ready else "[red]incomplete[/]" if s.n else "[yellow]absent[/]"
            note = f"download {s.download_gb:g} GB" + (", gated: licence and login" if s.gated else "")
            missing = f"{len(s.missing):,}: {s.missing[0]}" if s.missing else "-"
            t.add_row(
                s.benchmark,
                state,
                f"{s.n:,} of {s.n_expected:,}",
                f"{s.videos:,}",
                f"{s.bytes / 1e6:,.1f} MB",
                missing,
                "" if s.ready else note,
            )
        _print(t)
        for s in found:
            if not s.ready:
                typer.echo(f"{s.benchmark}: {fix_command(home, s.benchmark)}", err=True)
    raise typer.Exit(ExitCode.DONE if all(s.ready for s in found) else ExitCode.MACHINE)


@app.command()
def prepare(
    benchmarks: Annotated[list[str], typer.Argument(help="Benchmarks to bring onto this machine.")],
    hf_home: Home = None,
    download: Annotated[bool, typer.Option("--download", help="Really download; without it only what would be done is said.")] = False,
) -> None:
    """Download and unpack real data sets (up to 162 GB each), only with --download."""
    from benchmarks.data import download as d
    from benchmarks.data.layout import check as look

    home = _home(hf_home)
    with errors(kept=KEPT):
        wanted = select(benchmarks)
        for b in wanted:
            status = look(home, b)
            if status.ready:
                typer.echo(f"{b.name}: ready, {status.n:,} questions on {status.videos:,} videos")
            elif not download:
                gated = " (gated: accept the licence, log in)" if status.gated else ""
                typer.echo(f"{b.name}: would download about {b.download_gb:g} GB from {b.repo}{gated} to {home}; say --download to do it")
            else:
                if os.environ.get("HF_HUB_OFFLINE") == "1":
                    stop("HF_HUB_OFFLINE=1 is set; unset it to download", ExitCode.USAGE)
                os.environ["HF_HOME"] = str(home)
                status = d.prepare(home, b)
                typer.echo(f"{b.name}: {status.n:,} questions on {status.videos:,} videos, {len(status.missing):,} files missing")
                if not status.ready:
                    stop(
                        f"{b.name} is not complete: {', '.join(status.missing[:5]) or f'{status.n} of {status.n_expected} questions'}",
                        ExitCode.MACHINE,
                    )


@app.command()
def micro(
    build_twins: Annotated[Path | None, typer.Option(help="Make the twins of the paper's six benchmarks in this folder.")] = None,
    build_videos: Annotated[Path | None, typer.Option(help="Make unlabelled videos in this folder.")] = None,
    rebuild_base: Annotated[
        bool, typer.Option("--rebuild-base", help="Train the base model from nothing (half an hour or more, on one core).")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Where the rebuilt base goes (needed with --rebuild-base).")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of what is made (default: 1 for twins and videos, the recipe's for the base).")
    ] = None,
    size: Annotated[str, typer.Option(help="Size of the twins: smoke or micro.")] = "micro",
    n: Annotated[int, typer.Option("-n", help="Number of unlabelled videos.")] = 900,
    as_json: AsJson = False,
) -> None:
    """The synthetic micro world: its benchmarks, its videos, its base model."""
    if not (build_twins or build_videos or rebuild_base):
        stop("say what to make: --build-twins DIR, --build-videos DIR or --rebuild-base --out DIR", ExitCode.USAGE)
    if build_twins:
        _build_twins(build_twins, 1 if seed is None else seed, size, as_json)
    if build_videos:
        from benchmarks.micro.world.videos import build_videos as build

        paths = build(build_videos, n, 1 if seed is None else seed)
        typer.echo(
            json.dumps({"videos": len(paths), "folder": str(build_videos)}) if as_json else f"{len(paths):,} videos in {build_videos}"
        )
    if rebuild_base:
        if out is None:
            stop("--rebuild-base needs --out DIR (the shipped base is not overwritten by accident)", ExitCode.USAGE)
        from benchmarks.micro.pretrain.recipe import Recipe, rebuild

        typer.echo(json.dumps(rebuild(out, replace(Recipe(), seed=seed) if seed is not None else None), indent=1, default=str))


def _build_twins(folder: Path, seed: int, size: str, as_json: bool) -> None:
    from benchmarks.micro.twins.twins import SIZES
    from benchmarks.micro.twins.twins import build_twins as build

    if size not in SIZES:
        stop(f"unknown twin size {size!r}; choose from {', '.join(SIZES)}", ExitCode.USAGE)
    with errors():
        twins = build(folder, seed=seed, size=size)  # type: ignore[arg-type]
    if as_json:
        print_json({**asdict(twins), "hf_home": str(twins.hf_home)})
        return
    t = Table("benchmark", "questions", "videos", title=f"twins in {folder} (seed {seed}, {size}, fingerprint {twins.fingerprint[:12]})")
    for name, count in twins.n.items():
        t.add_row(name, f"{count:,}", f"{twins.videos[name]:,}")
    t.add_row("all", f"{sum(twins.n.values()):,}", f"{sum(twins.videos.values()):,}")
    _print(t)


if __name__ == "__main__":
    run_app(app, "python -m benchmarks")
