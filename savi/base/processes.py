"""Several processes of one command (`torchrun`, `accelerate launch`): who this one is, how they meet, how work is dealt out.

    with joined(out) as processes:                       # alone without a launch
        hands = processes.by_first(plan)                 # decided once
        work(hands[processes.rank])
        processes.wait()

They need a folder that all of them see, which is checked; a heartbeat there ends the run where one of them is dead (`savi.base.watch`).
torch is imported only where there are several.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from savi.base.errors import ExitCode, UsageError
from savi.base.files import make_folder
from savi.base.watch import BEAT_S, ProcessGoneError, Watch, begin, finish, sweep

T = TypeVar("T")
MEET_S = 600.0
"""How long processes wait for each other at the start."""
SEE_S = 30.0
"""How long a file of another machine may take to be seen."""
_WAIT = timedelta(days=30)
"""Waiting for the others has no limit of its own: the heartbeat ends it."""


@dataclass(frozen=True)
class Processes:
    """This process's number and how many there are."""

    rank: int = 0
    count: int = 1

    @property
    def device(self) -> str:
        """Where this process's model belongs."""
        if self.count == 1:
            return "auto"
        import torch

        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            import torch.distributed as dist

            dist.barrier()

    def from_first(self, value: T) -> T:
        """Process 0's value, in all of them."""
        if self.count == 1:
            return value
        import torch.distributed as dist

        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]  # type: ignore[no-any-return]

    def by_first(self, work: Callable[[], T]) -> T:
        """What `work` returns, or raises, in process 0, in all of them."""
        if self.count == 1:
            return work()
        outcome: tuple[Any, Exception | None] = (None, None)
        if self.rank == 0:
            try:
                outcome = work(), None
            except Exception as error:  # noqa: BLE001 (raised again below, and in the processes that wait for it)
                outcome = None, error
        found, failed = self.from_first(outcome)
        if failed is not None:
            raise failed
        return found  # type: ignore[no-any-return]

    def to_first(self, value: T) -> list[T] | None:
        """All processes' values in process 0; None in the others."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] | None = [None] * self.count if self.rank == 0 else None
        dist.gather_object(value, values)
        return values


_joined: list[Processes] = []
"""What this process has joined, so that a stage within a run joins nothing anew."""


def current() -> Processes:
    """The processes that were joined; alone where none were."""
    return _joined[-1] if _joined else Processes()


def launched() -> int:
    """How many processes the launch has, as the environment says.

    Raises:
        UsageError: they were started by a launcher that does not say how they meet.
    """
    count = _number("WORLD_SIZE")
    if count == 1 and (others := _number("OMPI_COMM_WORLD_SIZE")) > 1:
        raise UsageError(
            f"OMPI_COMM_WORLD_SIZE is {others}, but RANK, WORLD_SIZE and MASTER_ADDR are not set: start it with torchrun or accelerate "
            "launch"
        )
    return count


def leave_launch_of_one() -> None:
    """Forget a launch of one process: it is one alone. Accelerate would open a process group for it in training, which is closed again, and
    look for it in the next evaluation."""
    if os.environ.get("WORLD_SIZE") == "1":
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)


def _number(variable: str) -> int:
    text = os.environ.get(variable) or "1"
    if not text.isdecimal():
        raise UsageError(f"{variable} is {text!r}, not a number of processes")
    return max(int(text), 1)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_first() -> bool:
    """Whether this process speaks for the launch."""
    return os.environ.get("RANK", "0") in ("", "0")


def refuse_several_processes(command: str) -> None:
    """Stop a command that would do the same work in each process of a `torchrun`.

    Raises:
        UsageError: there are several processes.
    """
    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"):
        if (count := os.environ.get(name, "1")) not in ("", "0", "1"):
            raise UsageError(f"{command} runs in one process, and {name} is {count}: start it without torchrun or accelerate launch")


@contextmanager
def joined(folder: Path) -> Iterator[Processes]:
    """Join the other processes of the launch, which share `folder`; alone without one. Within it, `joined` gives the same again.

    Raises:
        UsageError: a process does not see the folder of the first one.
    """
    if _joined:
        yield _joined[-1]
        return
    if launched() == 1:
        yield Processes()
        sweep(folder)  # not before: another launch may be at work here, and the lock that refuses this one is taken within
        return
    import torch
    import torch.distributed as dist

    opened = not dist.is_initialized()
    if opened:
        with _meeting():
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_WAIT)
    processes = Processes(dist.get_rank(), dist.get_world_size())
    _joined.append(processes)
    try:
        with _watched(folder, processes):
            yield processes
    finally:
        _joined.remove(processes)
        if opened and not torch.cuda.is_available():  # NCCL would wait for a process that is gone; left alone, gloo's threads can abort
            dist.destroy_process_group()
    if opened and dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _meeting() -> Iterator[None]:
    """End this process where the others do not come."""

    def give_up() -> None:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        who = f"process {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')}"
        sys.stderr.write(f"error: {who} has waited {MEET_S:.0f} s for the others at {where}; start all of them again\n")
        sys.stderr.flush()
        os._exit(int(ExitCode.MACHINE))

    timer = threading.Timer(MEET_S, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _watched(folder: Path, processes: Processes) -> Iterator[None]:
    """A heartbeat in the folder while the processes work; whoever leaves early tells the others why."""
    make_folder(folder)
    watch = Watch(folder, processes.from_first(secrets.token_hex(4)), processes.rank, processes.count)
    watch.beat()
    _check_shared(folder, processes, watch)
    watch.start()
    begin(watch)
    try:
        yield
        watch.beat(over=True)
        processes.wait()
    except BaseException as error:
        own = isinstance(error, Exception) and hasattr(error, "exit_code")  # a known error: the reason is this process's own
        with _without_sigterm():
            why = None if own else _reason(watch)
        watch.end(why or f"process {processes.rank} on {socket.gethostname()} has ended: {str(error) or type(error).__name__}")
        if why is not None:
            raise ProcessGoneError(why) from error
        raise
    finally:
        finish(watch)
    processes.wait()
    if processes.rank == 0:
        sweep(folder)


@contextmanager
def _without_sigterm() -> Iterator[None]:
    """Let no SIGTERM end this process while it looks for the reason why it ends: `torchrun` sends one when another process is dead, often
    after this one has lost its connection to it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _reason(watch: Watch) -> str | None:
    """What is wrong with another process, where that is why this one was interrupted: a connection closed, or `torchrun` ended it."""
    until = time.monotonic() + BEAT_S
    while (why := watch.look()) is None and time.monotonic() < until:
        time.sleep(0.1)
    return why


def _check_shared(folder: Path, processes: Processes, watch: Watch) -> None:
    processes.wait()  # every process has written its file
    missing = [rank for rank in range(processes.count) if not watch.path(rank).exists()]
    until = time.monotonic() + SEE_S
    while missing and time.monotonic() < until:
        time.sleep(0.5)
        missing = [rank for rank in missing if not watch.path(rank).exists()]
    found: list[tuple[str, list[int]]] = processes.from_first(processes.to_first((socket.gethostname(), missing)) or [])
    blind = [(rank, host, lacking) for rank, (host, lacking) in enumerate(found) if lacking]
    if blind:
        rank, host, lacking = blind[0]
        raise UsageError(
            f"{folder}: process {rank} on {host} does not see what process {lacking[0]} wrote there; the folder must be on a file system "
            "that all processes share"
        )


def deal_by_weight(weights: Sequence[float], hands: int) -> list[list[int]]:
    """Numbers of pieces of work for each process, the heaviest dealt first to whoever has least; each hand keeps their order."""
    loads, dealt = [0.0] * hands, [[] for _ in range(hands)]  # type: list[float], list[list[int]]
    for i in sorted(range(len(weights)), key=lambda i: (-weights[i], i)):
        to = min(range(hands), key=lambda p: (loads[p], p))
        loads[to] += weights[i]
        dealt[to].append(i)
    return [sorted(hand) for hand in dealt]
