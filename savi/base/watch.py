"""A heartbeat for processes that share work: a dead or hung one ends the run within a minute, by name and with its last video.

Each process keeps a small file in a folder that all see, says there what it is at, and watches the file of the next one. The beat comes
from a thread, so one that decodes or generates for long is heard all the same; one that was stopped, killed, or whose machine or file
system is gone is not. Contents are compared, never clocks. The module knows no torch.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from savi.base.errors import ExitCode, SaviError, UsageError
from savi.base.lock import process_started

BEAT_S = 2.0
SILENCE_VARIABLE = "SAVI_SILENCE_S"
PREFIX = ".beat-"
GOES_ON = "what is finished is kept; run the same command to go on, with any number of processes"


class ProcessGoneError(SaviError):
    """Another process of the launch is dead, hangs or has ended with an error: names it, and the last video it was at."""


@dataclass(frozen=True)
class Beat:
    """What a process says of itself: its number, where it runs, how often it has beaten, what it is at, and whether its work is over."""

    rank: int
    host: str
    pid: int
    started: str
    beat: int
    at: str
    over: bool

    @property
    def name(self) -> str:
        """For a message."""
        return f"process {self.rank} ({self.pid} on {self.host})"

    @property
    def is_here(self) -> bool:
        """Whether it runs on this machine."""
        return self.host == socket.gethostname()

    @property
    def is_gone(self) -> bool:
        """Whether it is known to have ended: on this machine alone can that be seen."""
        return self.is_here and process_started(self.pid) != self.started


def silence_s() -> float:
    """Seconds without a beat after which a process counts as hung.

    Raises:
        UsageError: the variable that sets it holds no number of seconds.
    """
    text = os.environ.get(SILENCE_VARIABLE) or "45"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds >= 2 * BEAT_S:
        raise UsageError(f"{SILENCE_VARIABLE} is {text!r}: write a number of seconds, {2 * BEAT_S:g} at least")
    return seconds


class Watch:
    """The heartbeat of process `rank` of `count`, and its eye on the next one. `token` names the launch: no file of another is read."""

    def __init__(self, folder: Path, token: str, rank: int, count: int) -> None:
        self._folder, self._token, self._rank, self._count = folder, token, rank, count
        self._silence_s = silence_s()
        self._me = Beat(rank, socket.gethostname(), os.getpid(), process_started(os.getpid()), 0, "starting", over=False)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._last: Beat | None = None
        self._heard = time.monotonic()

    def path(self, who: int | str) -> Path:
        """The file of a process; of "end": why the run ends."""
        return self._folder / f"{PREFIX}{self._token}-{who}"

    def start(self) -> None:
        """Beat, and watch from now on."""
        self._heard = time.monotonic()
        self.beat()
        threading.Thread(target=self._run, name="savi-heartbeat", daemon=True).start()

    def beat(self, at: str | None = None, *, over: bool = False) -> None:
        """Say that this process lives, and what it is at."""
        with self._lock:
            if self._ended.is_set():
                return
            me = self._me
            at = me.at if at is None else at
            self._me = Beat(me.rank, me.host, me.pid, me.started, me.beat + 1, at, over=over or me.over)
            self._write(self.path(self._rank), json.dumps(asdict(self._me)))

    def stop(self) -> None:
        """No more beats."""
        with self._lock:
            self._ended.set()

    def end(self, why: str) -> None:
        """Tell the other processes that this one ends before its work is done."""
        if not self.path("end").exists():
            self._write(self.path("end"), why)

    def look(self) -> str | None:
        """What is wrong with the next process, or why the run ends; None where all is well."""
        with suppress(OSError):
            return self.path("end").read_text(encoding="utf-8")
        other = self._read((self._rank + 1) % self._count)
        if other is not None and (self._last is None or other.beat != self._last.beat):
            self._last, self._heard = other, time.monotonic()
        last = self._last
        if last is None or last.over:
            return None
        silent = time.monotonic() - self._heard
        if last.is_gone:
            why = f"{last.name} is gone (killed, or out of memory?)"
        elif silent > self._silence_s:
            if last.is_here:  # it must not wake up and go on writing beside those that come after it
                with suppress(OSError):
                    os.kill(last.pid, signal.SIGKILL)
            why = f"{last.name} has not been heard of for {silent:.0f} s"
        else:
            return None
        return f"{why}; it was at {last.at}; {GOES_ON}"

    def _run(self) -> None:
        awake = time.monotonic()
        while not self._ended.wait(BEAT_S):
            if time.monotonic() - awake > 3 * BEAT_S:  # this process itself was held up: it cannot tell whether the other one was silent
                self._heard = time.monotonic()
            awake = time.monotonic()
            with suppress(OSError):
                self.beat()
                if (why := self.look()) and not self._ended.is_set():
                    self._leave(why)

    def _leave(self, why: str) -> None:
        """End this process at once: its main thread may be waiting for the other one, deep inside a library."""
        self.end(why)
        sys.stderr.write(f"error: {why}\n")
        sys.stderr.flush()
        os._exit(int(ExitCode.MACHINE))

    def _read(self, rank: int) -> Beat | None:
        try:
            return Beat(**json.loads(self.path(rank).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def _write(self, path: Path, text: str) -> None:
        temporary = path.with_name(f"{path.name}.{self._rank}.part")
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        temporary.replace(path)


_watch: list[Watch] = []
"""The one at work in this process, if any."""


def begin(watch: Watch) -> None:
    """Let `working_on` speak through this watch."""
    _watch.append(watch)


def finish(watch: Watch) -> None:
    """The end of `begin`."""
    watch.stop()
    _watch.remove(watch)


def working_on(what: str) -> None:
    """Say what this process is at ("propose clip.mp4"), for the message of the others should it die. Alone it says nothing."""
    if _watch:
        with suppress(OSError):
            _watch[-1].beat(what)


def sweep(folder: Path) -> None:
    """Remove what launches that were killed left in a folder; for the first process, once it is the only launch at work there."""
    for path in folder.glob(f"{PREFIX}*"):
        path.unlink(missing_ok=True)
