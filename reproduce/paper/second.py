"""A second process on this machine, which does parts of the experiment while the first one is at work: the second core of two.

It makes half of the pairs, measures an iteration while the next one is trained, of the last one some benchmarks, and encodes videos ahead.
What it leaves are files, those that the first process would have made; the first one finds them when it comes to that stage, and makes what
is missing. So a second process that fails, dies or hangs costs time and nothing else; the first one says so.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from savi.base.watch import silence_s

Job = tuple[str, Any]
"""("stage", its name), ("pairs", (iteration, chunks, header)), or ("benchmarks", (iteration, names))."""


_INSTEAD = "the first one does what it leaves undone"


class Second:
    """The first process's end. Use as a context manager; the other process starts at once and is gone at the end."""

    def __init__(self, tell: Callable[[str], None], serve: Callable[..., None], *arguments: Any) -> None:
        """`serve(*arguments, link)` is what the other process runs; `tell` gets a sentence about what it did not do."""
        self._tell = tell
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")  # forked, it need not import all of it again
        self._link, other = context.Pipe()
        self._process: Any = context.Process(  # type: ignore[attr-defined]
            target=serve, args=(*arguments, other), name="second", daemon=True
        )
        self._process.start()
        other.close()
        self._left: list[tuple[int, str]] = []
        self._seconds: dict[str, float] = {}
        self._number = 0

    def begin(self, job: Job) -> None:
        """Have a job done after those that were given before."""
        self._number += 1
        with suppress(OSError):  # it is gone: `wait` says so
            self._link.send((self._number, job))
            self._left.append((self._number, name_of(job)))

    def wait(self, name: str) -> float:
        """Until a job is done, or the process is gone; the seconds it took (0 where nothing was begun, or was left undone)."""
        heard = time.monotonic()
        try:
            while any(waiting == name for _, waiting in self._left):
                if self._link.poll(1.0):
                    number, seconds, why = self._link.recv()
                    heard = time.monotonic()
                    self._seconds |= {waiting: seconds for n, waiting in self._left if n == number}
                    if why:
                        self._tell(f"the second process failed at {dict(self._left)[number]} ({why}); {_INSTEAD}")
                    self._left = [(n, waiting) for n, waiting in self._left if n != number]
                elif time.monotonic() - heard > silence_s():
                    self._tell(f"the second process has not been heard of for {silence_s():.0f} s and was ended; {_INSTEAD}")
                    self.close()
        except (OSError, EOFError):
            self._tell(f"the second process is gone (killed, or out of memory?); {_INSTEAD}")
            self._left = []
        return self._seconds.pop(name, 0.0)

    def helper(self, iteration: int) -> PairsHelper:
        """For `propose`: the other process makes its share of an iteration's pairs."""
        return PairsHelper(self, iteration)

    def close(self) -> None:
        """End the process, whatever it is at."""
        self._left = []
        self._process.kill()
        self._process.join()

    def __enter__(self) -> Second:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PairsHelper:
    """A `savi.loop.propose.Helper`."""

    def __init__(self, second: Second, iteration: int) -> None:
        self._second, self._iteration = second, iteration

    def begin(self, chunks: list[list[tuple[str, Path]]], header: Mapping[str, str]) -> None:
        """Give it its chunks."""
        self._second.begin(("pairs", (self._iteration, chunks, dict(header))))

    def wait(self) -> None:
        """Until they are made, or the process is gone."""
        self._second.wait(name_of(("pairs", (self._iteration,))))


def name_of(job: Job) -> str:
    """What `wait` calls it."""
    kind, what = job
    return str(what) if kind == "stage" else f"{kind} {what[0]}"
