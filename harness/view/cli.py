"""`python -m harness view DIR`: the runs of a folder in a browser. `python -m harness bundle DIR`: the same as a static site."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from benchmarks.options import DataOfRun
from savi.base.cli import Stopped, errors, print_json, stop, tell
from savi.base.errors import ExitCode
from savi.base.former import former_options

Folder = Annotated[Path, typer.Argument(help="A folder with runs, or one run.", show_default="runs")]


@former_options(data="--hf-home")
def view(
    folder: Folder = Path("runs"),
    data: DataOfRun = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of 127.0.0.1; 0: a free one.")] = 0,
) -> None:
    """Show the runs of a folder in a browser, until Ctrl-C. Reads only; reachable from this machine only, with the address it prints."""
    from harness.view.pages import Site
    from harness.view.server import Viewer

    for name in (folder, *([data] if data else [])):
        if not name.is_dir():
            stop(f"{name}: no such folder", ExitCode.USAGE)
    try:
        server = Viewer(Site(folder, [data] if data else []), port=port)
    except OSError as e:
        stop(f"port {port} of this machine: {e.strerror}; --port 0 takes a free one", ExitCode.MACHINE)
    try:
        typer.echo(server.address)
        tell("serving to this machine only; Ctrl-C ends it")
        server.serve_forever()
    except (KeyboardInterrupt, Stopped):
        tell("ended")
    finally:
        server.server_close()


@former_options(data="--hf-home")
def bundle(
    folder: Folder = Path("runs"),
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the site; an older bundle there is replaced.")] = Path("site"),
    media: Annotated[
        Literal["none", "frames", "videos"],
        typer.Option(help="What of the videos goes along: nothing, frames, or the files too."),
    ] = "frames",
    max_mb: Annotated[float, typer.Option(min=0, help="Most megabytes of the site; videos that do not fit are shown as frames.")] = 500,
    data: DataOfRun = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write a static site of all runs of a folder, to share: no local paths, no credentials.

    Exit code 4: a run could not be read and was left out, or a path or credential was left and nothing was written.
    """
    from harness.view.bundle import Wanted, write_bundle

    for name in (folder, *([data] if data else [])):
        if not name.is_dir():
            stop(f"{name}: no such folder", ExitCode.USAGE)
    with errors():
        made = write_bundle(folder, out, Wanted(media, max_mb, data), tell=tell)
    for problem in made.problems:
        tell(problem)
    if as_json:
        print_json({"site": str(out), **asdict(made)})
    else:
        videos = f", {made.videos:,} videos ({made.videos_left_out:,} left out)" if media == "videos" else ""
        typer.echo(f"{out / 'index.html'}: {made.runs:,} runs, {made.bytes / 1e6:.1f} MB{videos}")
    raise typer.Exit(ExitCode.BROKEN if made.problems else ExitCode.DONE)


def register(app: typer.Typer) -> None:
    """Add `view` and `bundle` to `app`."""
    app.command()(view)
    app.command()(bundle)
