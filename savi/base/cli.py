"""What the command lines of all four packages share: errors as one line with an exit code, stop signals, clocks, JSON, progress bars."""

from __future__ import annotations

import errno
import gc
import json
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, redirect_stdout
from types import FrameType
from typing import Any, NoReturn, TextIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from savi.base.errors import ExitCode, SaviError, one_line
from savi.base.processes import is_first, leave_launch_of_one, refuse_several_processes

KEPT = "what is finished is kept; run the same command to go on"
_SIGNALS = {signal.SIGINT: ExitCode.INTERRUPTED, signal.SIGTERM: ExitCode.TERMINATED}


_commands_stdout: TextIO | None = None
"""stdout while a command with --json is at work."""


class Stopped(BaseException):
    """A signal asked this process to end; not an Exception, so that no handler on the way takes it for a failure of its work."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = _SIGNALS[signal.Signals(number)]


def stop(message: object, code: int) -> NoReturn:
    """End the command: one line on stderr, no traceback."""
    typer.echo(f"error: {printable(message)}", err=True)
    raise typer.Exit(int(code))


def printable(message: object) -> str:
    """A message without what a terminal would obey: control characters in names of files and in texts are spelled out."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in str(message))


def tell(sentence: str) -> None:
    """Say something on stderr."""
    typer.echo(printable(sentence), err=True)


def print_text(text: str) -> None:
    """Write to stdout. A reader that has gone away (`| grep -q`, `| head`) is not a failure of this command: the rest is dropped."""
    out = _commands_stdout or sys.stdout
    try:
        typer.echo(text, file=out)
        out.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())  # so that nothing written later, or at exit, breaks again


def print_json(value: Any) -> None:
    """The `--json` output of a command, on stdout."""
    print_text(json.dumps(value, indent=1, ensure_ascii=False))


def run_app(app: typer.Typer, prog_name: str, several: Collection[str] = (), json_alone: Collection[str] = ()) -> NoReturn:
    """Run a command line; SIGINT and SIGTERM end it with 130 and 143 and one line, whatever it was doing. `several`: the commands that
    share their work among the processes of a `torchrun`; the others are refused there. `json_alone`: the commands that import libraries
    which print to stdout; their own stdout is all by `print_json` where --json is given.

    Libraries' notes to their callers' authors (FutureWarning, DeprecationWarning) are left out unless Python was told otherwise (`python -W
    default -m ...`). This project's own warnings are UserWarnings; none of those is hidden, and each is one line.
    """
    if not sys.warnoptions:
        for kind in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
            warnings.simplefilter("ignore", kind)
        warnings.formatwarning = _format_warning
    try:
        with stop_signals():
            try:
                leave_launch_of_one()
                _refuse_several(prog_name, several)
                with _json_alone(json_alone):
                    app(prog_name=prog_name)
            except Stopped as stopped:
                typer.echo("stopped", err=True)
                sys.exit(int(stopped.exit_code))
            except Exception:  # noqa: BLE001 - a bug: shown with its traceback, and not taken for "fail", which Python's own 1 means here
                sys.excepthook(*sys.exc_info())  # typer's
                sys.exit(int(ExitCode.MACHINE))
    finally:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # the work is over: while the interpreter ends, its exit code stands
        gc.freeze()  # and it looks for no garbage, which would take more than a second after torch
    sys.exit(0)


def _format_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """A line for people; kinds other than UserWarning with their place, for whoever has to look there."""
    place = "" if category is UserWarning else f" ({category.__name__} at {filename}:{lineno})"
    return f"warning: {printable(message)}{place}\n"


@contextmanager
def _json_alone(commands: Collection[str]) -> Iterator[None]:
    """With --json, stdout is the JSON object's: what libraries print there (trackers do, transformers when imported) goes to stderr."""
    global _commands_stdout
    if "--json" not in sys.argv or _command() not in commands:
        yield
        return
    _commands_stdout = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _commands_stdout = None


def _command() -> str:
    return next((argument for argument in sys.argv[1:] if not argument.startswith("-")), "")


def _refuse_several(prog_name: str, several: Collection[str]) -> None:
    command = _command()
    if command in several or "--help" in sys.argv:
        return
    try:
        refuse_several_processes(f"{prog_name.removeprefix('python -m ')} {command}".strip())
    except SaviError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(int(error.exit_code))


@contextmanager
def stop_signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Stopped` in this process; one that was ignored when it started stays ignored."""
    owner, before = os.getpid(), {number: signal.getsignal(number) for number in _SIGNALS}

    def on_signal(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            raise Stopped(number)
        signal.signal(number, signal.SIG_DFL)  # a forked helper process dies as if nothing had been set
        os.kill(os.getpid(), number)

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def errors(*, kept: str = "", on_stop: Callable[[str, int], None] | None = None) -> Iterator[None]:
    """Known errors become one line on stderr and an exit code; an unknown one is a bug and keeps its traceback.

    `kept` is what a stopped command says about its work so far (`KEPT` for a command that goes on when it is run again).
    `on_stop` is called with the message and the code before the command ends.
    """
    try:
        yield
    except typer.Exit:
        raise
    except (Stopped, KeyboardInterrupt) as stopped:
        message, code = describe_stop(stopped, kept)
    except Exception as error:
        known = describe_error(error)
        if known is None:
            raise
        message, code = known
    else:
        return
    if on_stop is not None:
        on_stop(message, int(code))
    stop(message, code)


@contextmanager
def usage() -> Iterator[None]:
    """Settings that refuse a value say so; that is the user's to correct."""
    try:
        yield
    except SaviError:
        raise
    except ValueError as error:
        stop(error, ExitCode.USAGE)


def describe_stop(stopped: Stopped | KeyboardInterrupt, kept: str) -> tuple[str, ExitCode]:
    """One line and the exit code of a command that was asked to end."""
    code = stopped.exit_code if isinstance(stopped, Stopped) else ExitCode.INTERRUPTED
    name = "interrupted" if code == ExitCode.INTERRUPTED else "terminated"
    return f"{name}; {kept}" if kept else name, code


def describe_error(error: BaseException) -> tuple[str, ExitCode] | None:
    """One line and the exit code of a known error; None for one that only its traceback explains."""
    if isinstance(error, SaviError):
        return str(error), error.exit_code
    if full := _full_disk(error):
        return full, ExitCode.MACHINE
    if re.search(r"\(os error \d+\)", str(error)):  # what libraries in Rust (safetensors, tokenizers) make of an OSError
        return one_line(error), ExitCode.MACHINE
    if isinstance(error, ModuleNotFoundError):
        return f"{error} (a package is missing: install the project with pip install -e .)", ExitCode.MACHINE
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error), ExitCode.MACHINE
    torch = sys.modules.get("torch")  # its errors can only have been raised where it was imported
    if torch is not None and isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError):
        return str(error), ExitCode.MACHINE
    return None


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk is full, the quota is used up, a file is above what the shell or the file system allows."""


def _full_disk(error: BaseException) -> str | None:
    """What to say where no room, or no quota, was left: as Python, safetensors and torch's archive writer report it."""
    where = getattr(error, "filename", None)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _NO_ROOM:
            return f"{cause.filename or where or 'the disk'}: no room left; free some and run the same command to go on"
        said = str(cause)
        if any(os.strerror(number) in said for number in _NO_ROOM):
            return f"no room left on the disk ({said}); free some and run the same command to go on"
        if "PytorchStreamWriter failed" in said or "unexpected pos" in said:  # all that torch says of a write cut short
            return f"a checkpoint could not be written whole, most likely for want of room on the disk ({said.splitlines()[0]})"
        cause = cause.__cause__ or cause.__context__
    return None


class Clock:
    """Seconds of each step, in order."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End the step `name`."""
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 4)
        self._last = now


@contextmanager
def bar(what: str) -> Iterator[Any]:
    """A progress bar on stderr, on a terminal only, of the first of several processes; gives a function to call with (done, total)."""
    console = Console(stderr=True)
    columns = (TextColumn(escape(what)), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not (console.is_terminal and is_first()), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
