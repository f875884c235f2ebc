"""Files that survive a crash: whole or absent when written at once, whole up to the last line when appended to.

Everything savi leaves behind goes through here, so a run killed at any moment is continued by the same command. The module must not
know torch, models or videos.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any


class FileFormatError(ValueError):
    """A file that is not what it should be: names the file, the line and what is wrong with it."""


def write_bytes_atomic(path: str | Path, data: bytes) -> Path:
    """Write a file so that a reader, or a crash, sees the old content or the new one and never a part. Parent folders are made.

    Raises:
        OSError: the folder cannot be written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())  # mkstemp makes it readable by its owner alone
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)
    return target


def write_text_atomic(path: str | Path, text: str) -> Path:
    """`write_bytes_atomic` for text: UTF-8, line ends kept as given."""
    return write_bytes_atomic(path, text.encode("utf-8"))


def write_json_atomic(path: str | Path, value: object) -> Path:
    """Write a value as indented JSON, keys sorted, so that equal values give equal files.

    Raises:
        ValueError: a number in it is not finite (no JSON reader agrees on those).
    """
    return write_text_atomic(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make a rename durable. Not every system lets a folder be opened (Windows); there the rename is all there is."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_file(path: str | Path) -> str:
    """The hex SHA-256 of a file's bytes, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sha256_json(value: object) -> str:
    """The hex SHA-256 of a value's JSON with sorted keys and no blanks: equal values, equal hash, whatever the order of the keys.

    Raises:
        TypeError: a part of it has no JSON form.
        ValueError: a number in it is not finite.
    """
    return hashlib.sha256(_line(value).encode("utf-8")).hexdigest()


def _line(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def read_jsonl(path: str | Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file, one by one. A last line without its line end (torn by a crash) is left out.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: a finished line is not a JSON object.
    """
    with Path(path).open("rb") as file:
        for number, raw in enumerate(file, start=1):
            value = _object(raw)
            if value is not None:
                yield value
            elif raw.endswith(b"\n"):
                raise FileFormatError(
                    f"{path}:{number}: not a JSON object: {raw[:80]!r}; delete that line or the file to have it made again"
                )


def _object(raw: bytes) -> dict[str, Any] | None:
    """A line's object, or None where it is none. No proper beginning of a JSON object is one, so a torn line always gives None."""
    try:
        value = json.loads(raw.decode("utf-8"))
    except ValueError:  # covers broken UTF-8 and broken JSON
        return None
    return value if isinstance(value, dict) else None


class JsonlWriter:
    """Append rows to a JSON Lines file, each batch on disk when `write` returns.

    A torn last line, left by a process that was killed while it wrote, is cut off on opening; what it held was never acknowledged, so
    its work is done again. One writer a file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.repaired_bytes = _repair_last_line(self.path)
        self._file = self.path.open("ab")

    def write(self, *rows: Mapping[str, Any]) -> None:
        """Append rows in one write, then wait for the disk.

        Raises:
            TypeError, ValueError: a row has no JSON form; nothing of the batch is written then.
            ValueError: the writer is closed.
        """
        data = "".join(_line(dict(row)) + "\n" for row in rows).encode("utf-8")
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _repair_last_line(path: Path) -> int:
    """End the file with a whole line and return the number of bytes cut off."""
    if not path.exists() or path.stat().st_size == 0:
        return 0
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        start, tail = size, b""
        while start > 0 and b"\n" not in tail:
            step = min(1 << 16, start)
            start -= step
            file.seek(start)
            tail = file.read(step) + tail
        last = tail[tail.rfind(b"\n") + 1 :]
        if not last:
            return 0
        if _object(last) is not None:  # a whole object that only lacks its line end: an editor's habit, not a crash
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
            return 0
        file.truncate(size - len(last))
    return len(last)


@dataclass(frozen=True)
class Failure:
    """One thing that could not be done while the work went on: `what` (video, question), `where` (file or id), `why`, and the `stage`."""

    what: str
    where: str
    why: str
    stage: str


class FailureLog:
    """The failures.jsonl of a run: every failure once, in the order met, on disk when `add` returns.

    A run that is continued meets the failures of its unfinished stage again, so a failure already listed is not listed twice, and the
    file holds no times: a continued run leaves the same bytes as one that was never stopped.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._known: dict[Failure, None] = {}
        if self.path.exists():
            for row in read_jsonl(self.path):
                try:
                    self._known[Failure(**row)] = None
                except TypeError as error:
                    raise FileFormatError(f"{self.path}: not a failure row: {row!r} ({error})") from error

    def add(self, what: str, where: str, why: str, stage: str) -> Failure:
        """List a failure and return it; a no-op for one already listed.

        Raises:
            OSError: the file cannot be written.
        """
        failure = Failure(what, where, why, stage)
        if failure not in self._known:
            with JsonlWriter(self.path) as writer:
                writer.write(asdict(failure))
            self._known[failure] = None
        return failure

    @property
    def failures(self) -> tuple[Failure, ...]:
        return tuple(self._known)

    def counts(self) -> dict[str, int]:
        """Failures by stage, for the run's summary."""
        return dict(Counter(failure.stage for failure in self._known))

    def __len__(self) -> int:
        return len(self._known)


def write_jsonl_atomic(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write a whole JSON Lines file at once."""
    return write_text_atomic(path, "".join(_line(dict(row)) + "\n" for row in rows))
