"""`python -m reproduce tables DIR`: a run's tables made anew from its records, and printed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

FORMATS = ("text", "md", "latex", "csv", "json", "html")
USAGE, INTEGRITY = 2, 4


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("tables")(tables_command)


def tables_command(
    run: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder, as `python -m reproduce paper` leaves it.")],
    fmt: Annotated[str, typer.Option("--format", help=f"What is printed: {', '.join(FORMATS)}.")] = "text",
    rule: Annotated[str, typer.Option(help="strict (unread answers are wrong) or upstream (exactly as lmms-eval scores).")] = "strict",
    write: Annotated[bool, typer.Option("--write/--no-write", help="Also write DIR/tables/ as Markdown, LaTeX and CSV.")] = True,
) -> None:
    """Make a run's tables from its records: base, iterations and, at the paper's scales, the published rows."""
    from harness.records import RecordError
    from harness.tables.table import TableError
    from reproduce.console import RunConsole
    from reproduce.paper import print_table
    from reproduce.published import experiment_table
    from reproduce.work import all_evaluations, write_tables

    if fmt not in FORMATS or rule not in ("strict", "upstream"):
        _fail(f"--format is one of {', '.join(FORMATS)} and --rule strict or upstream, not {fmt!r} and {rule!r}", USAGE)
    try:
        rows = all_evaluations(run)
        if not rows:
            _fail(f"{run}: no evaluation here (looked for base/eval/<benchmark>/score.json)", USAGE)
        scale = next(iter(rows["base"].values())).score.scale
        names = list(rows["base"])
        if write:
            write_tables(run, scale, rows, names)
        if fmt == "text" and rule == "strict":
            print_table(run, scale, RunConsole(), names)
        else:
            table = experiment_table(rows, scale=scale, rule=rule, benchmarks=names)  # type: ignore[arg-type]
            typer.echo(table.render("md" if fmt == "text" else fmt))  # type: ignore[arg-type]
    except (RecordError, TableError) as e:
        _fail(str(e), INTEGRITY)
    except OSError as e:
        _fail(f"{e.filename}: {e.strerror}", USAGE)


def _fail(text: str, code: int) -> None:
    typer.echo(f"tables: {text}", err=True)
    raise typer.Exit(code)
