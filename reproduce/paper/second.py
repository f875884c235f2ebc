"""A second process on this machine, which does parts of the experiment while the first one is at work: the second core of two.

It makes half of the pairs, measures an iteration while the next one is trained, and encodes videos ahead. What it leaves are files, those
that the first process would have made; the first one finds them when it comes to that stage, and makes what is missing. So a second
process that dies, or hangs, costs time and nothing else.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from reproduce.paper.experiment import Experiment, align_settings
from reproduce.scale import Scale
from savi.base.watch import BEAT_S, silence_s

Job = tuple[str, Any]
"""("stage", its name), or ("pairs", (iteration, chunks, header))."""


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Second:
    """The first process's end. Use as a context manager; the other process starts at once and is gone at the end."""

    def __init__(self, experiment: Experiment, base_fingerprint: str | None) -> None:
        warm()
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")  # forked, it need not import all of it again
        self._link, other = context.Pipe()
        scale, rest = experiment.scale.model_dump_json(), replace(experiment, scale=None, report_to=())  # type: ignore[arg-type]  # no pickle of pydantic's
        self._process: Any = context.Process(  # type: ignore[attr-defined]
            target=serve, args=(scale, rest, base_fingerprint, other), name="second", daemon=True
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
                    number, seconds = self._link.recv()
                    heard = time.monotonic()
                    self._seconds |= {waiting: seconds for n, waiting in self._left if n == number}
                    self._left = [(n, waiting) for n, waiting in self._left if n != number]
                elif time.monotonic() - heard > silence_s():
                    self.close()
        except (OSError, EOFError):
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


def serve(scale: str, rest: Experiment, base_fingerprint: str | None, link: Connection) -> None:
    """The second process: does jobs until the first one is gone. What fails here fails there too, and is told there. `scale`: the
    experiment's, as JSON."""
    from reproduce.paper.paper import build_stages
    from reproduce.paper.work import RealWork
    from reproduce.stages import StageContext, failures_path

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's to handle
    experiment = replace(rest, scale=Scale.model_validate_json(scale))
    parent = os.getppid()
    lock = threading.Lock()
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)

    def beat() -> None:
        while os.getppid() == parent:
            with lock, suppress(OSError):
                link.send((0, 0.0))
            time.sleep(BEAT_S)
        os._exit(1)

    threading.Thread(target=beat, name="heartbeat", daemon=True).start()
    work = RealWork()
    stages = {stage.name: stage for stage in build_stages(experiment, work, base_fingerprint=base_fingerprint)}
    warm()
    with suppress(EOFError, OSError):
        while True:
            number, (kind, what) = link.recv()
            began = time.monotonic()
            with suppress(Exception):
                if kind == "stage":
                    stages[what].run(StageContext(experiment.run.path, _silent, failures_path(experiment.run.path, what)))
                else:
                    _make_pairs(experiment, work, *what)
            with lock:
                link.send((number, time.monotonic() - began))


def warm() -> None:
    """Import what the work of both processes needs."""
    for name in ("savi.engine.video_lm", "harness.run.lmms_model", "lmms_eval.evaluator", "lmms_eval.tasks"):  # in this order
        importlib.import_module(name)


def _make_pairs(experiment: Experiment, work: Any, iteration: int, chunks: list[list[tuple[str, Path]]], header: dict[str, str]) -> None:
    from savi.loop.propose import propose_part

    out = experiment.run.iteration(iteration) / "pairs.jsonl"
    propose_part(work.model(experiment.model(iteration - 1)), chunks, align_settings(experiment.scale, iteration), out, header)


def _silent(done: int, total: int, /) -> None:
    return None
