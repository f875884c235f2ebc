"""What the second process of this machine does (`reproduce.paper.second`), and when there is one."""

from __future__ import annotations

import importlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from reproduce.paper.experiment import Experiment, align_settings
from reproduce.paper.paper import build_stages
from reproduce.paper.second import Second
from reproduce.paper.work import RealWork
from reproduce.scale import Scale
from reproduce.stages import StageContext, failures_path
from savi.base.errors import one_line
from savi.base.memory import imports_that_stay
from savi.base.processes import cores, launched
from savi.base.watch import BEAT_S


@contextmanager
def second_process(experiment: Experiment, base_fingerprint: str | None, tell: Callable[[str], None]) -> Iterator[Second | None]:
    """A second process to share the work with, where the scale and this machine allow one. `tell` gets what it did not do."""
    wanted = experiment.scale.machine.processes.value
    if launched() > 1 or (min(2, cores()) if wanted == "auto" else wanted) < 2:
        yield None
        return
    warm()
    rest = replace(experiment, scale=None, report_to=())  # type: ignore[arg-type]  # pydantic's generic models cannot be pickled
    with Second(tell, serve, experiment.scale.model_dump_json(), rest, base_fingerprint) as second:
        yield second


def serve(scale: str, rest: Experiment, base_fingerprint: str | None, link: Connection) -> None:
    """The second process: does jobs until the first one is gone, and says of each how long it took and why it failed, if it did. The first
    one tries again then. `scale`: the experiment's, as JSON."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's to handle
    experiment = replace(rest, scale=Scale.model_validate_json(scale))
    lock = threading.Lock()
    _beat(link, lock)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    work = RealWork()
    stages = {stage.name: stage for stage in build_stages(experiment, work, base_fingerprint=base_fingerprint)}
    warm()
    with suppress(EOFError, OSError):
        while True:
            number, (kind, what) = link.recv()
            began, why = time.monotonic(), ""
            try:
                if kind == "stage":
                    stages[what].run(StageContext(experiment.run.path, _silent, failures_path(experiment.run.path, what)))
                elif kind == "benchmarks":
                    iteration, names = what
                    work.measure(experiment, iteration, names, held=True)
                else:
                    _make_pairs(experiment, work, *what)
            except Exception as error:  # noqa: BLE001 - told to the first process, which does the job itself
                why = f"{type(error).__name__}: {one_line(error)[:200]}"
            with lock:
                link.send((number, time.monotonic() - began, why))


def warm() -> None:
    """Import what the work of both processes needs."""
    with imports_that_stay():
        for name in ("savi.engine.video_lm", "harness.run.lmms_model", "lmms_eval.evaluator", "lmms_eval.tasks", "nltk"):  # in this order
            importlib.import_module(name)


def _beat(link: Connection, lock: threading.Lock) -> None:
    """Say every now and then that this process lives, and end it when the first one is gone."""
    parent = os.getppid()

    def beat() -> None:
        while os.getppid() == parent:
            with lock, suppress(OSError):
                link.send((0, 0.0, ""))
            time.sleep(BEAT_S)
        os._exit(1)

    threading.Thread(target=beat, name="heartbeat", daemon=True).start()


def _make_pairs(
    experiment: Experiment, work: RealWork, iteration: int, chunks: list[list[tuple[str, Path]]], header: dict[str, str]
) -> None:
    from savi.loop.propose import propose_part

    out = experiment.run.iteration(iteration) / "pairs.jsonl"
    lm, critic = work.model(experiment.model(iteration - 1)), work.critic(experiment, iteration)
    propose_part(lm, chunks, align_settings(experiment.scale, iteration), out, header, critic)


def _silent(done: int, total: int, /) -> None:
    return None
