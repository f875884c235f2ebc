"""The command `videosavi`: savi's commands by their own names (`videosavi ask`), those of the other packages behind the package's name.

`python -m savi|benchmarks|harness|reproduce` are the same commands. A package is imported when one of its commands is called, so that
each `--help` costs no more than there.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import NoReturn

import typer

from savi.base.cli import run_app

PACKAGES = {
    "harness": "Measure a model, decide what a difference means, tell it: evaluate, gate, check, report, ...",
    "benchmarks": "The benchmarks, their data and the synthetic micro world: list, check, prepare, micro, ...",
    "reproduce": "The experiment, its tables, the audit of the published numbers: paper, tables, study, ...",
}


def main() -> NoReturn:
    """Run the command line."""
    if sys.argv[1:] and sys.argv[1] in PACKAGES:
        run_package(sys.argv[1], sys.argv[2:])
    savi = importlib.import_module("savi.__main__")
    run_app(command_line(savi.app), "videosavi", several=savi.SEVERAL, json_alone=savi.JSON_ALONE)


def command_line(savi: typer.Typer) -> typer.Typer:
    """savi's commands and, below them, the packages."""
    app = typer.Typer(
        name="videosavi", no_args_is_help=True, add_completion=False, rich_markup_mode="rich", help=savi.info.help, epilog=savi.info.epilog
    )
    app.registered_commands += savi.registered_commands
    for package, what in PACKAGES.items():
        settings = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
        app.command(package, help=what, rich_help_panel="Packages", context_settings=settings)(_called(package))
    return app


def run_package(package: str, arguments: list[str]) -> NoReturn:
    """The command line of a package, as by `python -m`."""
    sys.argv = [f"videosavi {package}", *arguments]
    importlib.import_module(f"{package}.__main__").main(f"videosavi {package}")
    raise AssertionError("a command line ends the process")


def _called(package: str) -> Callable[[typer.Context], None]:
    def call(ctx: typer.Context) -> None:
        run_package(package, ctx.args)

    return call
