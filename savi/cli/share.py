"""`python -m savi export`: pairs in the formats of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from savi.base.cli import errors, stop, tell
from savi.base.errors import ExitCode
from savi.formats.table import FORMATS, NAMES

if TYPE_CHECKING:
    from savi.loop.preferences import PreferencePair

_TABLE = "; ".join([*(f"{name}: {one.tool}" for name, one in FORMATS.items()), "savi: this project's own"])
PairsArgument = Annotated[
    str,
    typer.Argument(
        metavar="FILE|FOLDER|OWNER/NAME",
        help="Pairs, made by `savi pairs` or in the format of another tool: JSON Lines, a JSON array, Parquet, a folder that `datasets` "
        "reads, or a data set of the hub.",
        show_default=False,
    ),
]
InFormatOption = Annotated[
    str | None, typer.Option("--format", metavar="|".join(NAMES), help="The format of the pairs.", show_default="as the first row says")
]
VideosOption = Annotated[
    Path | None,
    typer.Option("--videos", help="Where relative paths of videos start.", show_default="the folder of the pairs", file_okay=False),
]


def read(source: str, name: str | None, videos: Path | None) -> list[PreferencePair]:
    """The pairs a user names; none at all ends the command."""
    from savi.formats.table import read_any_pairs

    found = read_any_pairs(source, name=name, videos=videos, tell=tell)
    if not found:
        stop(f"{source}: holds no pair", ExitCode.FAIL)
    return found


def export(
    pairs: PairsArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write: .jsonl, .json (an array) or .parquet.", show_default=False)],
    style: Annotated[str, typer.Option("--format", metavar="|".join(NAMES), help=f"What to write. {_TABLE}.")] = "trl",
    given: Annotated[
        str | None, typer.Option("--from", metavar="|".join(NAMES), help="The format of the pairs.", show_default="as the first row says")
    ] = None,
    videos: VideosOption = None,
    relative: Annotated[
        bool | None,
        typer.Option(
            "--relative-paths/--absolute-paths",
            help="Paths of videos from the file's folder, or from the root.",
            show_default="as the tool resolves them",
        ),
    ] = None,
) -> None:
    """Write preference pairs in a format that other trainers read; `savi train` reads each of them back."""
    with errors():
        from savi.formats.table import write_any_pairs

        if Path(pairs).exists() and out.exists() and out.samefile(pairs):
            stop(f"--out {out}: is the file that is read; name another", ExitCode.USAGE)
        found = read(pairs, given, videos)
        written = write_any_pairs(out, found, style, relative=relative)
    typer.echo(f"{len(found)} pairs -> {', '.join(map(str, written))}")


def register(app: typer.Typer) -> None:
    """Put the command into `python -m savi`."""
    app.command(epilog="Example: python -m savi export pairs.jsonl --format ms-swift --out swift.jsonl")(export)
