"""Commands run side by side, each with its log: one that ends badly is listed and never ends the rest; a stop signal ends them all."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from savi.base.errors import ExitCode, one_line
from savi.base.files import FailureLog

STOP_S = 15.0
"""Seconds that a command has to end after a stop signal."""


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Task:
    """A command by its name, asked for when its turn has come; `then` is called when it has ended well."""

    name: str
    command: Callable[[], list[str]]
    then: Callable[[], None] = _nothing


class Runner:
    """Runs commands side by side, one thread each. `tell` gets a line when one has ended; any exit code but those in `ends` is a failure,
    listed in failures.jsonl under `stage`."""

    def __init__(
        self, out: Path, jobs: int, tell: Callable[[str], None], *, stage: str = "study", ends: Collection[int] = (ExitCode.DONE,)
    ) -> None:
        self._logs, self._jobs, self._tell, self._stage, self._ends = out / "logs", jobs, tell, stage, ends
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock, self._stopping = threading.Lock(), False
        self.failures = FailureLog(out / "failures.jsonl")
        self.failed: list[str] = []

    def all(self, tasks: Sequence[Task]) -> None:
        """Run tasks. A stop signal ends them all; what they finished is kept."""
        self.failures.forget([task.name for task in tasks], self._stage)
        if tasks:
            self._tell(f"{len(tasks)} to do, {min(self._jobs, len(tasks))} at a time; each one's progress is in {self._logs}/NAME.log")
        pool, began = ThreadPoolExecutor(self._jobs), time.monotonic()
        try:  # from the first command on: a signal at any moment ends all of them
            futures: dict[Future[str], str] = {pool.submit(self._one, task): task.name for task in tasks}
            waiting = set(futures)
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    self._told(futures[future], future.result(), len(tasks) - len(waiting), len(tasks), began)
        except BaseException:
            self._stop()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _told(self, name: str, why: str, done: int, of: int, began: float) -> None:
        if why:
            self.failed.append(f"{name}: {why}")
            self.failures.add(what=name, where=str(self._logs / f"{name}.log"), why=why, stage=self._stage)
        left = (time.monotonic() - began) / done * (of - done) / 3600
        rest = f", about {f'{left:.1f} h' if left >= 1 else f'{60 * left:.0f} min'} left" if done < of else ""
        self._tell(f"{name}: {why or 'done'} ({done} of {of}, {len(self.failed)} failed{rest})")

    def _one(self, task: Task) -> str:
        """Why a task failed; empty where it did not."""
        try:
            return self._run(task)
        except Exception as error:  # noqa: BLE001 - one broken run never ends the rest; it is listed
            return f"{type(error).__name__}: {one_line(error)}"

    def _run(self, task: Task) -> str:
        log = self._logs / f"{task.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command, env = task.command(), {**os.environ, "OMP_NUM_THREADS": "1"}
        with log.open("ab") as file:
            with self._lock:
                if self._stopping:
                    return "not begun"
                process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env)
                self._running.add(process)
            code = process.wait()
            with self._lock:
                self._running.discard(process)
        if code not in self._ends:
            return f"exit code {code}: {_last_line(log)} (log: {log})"
        task.then()
        return ""

    def _stop(self) -> None:
        with self._lock:
            self._stopping = True
            running = list(self._running)
        for process in running:
            process.terminate()
        until = time.monotonic() + STOP_S
        for process in running:
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("error:")] or lines
    return said[-1][:300] if said else "it said nothing"
