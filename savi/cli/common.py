"""What all of `python -m savi`'s commands share: options, loading a model, progress, and errors as one line with an exit code."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from savi.engine.video_lm import VideoLM

NOTHING, USAGE, BROKEN, MACHINE = 1, 2, 4, 5

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        envvar="SAVI_MODEL",
        metavar="FOLDER|OWNER/NAME",
        help="A native checkpoint folder, or a Hugging Face id. The small model shipped with the project: benchmarks/micro/base.",
        show_default=False,
    ),
]
FramesOption = Annotated[int, typer.Option("--num-frames", "-n", min=1, help="Frames per video, each from the middle of an equal segment.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def load_model(model: str, device: str) -> VideoLM:
    from savi.base.hub import find_native

    folder = find_native(model, tell=tell)  # before torch is imported: a wrong name is told at once
    import torch

    from savi.engine.video_lm import VideoLM

    if device != "auto":
        try:
            kind = torch.device(device).type
        except RuntimeError:
            stop(f"--device {device}: no such device; use auto, cpu, cuda or cuda:N", USAGE)
        if kind == "cuda" and not torch.cuda.is_available():
            stop(f"--device {device}: torch finds no CUDA device here; use --device cpu", MACHINE)
    return VideoLM.from_pretrained(folder, device=device)


@contextmanager
def usage() -> Iterator[None]:
    """Settings that refuse a value say so; that is the user's to mend."""
    try:
        yield
    except ValueError as error:
        stop(error, USAGE)


class Clock:
    """Seconds of each step, in order."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 4)
        self._last = now


@contextmanager
def errors() -> Iterator[None]:
    """Known errors become one line on stderr and an exit code; an unknown one is a bug and keeps its traceback."""
    from savi.video.frames import VideoError

    try:
        yield
    except VideoError as error:
        stop(error, USAGE if error.kind == "missing" else BROKEN)
    except ModuleNotFoundError as error:
        stop(f"{error} (a package is missing: install the project with pip install -e .)", MACHINE)
    except OSError as error:
        stop(error, MACHINE)
    except Exception as error:
        code = _code(error)
        if code is None:
            raise
        stop(error, code)


def _code(error: Exception) -> int | None:
    """The exit code of an error of this project or of torch; the classes are only looked at where their module is loaded already."""
    codes = {
        ("savi.base.hub", "NoSuchModelError"): USAGE,
        ("savi.base.hub", "HubError"): MACHINE,
        ("savi.conversion.config", "TargetError"): USAGE,
        ("savi.conversion.config", "NoRoomError"): MACHINE,
        ("savi.conversion.config", "CheckpointError"): BROKEN,
        ("savi.engine.video_lm", "ContextError"): USAGE,
        ("savi.engine.video_lm", "ModelError"): BROKEN,
        ("savi.families.base", "FamilyError"): USAGE,
        ("savi.loop.propose", "ResumeError"): USAGE,
        ("savi.base.files", "FileFormatError"): BROKEN,
        ("torch", "OutOfMemoryError"): MACHINE,
        ("torch", "AcceleratorError"): MACHINE,
    }
    for (module, name), code in codes.items():
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type) and isinstance(error, kind):
            return code
    return None


def stop(message: object, code: int) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)


def tell(sentence: str) -> None:
    typer.echo(sentence, err=True)


def print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


@contextmanager
def bar(what: str) -> Iterator[Any]:
    """A progress bar on stderr, on a terminal only; gives a function to call with (done, total)."""
    console = Console(stderr=True)
    columns = (TextColumn(escape(what)), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
