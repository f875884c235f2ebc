"""`python -m reproduce tables DIR`: a run's tables made anew from its records, and printed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from savi.base.cli import errors, stop
from savi.base.errors import ExitCode

FORMATS = ("text", "md", "latex", "csv", "json", "html")


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("tables")(tables_command)


def tables_command(
    run: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder, as `python -m reproduce paper` leaves it.")],
    fmt: Annotated[str, typer.Option("--format", help=f"What is printed: {', '.join(FORMATS)}.")] = "text",
    rule: Annotated[
        str | None, typer.Option(help="strict (unread answers are wrong) or upstream (as lmms-eval; the default beside published numbers).")
    ] = None,
    write: Annotated[bool, typer.Option("--write/--no-write", help="Also write DIR/tables/ as Markdown, LaTeX and CSV.")] = True,
) -> None:
    """Make a run's tables from its records: base, iterations and, where there are any, the published rows of its scale."""
    from reproduce.paper.console import RunConsole
    from reproduce.paper.paper import print_table
    from reproduce.paper.results import all_evaluations, write_tables
    from reproduce.published import experiment_table, shown_rule

    if fmt not in FORMATS or rule not in (None, "strict", "upstream"):
        stop(f"--format is one of {', '.join(FORMATS)} and --rule strict or upstream, not {fmt!r} and {rule!r}", ExitCode.USAGE)
    with errors():
        rows = all_evaluations(run)
        if not rows:
            stop(f"{run}: no evaluation here (looked for base/eval/<benchmark>/score.json)", ExitCode.USAGE)
        scale = next(iter(rows["base"].values())).score.scale
        names = list(rows["base"])
        if write:
            write_tables(run, scale, rows, names)
        if fmt == "text" and rule in (None, shown_rule(scale, rows)):
            print_table(run, scale, RunConsole(), names)
        else:
            table = experiment_table(rows, scale=scale, rule=rule or shown_rule(scale, rows), benchmarks=names)  # type: ignore[arg-type]
            typer.echo(table.render("md" if fmt == "text" else fmt))  # type: ignore[arg-type]
