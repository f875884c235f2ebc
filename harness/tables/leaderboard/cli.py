"""`python -m harness leaderboard PATHS...`: one table a scale, of our runs, stock lmms-eval results and published rows."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from savi.base.errors import ExitCode
from savi.base.former import former_options, listed


class FormatChoice(StrEnum):
    """Output formats."""

    md = "md"
    latex = "latex"
    html = "html"
    csv = "csv"
    json = "json"


class RuleChoice(StrEnum):
    """Which score is ranked."""

    upstream = "upstream"
    strict = "strict"


class DataChoice(StrEnum):
    """What stock results were measured on."""

    real = "real"
    micro = "micro"


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("leaderboard")(leaderboard_command)


@former_options(benchmarks="--benchmark")
def leaderboard_command(
    paths: Annotated[list[Path], typer.Argument(help="Folders with runs, stock lmms-eval results, published tables.")],
    fmt: Annotated[FormatChoice, typer.Option("--format", help="Output format.")] = FormatChoice.md,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write to this file instead of standard output.")] = None,
    rule: Annotated[RuleChoice, typer.Option(help="upstream: as lmms-eval reports. strict: only our runs.")] = RuleChoice.upstream,
    stock_scale: Annotated[str | None, typer.Option(help="Scale of the stock results (8b, micro, ...).")] = None,
    stock_data: Annotated[DataChoice, typer.Option(help="Data of the stock results: real, or micro (the twins).")] = DataChoice.real,
    alpha: Annotated[float, typer.Option(min=0.0001, max=0.4999, help="Error rate of a column's ranks.")] = 0.05,
    benchmarks: Annotated[
        list[str] | None, typer.Option("--benchmarks", help="Only these benchmarks (default: the paper's six); repeated or with commas.")
    ] = None,
    all_stages: Annotated[bool, typer.Option("--all-stages", help="Every iteration of a run, not only base and the last.")] = False,
    published: Annotated[bool, typer.Option(help="Show published rows found below the paths.")] = True,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Leave out what cannot be trusted; exit code stays 4.")] = False,
) -> None:
    """Rank models, with the ranks that their answers leave possible; scales are never mixed."""
    from benchmarks.catalog import UnknownBenchmarkError, select
    from harness.escape import visible
    from harness.tables.leaderboard.entry import LeaderboardError
    from harness.tables.leaderboard.ranking import leaderboard, render
    from harness.tables.leaderboard.read import discover
    from savi.base.files import write_text_atomic

    def say(text: str) -> None:
        typer.echo(f"leaderboard: {visible(text, 2000)}", err=True)

    try:
        names = [b.name for b in select(listed(benchmarks))]
        found = discover(
            paths, rule=rule.value, stock_scale=stock_scale, stock_data=stock_data.value, all_stages=all_stages, published=published
        )
    except (LeaderboardError, UnknownBenchmarkError) as e:
        say(str(e))
        raise typer.Exit(ExitCode.USAGE) from e
    for problem in found.problems:
        say(problem)
    if found.problems and not (keep_going and found.entries):
        say("nothing was ranked; fix or remove the above, or leave it out with --keep-going")
        raise typer.Exit(ExitCode.BROKEN)
    tables = leaderboard(found.entries, rule=rule.value, alpha=alpha, benchmarks=names)
    text = render(tables, "json" if as_json else fmt.value)
    if out is None:
        sys.stdout.write(text)
    else:
        try:
            write_text_atomic(out, text)
        except OSError as e:
            say(f"{out}: cannot be written: {e.strerror or e}")
            raise typer.Exit(ExitCode.MACHINE) from e
        typer.echo(f"{len(tables)} table(s), {len(found.entries)} models: {visible(str(out))}")
    if found.problems:
        raise typer.Exit(ExitCode.BROKEN)
