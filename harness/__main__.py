"""`python -m harness`: measure, decide, tell."""

from __future__ import annotations

import typer

from harness import doctor, evaluate_cli, gate_cli, leaderboard_cli, report_cli

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Measures a video language model, decides what a difference means, and tells it."
)
for module in (evaluate_cli, gate_cli, leaderboard_cli, report_cli, doctor):
    module.register(app)

if __name__ == "__main__":
    app(prog_name="python -m harness")
