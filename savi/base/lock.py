"""One lock for everything that writes results: two processes at work in one place would double or mix them.

The kernel's lock (filelock) ends with its process, however that ends, so a stale lock on this machine blocks nobody. File systems
shared between machines do not all carry it across, so the holder also leaves its name beside the lock and touches that record while it
lives: a record of another machine counts until nothing has touched it for `STALE_S`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from savi.base.digests import parse_json
from savi.base.errors import SaviError
from savi.base.files import make_folder, write_text_atomic

BEAT_S = 10.0
STALE_S = 90.0


class LockedError(SaviError):
    """Another process is at work here: names it."""


def is_lock(name: str) -> bool:
    """Whether a file of this name belongs to a lock, or to the heartbeat of several processes (`savi.base.watch`)."""
    return name.startswith(".") and (name.endswith((".lock", ".holder")) or name.startswith(".beat-"))


def lock_folder(folder: Path) -> AbstractContextManager[None]:
    """Hold a folder that results go to, which is made. In a launch of several processes the first one holds it for all.

    Raises:
        LockedError: another process holds it.
        OSError: it cannot be written.
    """
    return _lock(folder, folder / ".lock", folder / ".holder")


def lock_file(file: Path) -> AbstractContextManager[None]:
    """`lock_folder` for a file that results go to, or a folder that is put in place at the end."""
    return _lock(file, file.with_name(f".{file.name}.lock"), file.with_name(f".{file.name}.holder"))


@contextmanager
def _lock(target: Path, path: Path, record: Path) -> Iterator[None]:
    if int(os.environ.get("RANK", "0")):
        yield
        return
    make_folder(path.parent)
    held = FileLock(path, thread_local=False)
    kernel = True
    try:
        held.acquire(blocking=False)
    except Timeout:
        raise LockedError(_message(target, _read(record))) from None
    except NotImplementedError:  # a file system without locks: the records alone decide
        kernel = False
    try:
        _refuse_living(target, record, kernel=kernel)
        with _record(record):
            yield
    finally:
        held.release()


def _me() -> dict[str, str | int]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": process_started(os.getpid())}


def process_started(pid: int) -> str:
    """When a process of this machine began, in ticks since boot; empty where it has ended or that cannot be known. Process numbers are
    used again."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""


def _read(record: Path) -> dict[str, str | int] | None:
    try:
        found = parse_json(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _refuse_living(target: Path, record: Path, *, kernel: bool) -> None:
    holder = _read(record)
    if holder is None:
        return
    if holder.get("host") == socket.gethostname():
        if kernel:
            return  # it held the kernel's lock, which is ours now: it is gone
        pid = int(holder.get("pid", 0))
        if process_started(pid) and process_started(pid) == holder.get("started"):
            raise LockedError(_message(target, holder))
        return
    silent = _silence_s(record)
    if silent < STALE_S:
        more = f"; it was last heard {silent:.0f} s ago, and counts as gone after {STALE_S:.0f} s"
        raise LockedError(_message(target, holder) + more)


def _silence_s(record: Path) -> float:
    """Seconds since a record was touched, by the clock of the machine that keeps the files."""
    with tempfile.NamedTemporaryFile(dir=record.parent, prefix=".", suffix=".part") as now:
        return Path(now.name).stat().st_mtime - record.stat().st_mtime


def _message(target: Path, holder: dict[str, str | int] | None) -> str:
    who = f"process {holder.get('pid')} on {holder.get('host')}" if holder else "its process is unknown"
    return f"{target}: another run is at work here ({who}); wait for it, or write to another place with --out"


@contextmanager
def _record(record: Path) -> Iterator[None]:
    """The holder's name beside the lock, touched while it lives."""
    write_text_atomic(record, json.dumps(_me()) + "\n")
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(record)

    threading.Thread(target=beat, name="lock-heartbeat", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        record.unlink(missing_ok=True)
