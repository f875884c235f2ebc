"""`python -m savi export` and `push`: pairs in the formats of other tools; pairs and models on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from savi.base.cli import errors, stop, tell
from savi.base.errors import ExitCode
from savi.base.former import former_options
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
    str | None,
    typer.Option(
        "--from-format", metavar="|".join(NAMES), help="The format of the pairs that are read.", show_default="as the first row says"
    ),
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


@former_options(from_format="--from")
def export(
    pairs: PairsArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write: .jsonl, .json (an array) or .parquet.", show_default=False)],
    style: Annotated[str, typer.Option("--format", metavar="|".join(NAMES), help=f"What to write. {_TABLE}.")] = "trl",
    from_format: InFormatOption = None,
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

        found = read(pairs, from_format, videos)
        written = write_any_pairs(out, found, style, relative=relative)
    typer.echo(f"{len(found)} pairs -> {', '.join(map(str, written))}")


def push(
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER|FILE", help="A model folder, or a file of pairs.", show_default=False, exists=True)
    ],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository; made where there is none.", show_default=False)],
    public: Annotated[bool, typer.Option("--public", help="Make it public; without this it is private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the files and their sizes; send nothing.")] = False,
    style: Annotated[str, typer.Option("--format", metavar="|".join(NAMES), help="The format that pairs are sent in.")] = "trl",
    with_videos: Annotated[bool, typer.Option("--with-videos", help="Send the videos of the pairs too.")] = False,
) -> None:
    """Bring a model or a set of pairs to the Hugging Face hub, with its card, in one commit.

    The token is the hub client's own (`hf auth login`, or HF_TOKEN). Pairs are sent without paths of this machine.
    """
    from tempfile import TemporaryDirectory

    with errors(kept="nothing was sent in part: a push is one commit; run the same command again"), TemporaryDirectory() as scratch:
        from savi.publish.push import check_id, plan_model, plan_pairs
        from savi.publish.push import push as send

        check_id(repository)
        made = Path(scratch)
        upload = plan_model(source, made) if source.is_dir() else plan_pairs(source, made, name=style, with_videos=with_videos)
        sizes = upload.sizes
        total = f"{len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB"
        if dry_run:
            for name, size in sizes.items():
                typer.echo(f"{size:>14,}  {name}")
            kind = f"{'public' if public else 'private'} {upload.kind} repository"
            typer.echo(f"{total} would go to the {kind} {repository}; nothing was sent")
            return
        tell(f"sending {total} to {repository}")
        typer.echo(send(upload, repository, public=public))


def register(app: typer.Typer) -> None:
    """Put the commands into `python -m savi`."""
    app.command(epilog="Example: python -m savi push trained/model OWNER/NAME --dry-run")(push)
    app.command(epilog="Example: python -m savi export pairs.jsonl --format ms-swift --out swift.jsonl")(export)
