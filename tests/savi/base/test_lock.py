"""Two processes never write into one place, and a process that is gone holds nobody up."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from savi.base import lock as module
from savi.base.errors import ExitCode
from savi.base.lock import LockedError, is_lock, lock_file, lock_folder

HOLD = """
import sys, time
from pathlib import Path
from savi.base.lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_the_second_is_told_who_holds_it(tmp_path: Path) -> None:
    with holder(tmp_path / "out") as process:
        with pytest.raises(
            LockedError, match=rf"another run is at work here \(process {process.pid} on {socket.gethostname()}\)"
        ) as caught:
            with lock_folder(tmp_path / "out"):
                raise AssertionError("both hold it")
        assert caught.value.exit_code == ExitCode.MACHINE
        with lock_folder(tmp_path / "other"):
            pass


def test_a_killed_holder_holds_nobody_up(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / ".holder").exists()
        with lock_folder(tmp_path):
            assert json.loads((tmp_path / ".holder").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".holder").exists()
    assert all(is_lock(path.name) for path in tmp_path.iterdir())


def record(folder: Path, **values: Any) -> Path:
    path = folder / ".holder"
    path.write_text(json.dumps({"host": "node-7", "pid": 41, "started": "1", **values}))
    return path


def test_a_holder_on_another_machine_counts_while_it_is_heard(tmp_path: Path) -> None:
    """Where the kernel's lock does not reach the other machine, its record is what tells."""
    path = record(tmp_path)
    with pytest.raises(LockedError, match=r"process 41 on node-7\).*last heard"):
        with lock_folder(tmp_path):
            pass
    os.utime(path, (time.time() - 2 * module.STALE_S,) * 2)
    with lock_folder(tmp_path):
        pass


def test_a_holder_is_heard_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.02)
    with lock_folder(tmp_path):
        os.utime(tmp_path / ".holder", (1, 1))
        time.sleep(0.5)
        assert (tmp_path / ".holder").stat().st_mtime > 1


class NoLocks:
    """A file system without locks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def acquire(self, **kwargs: Any) -> None:
        raise NotImplementedError

    def release(self) -> None: ...


def test_without_the_kernels_locks_the_process_itself_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FileLock", NoLocks)
    here = {"host": socket.gethostname(), "pid": os.getpid()}
    record(tmp_path, **here, started=module.process_started(os.getpid()))
    with pytest.raises(LockedError, match=f"process {os.getpid()}"):
        with lock_folder(tmp_path):
            pass
    record(tmp_path, **here, started="another process had this number")
    with lock_folder(tmp_path):
        pass


def test_a_file_is_held_beside_it_and_only_the_first_of_a_launch_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lock_file(tmp_path / "pairs.jsonl"):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".pairs.jsonl.holder", ".pairs.jsonl.lock"]
        with lock_file(tmp_path / "more.jsonl"):
            pass
        with pytest.raises(LockedError), lock_file(tmp_path / "pairs.jsonl"):
            pass
        monkeypatch.setenv("RANK", "1")
        with lock_file(tmp_path / "pairs.jsonl"):
            pass


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_an_odd_record_is_nobodys(tmp_path: Path, text: str) -> None:
    (tmp_path / ".holder").write_text(text)
    with lock_folder(tmp_path):
        pass
