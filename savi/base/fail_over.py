"""`--fail-over 5%`: the share of a command's inputs that may fail before the command itself has failed. What was made is kept."""

from __future__ import annotations

from typing import Annotated

import typer

from savi.base.cli import stop
from savi.base.errors import ExitCode


def read_share(text: str) -> float:
    """ "5%" or "0.05" as 0.05.

    Raises:
        typer.BadParameter: it is no share between 0 and 1.
    """
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise typer.BadParameter(f"{text!r} is no share: write 5% or 0.05")
    return share


FailOver = Annotated[
    float | None,
    typer.Option(
        "--fail-over",
        parser=read_share,
        metavar="SHARE",
        help="End with exit code 5 where more than this share of them failed (5%, 0.05); what was made is kept.",
        show_default="any share may fail",
    ),
]


def stop_over(tolerated: float | None, failed: int, of: int, what: str) -> None:
    """End the command with exit code 5 where more than the tolerated share failed."""
    if tolerated is not None and of and failed > tolerated * of:
        stop(f"{failed:,} of {of:,} {what} failed, more than --fail-over {100 * tolerated:g}%; the rest is kept", ExitCode.MACHINE)
