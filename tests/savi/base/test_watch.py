"""The heartbeat of several processes: who is dead, who hangs, who is merely slow."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from savi.base import watch as module
from savi.base.errors import UsageError
from savi.base.lock import is_lock, process_started
from savi.base.watch import Beat, Watch, silence_s, sweep


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock, set by hand."""
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    return clock


def write(watch: Watch, beat: Beat) -> None:
    import json

    watch.path(beat.rank).write_text(json.dumps(asdict(beat)))


def other(**change: object) -> Beat:
    pid = os.getpid()
    made = Beat(1, socket.gethostname(), pid, process_started(pid), 1, "video clip.mp4 (propose)", over=False)
    return replace(made, **change)  # type: ignore[arg-type]


def test_a_slow_process_is_not_a_hung_one(tmp_path: Path, now: list[float]) -> None:
    watch = Watch(tmp_path, "t", 0, 2)
    for beat in range(100):  # an hour on one video
        write(watch, other(beat=beat))
        assert watch.look() is None
        now[0] += 40
    now[0] += 4
    assert watch.look() is None
    write(watch, other(beat=100, over=True))
    now[0] += 1000
    assert watch.look() is None, "one whose work is over need not beat"


def test_a_process_of_another_machine_that_falls_silent_is_named(tmp_path: Path, now: list[float]) -> None:
    watch = Watch(tmp_path, "t", 0, 2)
    write(watch, other(host="node7", pid=4711))
    assert watch.look() is None
    now[0] += 46
    why = watch.look()
    assert why is not None
    assert why.startswith("process 1 (4711 on node7) has not been heard of for 46 s; it was at video clip.mp4 (propose); ")
    assert why.endswith("run the same command to go on, with any number of processes")


def test_a_process_that_is_gone_is_named_at_once(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    watch = Watch(tmp_path, "t", 0, 2)
    write(watch, other(pid=child.pid, started=process_started(child.pid)))
    assert watch.look() is None
    child.kill()
    until = time.monotonic() + 10
    while (why := watch.look()) is None and time.monotonic() < until:  # not waited for: a zombie is gone too
        time.sleep(0.01)
    assert why is not None
    assert f"process 1 ({child.pid} on " in why
    assert "is gone" in why
    child.wait()


def test_a_hung_process_of_this_machine_is_ended(tmp_path: Path, now: list[float]) -> None:
    """If it woke up, it would write beside the processes that come after it."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    watch = Watch(tmp_path, "t", 0, 2)
    write(watch, other(pid=child.pid, started=process_started(child.pid)))
    assert watch.look() is None
    now[0] += 46
    assert watch.look() is not None
    assert child.wait(timeout=10) == -9


def test_why_one_ended_reaches_the_others(tmp_path: Path) -> None:
    first, second = Watch(tmp_path, "t", 0, 3), Watch(tmp_path, "t", 2, 3)
    second.end("no room left")
    assert first.look() == "no room left"
    first.end("another reason")
    assert first.look() == "no room left", "the first reason stays"


def test_files_of_another_launch_are_not_read(tmp_path: Path) -> None:
    Watch(tmp_path, "old", 1, 2).end("killed last week")
    watch = Watch(tmp_path, "new", 0, 2)
    watch.beat("here")
    assert watch.look() is None
    assert all(is_lock(path.name) for path in tmp_path.iterdir())
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())
    watch.stop()
    watch.beat()
    assert not list(tmp_path.iterdir()), "no beat after the end"


def test_the_silence_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert silence_s() == 45
    monkeypatch.setenv("SAVI_SILENCE_S", "600")
    assert silence_s() == 600
    for wrong in ("1", "soon", "nan"):
        monkeypatch.setenv("SAVI_SILENCE_S", wrong)
        with pytest.raises(UsageError, match="SAVI_SILENCE_S"):
            silence_s()
