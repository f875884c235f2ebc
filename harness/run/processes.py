"""Several processes of one evaluation (`torchrun -m harness evaluate`): who this one is, and how they meet.

lmms-eval itself deals questions out, which parts those on one video. Here every process sees all requests, answers the chunks of videos
dealt to it and hands its answers to process 0, which alone scores and writes. So lmms-eval is told that it runs alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")
_RANKS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}


class PartDone(BaseException):
    """This process has handed in its answers: leave lmms-eval, nothing is scored here. No handler on the way may take it for a failure."""


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

    def by_first(self, work: Callable[[], T]) -> T:
        """What `work` returns, or raises, in process 0, in all of them."""
        if self.count == 1:
            return work()
        import torch.distributed as dist

        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = work()
            except Exception as error:  # noqa: BLE001 (raised again below, and in the processes that wait for it)
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]  # type: ignore[no-any-return]

    def to_first(self, value: Any) -> list[Any] | None:
        """All processes' values in process 0; None in the others."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] | None = [None] * self.count if self.rank == 0 else None
        dist.gather_object(value, values)
        return values


@contextmanager
def joined(timeout_s: float = 24 * 3600) -> Iterator[Processes]:
    """Join the other processes that `torchrun` started, and hide them from lmms-eval meanwhile; alone without it."""
    count = int(os.environ.get("WORLD_SIZE") or 1)
    if count == 1:
        yield Processes()
        return
    import torch.distributed as dist

    opened = not dist.is_initialized()
    if opened:
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout_s))
    before = {name: os.environ.get(name) for name in _RANKS}
    me = Processes(dist.get_rank(), count)
    local = before["LOCAL_RANK"] or "0"
    os.environ.update({**_RANKS, "LOCAL_RANK": local})
    try:
        yield me
    finally:
        os.environ.update({name: value for name, value in before.items() if value is not None})
        if opened:
            dist.destroy_process_group()
