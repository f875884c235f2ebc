"""Files that survive a crash: whole or absent when written at once, whole up to the last line when appended to.

Every file that is to last is written here, so a run killed at any moment is continued by the same command. The module must not
know torch, models or videos.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from savi.base.digests import canonical_json, parse_json, sha256_bytes
from savi.base.errors import FileFormatError


def write_bytes_atomic(path: str | Path, data: bytes) -> Path:
    """Write a file so that a reader, or a crash, sees the old content or the new one and never a part. Parent folders are made.

    Raises:
        OSError: the folder cannot be written.
    """
    target = Path(path)
    make_folder(target.parent)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}.part"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)
    return target


_TORN = re.compile(r"\..+\.[0-9a-z_]{8}(?:\.part)?")


def is_torn(path: Path) -> bool:
    """Whether a file is what a killed atomic writer left behind (of this version or an earlier one)."""
    return _TORN.fullmatch(path.name) is not None and path.is_file()


def write_text_atomic(path: str | Path, text: str) -> Path:
    """`write_bytes_atomic` for text: UTF-8, line ends kept as given."""
    return write_bytes_atomic(path, text.encode("utf-8", "backslashreplace"))  # a file name's odd bytes are JSON escapes then


def write_json_atomic(path: str | Path, value: object) -> Path:
    """Write a value as indented JSON, keys sorted, so that equal values give equal files.

    Raises:
        ValueError: a number in it is not finite (no JSON reader agrees on those).
    """
    return write_text_atomic(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def file_bytes(path: Path) -> int:
    """A file's size, 0 where there is none. Of a video it tells the length: decoding costs in proportion to it."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def make_folder(folder: Path) -> None:
    """Make a folder and its parents; those that are new survive a power loss."""
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for part in reversed(missing):
        sync_folder(part.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Not every system lets a folder be opened (Windows); there the rename is all there is."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def user_cache() -> Path:
    """The user's own folder for what can be made again (XDG_CACHE_HOME, else ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "videosavi"


def beside_or_cached(folder: Path, name: str) -> Path:
    """A path for something about `folder`: in it, or, where it cannot be written, in the user's cache under a name of its own."""
    if os.access(folder, os.W_OK) or not folder.exists():
        return folder / name
    return user_cache() / sha256_bytes(str(folder.resolve()).encode())[:16] / name


def sync_files(files: Iterable[Path], root: Path) -> None:
    """Make files that other libraries wrote durable, and their names up to `root`; several at a time, as a disk
    writes those out together."""
    paths = list(files)
    folders = {root, *(parent for path in paths for parent in path.parents if parent.is_relative_to(root))}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(_sync_file, paths))
        list(pool.map(sync_folder, folders))


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def follow_umask(folder: Path) -> None:
    """Give every file in a folder the mode of a new file: safetensors makes its own 0600, whatever the umask."""
    probe = folder / f".mode.{secrets.token_hex(4)}.part"
    handle = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    mode = os.fstat(handle).st_mode & 0o777
    os.close(handle)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_mode & 0o777 == 0o600:
            path.chmod(mode)


def visible_files(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Files below a folder, hidden ones left out; in linked folders too (`rglob` passes them over), and links to nothing. `above` ends the
    circles that links can make."""
    real = folder.resolve()
    if real in above:
        return
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from visible_files(path, above | {real})
        elif path.is_file() or path.is_symlink():
            yield path


def set_aside(path: Path) -> Path:
    """Rename a file to the first free of NAME.old-1, NAME.old-2, ...; returns the new path."""
    number = 1
    while (kept := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    return path.rename(kept)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder beside `target` that takes its place, whole and durable, when the block ends without an error, else goes.

    A folder that was there stays until then: nothing is deleted before its replacement exists.
    """
    old, partial = target.with_name(f".{target.name}.old"), target.with_name(f"{target.name}.partial")
    if old.exists():  # killed between the two renames below, or while the old folder was deleted
        if target.exists():
            shutil.rmtree(old)
        else:
            old.rename(target)
    shutil.rmtree(partial, ignore_errors=True)
    make_folder(partial)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    replace_folder(partial, target)


def replace_folder(partial: Path, target: Path) -> None:
    """Put a finished folder in `target`'s place; see `new_folder`. Its files follow the umask, as the folder did when it was made."""
    files, mode = [path for path in partial.rglob("*") if path.is_file()], partial.stat().st_mode & 0o666
    for path in files:
        path.chmod(mode)
    sync_files(files, partial)
    old = target.with_name(f".{target.name}.old")
    if target.exists():
        target.rename(old)
    partial.rename(target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


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
        value = parse_json(raw.decode("utf-8"))
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
        make_folder(self.path.parent)
        self.repaired_bytes, new = _repair_last_line(self.path), not self.path.exists()
        self._file = self.path.open("ab")
        if new:
            sync_folder(self.path.parent)

    def write(self, *rows: Mapping[str, Any]) -> None:
        """Append rows in one write, then wait for the disk.

        Raises:
            TypeError, ValueError: a row has no JSON form; nothing of the batch is written then.
            ValueError: the writer is closed.
        """
        data = "".join(canonical_json(dict(row)) + "\n" for row in rows).encode("utf-8", "backslashreplace")
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


def whole_failure(row: dict[str, Any]) -> dict[str, Any]:
    """Check a failure's row. By hand: pydantic takes no text with lone surrogates, and names of files may be any bytes.

    Raises:
        ValueError: it is none.
    """
    if row.keys() != {"what", "where", "why", "stage"} or not all(isinstance(value, str) for value in row.values()):
        raise ValueError("no failure row")
    return row


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

    def forget(self, whats: Collection[str], stage: str) -> None:
        """Take failures of a stage off the list: what was done again is not a failure, or is a new one.

        Raises:
            OSError: the file cannot be written.
        """
        kept = {failure: None for failure in self._known if failure.stage != stage or failure.what not in whats}
        if len(kept) < len(self._known):
            self._known = kept
            write_jsonl_atomic(self.path, map(asdict, kept))

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
    return write_text_atomic(path, "".join(canonical_json(dict(row)) + "\n" for row in rows))
