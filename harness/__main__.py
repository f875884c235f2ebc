"""`python -m harness`: measure, decide, tell."""

from __future__ import annotations

from typing import NoReturn

import typer

from harness.gate import cli as gate_cli
from harness.gate.early import cli as check_cli
from harness.gate.simulation import cli as simulation_cli
from harness.report import cli as report_cli
from harness.run import cli as evaluate_cli
from harness.run import doctor, launcher
from harness.tables.leaderboard import cli as leaderboard_cli
from harness.view import cli as view_cli
from savi.base.cli import run_app
from savi.base.errors import EXIT_CODES_TEXT

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Measures a video language model, decides what a difference means, and tells it.",
    epilog=EXIT_CODES_TEXT,
)
for module in (evaluate_cli, gate_cli, check_cli, simulation_cli, leaderboard_cli, report_cli, view_cli, doctor, launcher):
    module.register(app)


def main(prog_name: str = "python -m harness") -> NoReturn:
    """Run the command line."""
    run_app(app, prog_name, several=("evaluate", "check", "lmms-eval"), json_alone=("evaluate",))


if __name__ == "__main__":
    main()
