"""`python -m benchmarks`: what is measured, what of it is on this machine, and the synthetic micro world."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.catalog import CATALOG, select
from benchmarks.options import DataOption
from savi.base.cli import KEPT, errors, print_json, run_app, stop
from savi.base.errors import EXIT_CODES_TEXT, ExitCode
from savi.base.former import former_options, listed

if TYPE_CHECKING:
    from benchmarks.data.doctor import Finding

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The benchmarks and the synthetic micro world.", epilog=EXIT_CODES_TEXT)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
NamesArgument = Annotated[list[str] | None, typer.Argument(help="Benchmarks (default: the paper's six), also with commas.")]


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
@former_options(data="--hf-home")
def check(
    benchmarks: NamesArgument = None,
    data: DataOption = None,
    as_json: AsJson = False,
) -> None:
    """What of the data sets is on this machine. Exit code 5 where something is missing. Downloads nothing."""
    from benchmarks.data.layout import check as look
    from benchmarks.data.layout import fix_command

    home = _home(data)
    with errors():
        found = [look(home, b) for b in select(listed(benchmarks))]
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
@former_options(data="--hf-home")
def prepare(
    benchmarks: NamesArgument = None,
    data: DataOption = None,
    download: Annotated[bool, typer.Option("--download", help="Really download; without it only what would be done is said.")] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Fetch the questions (megabytes) and say which videos they need; fetch no video.")
    ] = False,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="Only these tasks' videos, as MVBench's object_shuffle; repeated or with commas."),
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Folder with the repository's files (zip, tar, mp4): take the videos from there.")
    ] = None,
    update: Annotated[bool, typer.Option("--update", help="Take the repository's present commit, not the one prepared before.")] = False,
) -> None:
    """Bring real data sets onto this machine: the questions, and of up to 162 GB each only the videos that the questions need."""
    from benchmarks.data.prepare_command import offline_state, run

    home = _home(data)
    with errors(kept=KEPT):
        wanted = select(listed(benchmarks))
        if (task or source) and len(wanted) != 1:
            stop("--task and --from go with one benchmark", ExitCode.USAGE)
        if not (download or plan or source):
            for b in wanted:
                typer.echo(offline_state(home, b))
            return
        if not source and os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
            stop("HF_HUB_OFFLINE is set; unset it to download", ExitCode.USAGE)
        # Before the hub's library is imported: it reads these once. The login stays where it is.
        os.environ.setdefault("HF_TOKEN_PATH", str(_home(None) / "token"))
        os.environ["HF_HOME"] = str(home)
        failed = run(home, wanted, tasks=listed(task), folder=source, update=update, fetch=not plan, tell=typer.echo)
    if failed:
        raise typer.Exit(ExitCode.MACHINE)


@app.command()
@former_options(data="--hf-home")
def doctor(
    benchmarks: NamesArgument = None,
    data: DataOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Do not open and hash the videos.")] = False,
    as_json: AsJson = False,
) -> None:
    """What is wrong with the data sets on this machine, each fault with its fix. Exit code 5 where something is."""
    from benchmarks.data.doctor import examine

    home = _home(data)
    with errors():
        found = [f for b in select(listed(benchmarks)) for f in examine(home, b, read_videos=not quick)]
    counted = [f for f in found if not f.known]
    if as_json:
        print_json({"hf_home": str(home), "findings": [asdict(f) for f in found], "faults": len(counted)})
    else:
        _print_findings(found)
        typer.echo(f"{len(counted):,} faults, {len(found) - len(counted):,} of known bad videos")
    raise typer.Exit(ExitCode.MACHINE if counted else ExitCode.DONE)


def _print_findings(found: Sequence[Finding], most: int = 20) -> None:
    """A table with at most so many rows of each kind, and each fix once below it."""
    t = Table("benchmark", "fault", "where", "what was found")
    groups: dict[tuple[str, str], list[Finding]] = {}
    for f in found:
        groups.setdefault((f.benchmark, f.what), []).append(f)
    for (name, what), group in groups.items():
        for f in group[:most]:
            t.add_row(name, f"[yellow]{what}[/]" if f.known else f"[red]{what}[/]", f.where, f"known: {f.known}" if f.known else f.detail)
        if len(group) > most:
            t.add_row(name, what, f"and {len(group) - most:,} more", "all of them with --json")
    if found:
        _print(t)
    for fix in dict.fromkeys(f.fix for group in groups.values() for f in group[:most] if not f.known):
        typer.echo(f"fix: {fix}")


@app.command()
@former_options(data="--hf-home")
def overlap(
    benchmarks: NamesArgument = None,
    videos: Annotated[Path | None, typer.Option("--videos", help="Folder of training videos.")] = None,
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the table as CSV.")] = None,
    measure: Annotated[
        int | None, typer.Option("--measure", help="Measure instead, on so many made clips: rates of copies found, false alarms, time.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Training videos that are benchmark videos: by name, by bytes, by look (also re-encoded, scaled, trimmed, mirrored).

    Exit codes: 0 none; 1 some; 5 none, but not all benchmarks are on this machine.
    """
    from benchmarks.overlap import command

    with errors():
        if measure is not None:
            command.measure(measure, as_json=as_json)
            return
        if videos is None or not videos.is_dir():
            stop(f"--videos {videos}: no such folder" if videos else "give --videos DIR, or --measure N", ExitCode.USAGE)
        found = command.run(videos, _home(data), select(listed(benchmarks)), out=out, as_json=as_json)
    raise typer.Exit(found)


@app.command()
@former_options(num_videos="-n")
def micro(
    build_twins: Annotated[Path | None, typer.Option(help="Make the twins of the paper's six benchmarks in this folder.")] = None,
    build_videos: Annotated[Path | None, typer.Option(help="Make unlabelled videos in this folder.")] = None,
    rebuild_base: Annotated[bool, typer.Option("--rebuild-base", help="Train a base model from scratch, on one core.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where the rebuilt base goes (needed with --rebuild-base).")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of what is made (default: 1 for twins and videos, the recipe's for the base).")
    ] = None,
    size: Annotated[str, typer.Option(help="Size of the twins: smoke, micro, or ci (four times micro: enough for a verdict).")] = "micro",
    num_videos: Annotated[int, typer.Option(help="Number of unlabelled videos.")] = 900,
    as_json: AsJson = False,
) -> None:
    """The synthetic micro world: its benchmarks, its videos, its base model."""
    if not (build_twins or build_videos or rebuild_base):
        stop("say what to make: --build-twins DIR, --build-videos DIR or --rebuild-base --out DIR", ExitCode.USAGE)
    if build_twins:
        _build_twins(build_twins, 1 if seed is None else seed, size, as_json)
    if build_videos:
        from benchmarks.micro.world.videos import build_videos as build

        paths = build(build_videos, num_videos, 1 if seed is None else seed)
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


def main(prog_name: str = "python -m benchmarks") -> NoReturn:
    """Run the command line."""
    run_app(app, prog_name)


if __name__ == "__main__":
    main()
