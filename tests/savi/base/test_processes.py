"""How work is dealt out, and what a launch's environment says. The processes themselves: the tests named *_slow."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from savi.base.errors import UsageError
from savi.base.lock import LockedError
from savi.base.processes import Processes, _without_sigterm, deal_by_weight, joined, launched, leave_launch_of_one


@given(st.lists(st.floats(0.1, 100), max_size=60), st.integers(1, 8))
def test_everything_is_dealt_once_in_order_and_evenly(weights: list[float], hands: int) -> None:
    dealt = deal_by_weight(weights, hands)
    assert sorted(i for hand in dealt for i in hand) == list(range(len(weights)))
    assert all(hand == sorted(hand) for hand in dealt)
    loads = [sum(weights[i] for i in hand) for hand in dealt]
    assert max(loads) <= sum(weights) / hands + max(weights, default=0), "longest first: nobody has more than one piece over the mean"


def test_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined(tmp_path) as processes:
        assert processes == Processes(0, 1)
        assert processes.by_first(lambda: 7) == 7
        assert processes.to_first("x") == ["x"]
        processes.wait()
    assert not list(tmp_path.iterdir())


def test_a_launch_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(UsageError, match="WORLD_SIZE is 'many'"):
        launched()
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    with pytest.raises(UsageError, match="start it with torchrun"):
        launched()


def test_a_sigterm_does_not_take_the_reason_away() -> None:
    """`torchrun` sends one to the processes that are left, which may be looking for the reason already."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with _without_sigterm():
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_heartbeats_of_another_launch_stay_until_this_one_had_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    beat = tmp_path / ".beat-0123-0"
    beat.touch()
    with pytest.raises(LockedError), joined(tmp_path):
        raise LockedError("another launch is at work here")
    assert beat.exists()
    with joined(tmp_path):
        assert beat.exists()
    assert not beat.exists()


@pytest.mark.parametrize(("count", "left"), [("1", False), ("2", True)])
def test_a_launch_of_one_process_is_forgotten(count: str, left: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training would close a process group that accelerate goes on to look for."""
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", count)
    leave_launch_of_one()
    assert ("LOCAL_RANK" in os.environ, "WORLD_SIZE" in os.environ) == (left, left)
