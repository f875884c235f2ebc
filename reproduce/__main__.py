"""`python -m reproduce`: the experiment, its tables, the audit of the published numbers."""

from __future__ import annotations

from typing import NoReturn

import typer

from reproduce.audit import cli as audit_cli
from reproduce.bases import cli as bases_cli
from reproduce.paper import cli as paper_cli
from reproduce.paper import tables_cli
from reproduce.speed import cli as speed_cli
from reproduce.study import cli as study_cli
from savi.base.cli import run_app
from savi.base.errors import EXIT_CODES_TEXT

app = typer.Typer(
    name="reproduce",
    help="Reproduce the VideoSAVi experiment, at the paper's scales or small enough for two CPU cores.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    epilog=EXIT_CODES_TEXT,
)
paper_cli.register(app)
tables_cli.register(app)
audit_cli.register(app)
speed_cli.register(app)
bases_cli.register(app)
study_cli.register(app)


def main(prog_name: str = "python -m reproduce") -> NoReturn:
    """Run the command line."""
    run_app(app, prog_name, several=("paper",))


if __name__ == "__main__":
    main()
