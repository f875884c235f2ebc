"""The second process of the machine: what it does not do is said, and left to the first one."""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import Connection

import pytest

from reproduce.paper.second import Second


def fails(link: Connection) -> None:
    while True:
        number, _ = link.recv()
        link.send((number, 0.5, "OSError: no room" if number == 1 else ""))


def ends(link: Connection) -> None:
    link.recv()
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(link: Connection) -> None:
    link.recv()
    os.kill(os.getpid(), signal.SIGSTOP)


def test_a_job_that_failed_is_said_and_the_next_is_done() -> None:
    said: list[str] = []
    with Second(said.append, fails) as second:
        second.begin(("stage", "iter-1/evaluate"))
        second.begin(("stage", "iter-2/evaluate"))
        assert second.wait("iter-1/evaluate") == 0.5
        assert second.wait("iter-2/evaluate") == 0.5
    assert said == ["the second process failed at iter-1/evaluate (OSError: no room); the first one does what it leaves undone"]


@pytest.mark.parametrize(("serve", "word"), [(ends, "is gone"), (hangs, "has not been heard of for 4 s")])
def test_a_dead_or_hung_one_is_said_once(serve: object, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAVI_SILENCE_S", "4")
    said: list[str] = []
    with Second(said.append, serve) as second:  # type: ignore[arg-type]
        second.begin(("stage", "iter-1/evaluate"))
        assert second.wait("iter-1/evaluate") == 0.0
        assert second.wait("iter-1/evaluate") == 0.0
    assert len(said) == 1
    assert word in said[0]
