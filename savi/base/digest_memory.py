"""Digests of large files, remembered while the files do not change, so that weights and videos are read once a machine."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from savi.base.digests import parse_json, sha256_file
from savi.base.files import write_text_atomic

_RACY_NS = 100_000_000
"""A file changed this shortly ago could change again within one tick of the file system's clock."""


class DigestMemory:
    """SHA-256 of files below `root`, remembered in a file by size, times and inode, so that weights and videos are read once a machine.

    The memory saves time and decides nothing: what cannot be read or written is computed again. A copy on another machine has other
    inodes and is read again. Give `file` None to remember within this object only.
    """

    def __init__(self, root: Path, file: Path | None) -> None:
        self.root, self._file = root, file
        self._changed = False
        self._known: dict[str, list[Any]] = {}
        if file is not None:
            try:
                known = parse_json(file.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                known = {}
            self._known = known if isinstance(known, dict) else {}

    def digest(self, path: Path) -> str:
        """The hex SHA-256 of a file's bytes.

        Raises:
            OSError: it cannot be read.
        """
        state, now = path.stat(), time.time_ns()
        identity = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
        known = self._known.get(os.path.relpath(path, self.root))
        if isinstance(known, list) and known[:-1] == identity:
            return str(known[-1])
        found = sha256_file(path)
        if now - max(state.st_mtime_ns, state.st_ctime_ns) > _RACY_NS:
            self.remember(path, found)
        return found

    def remember(self, path: Path, digest: str) -> None:
        """Take over the digest of a file that is known otherwise, as one that was just written."""
        state = path.stat()
        identity = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
        self._known[os.path.relpath(path, self.root)] = [*identity, digest]
        self._changed = True

    @property
    def known(self) -> dict[str, list[Any]]:
        """What is remembered, for another process."""
        return dict(self._known)

    def learn(self, known: Mapping[str, list[Any]]) -> None:
        """Take over what another process remembers of the same folder."""
        self._changed |= any(self._known.get(key) != entry for key, entry in known.items())
        self._known.update(known)

    def save(self) -> None:
        """Write the memory where anything was added and the folder can be written."""
        if not self._changed or self._file is None:
            return
        try:
            write_text_atomic(self._file, json.dumps(self._known))
        except OSError:
            self._file = None
        self._changed = False


_IN_PROCESS = DigestMemory(Path(), None)


def remembered_sha256(path: str | Path) -> str:
    """`sha256_file`, read once a process while the file does not change: for weights, whose fingerprint every stage asks for."""
    return _IN_PROCESS.digest(Path(path).resolve())
