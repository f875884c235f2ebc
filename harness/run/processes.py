"""What lmms-eval knows of the processes of one evaluation (`torchrun -m harness evaluate`): that it runs alone.

lmms-eval itself deals questions out, which parts those on one video. Here every process sees all requests, answers the chunks of videos
dealt to it and hands its answers to process 0, which alone scores and writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_RANKS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}


class PartDone(BaseException):
    """This process has handed in its answers: leave lmms-eval, nothing is scored here. No handler on the way may take it for a failure."""


@contextmanager
def as_if_alone() -> Iterator[None]:
    """Hide the launch from lmms-eval; each process keeps its own device."""
    before = {name: os.environ.get(name) for name in _RANKS}
    if before["WORLD_SIZE"] in (None, "", "0", "1"):
        yield
        return
    os.environ.update({**_RANKS, "LOCAL_RANK": before["LOCAL_RANK"] or "0"})
    try:
        yield
    finally:
        os.environ.update({name: value for name, value in before.items() if value is not None})
