"""`python -m harness report RUN`: the run as one HTML file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.options import DataOfRun
from savi.base.cli import errors, stop
from savi.base.errors import ExitCode
from savi.base.former import former_options


def register(app: typer.Typer) -> None:
    """Add the `report` command to `app`."""

    @app.command()
    @former_options(data="--hf-home")
    def report(
        run: Annotated[Path, typer.Argument(help="A run folder (runs/<name>).")],
        out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to write it (default: RUN/report.html).")] = None,
        data: DataOfRun = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print the file's path and size as JSON.")] = False,
    ) -> None:
        """Write a self-contained HTML report of a run: opens offline, asks nothing of the network.

        What of the run cannot be read is left out, and the page says so: that is no exit code 4 here.
        """
        from harness.report.page import write_report

        if data is not None and not data.is_dir():
            stop(f"--data {data}: no such folder", ExitCode.USAGE)
        with errors():
            path = write_report(run, out, data=data)
        size = path.stat().st_size
        typer.echo(json.dumps({"report": str(path), "bytes": size}) if as_json else f"{path} ({size / 1e6:.1f} MB)")
