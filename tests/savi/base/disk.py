"""A disk that loses power: what was never fsynced is gone, in content and in name.

The strictest reading of POSIX: a file's bytes are safe from its fsync on, a name (made, renamed or removed) from the fsync of its folder
on. `Disk` notes each fsync below a folder; `after` builds the folder as it would be found had the power failed right after one of them.
"""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest


class Disk:
    """Notes every fsync of this process below `root`."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self._now: dict[int, bytes | dict[str, tuple[int, bool]]] = {root.stat().st_ino: {}}
        self._open: list[int] = []  # an inode that is still open is not given to another file
        self.states: list[dict[int, bytes | dict[str, tuple[int, bool]]]] = [dict(self._now)]
        self._fsync = os.fsync
        self._lock = threading.Lock()
        monkeypatch.setattr(os, "fsync", self._note)

    def _note(self, handle: int) -> None:
        self._fsync(handle)
        path, found = Path(os.readlink(f"/proc/self/fd/{handle}")), os.fstat(handle)
        if not path.is_relative_to(self.root):
            return
        with self._lock:
            self._open.append(os.dup(handle))
            if stat.S_ISDIR(found.st_mode):
                self._now[found.st_ino] = {e.name: (e.inode(), e.is_dir()) for e in os.scandir(path)}
            else:
                self._now[found.st_ino] = path.read_bytes()
            self.states.append(dict(self._now))

    def after(self, number: int, target: Path) -> Path:
        """The folder as it is after the power failed behind fsync `number`."""
        state = self.states[number]

        def build(inode: int, place: Path) -> None:
            place.mkdir(parents=True)
            names = state.get(inode, {})
            assert isinstance(names, dict)
            for name, (child, is_folder) in names.items():
                if is_folder:
                    build(child, place / name)
                else:
                    data = state.get(child, b"")  # its length may be known, its bytes are not
                    assert isinstance(data, bytes)
                    (place / name).write_bytes(data)

        build(self.root.stat().st_ino, target)
        return target

    def close(self) -> None:
        for handle in self._open:
            os.close(handle)
