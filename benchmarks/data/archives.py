"""What lies in a source's zip and tar files (split ones too), found without unpacking them, and the bringing of single files out of them.

A file lands under a name that the caller gives, never under the archive's own; it is written under a temporary name, checked, and moved.
"""

from __future__ import annotations

import errno
import hashlib
import io
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from benchmarks.data.layout import DatasetError
from benchmarks.data.source import Source, SourceFile
from savi.base.errors import one_line
from savi.base.files import sync_folder

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mkv", ".webm", ".mov", ".jpg", ".png"})
_PIECE = 1 << 20
_BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, ValueError, OSError)
"""What Python's zip reader raises for a damaged file."""


@dataclass(frozen=True)
class Member:
    """One video in a source. `files`: the file it lies in (several parts of a split archive; itself, if it is in none). `offset`: where
    its bytes begin in a tar file. `fetched`: bytes to be read for it."""

    files: tuple[str, ...]
    name: str
    size: int
    fetched: int
    kind: str
    offset: int = 0


def find_members(source: Source) -> list[Member]:
    """Every video of a source, by reading the archives' directories.

    Raises:
        DatasetError: an archive is broken.
    """
    out: list[Member] = []
    tars: dict[str, list[SourceFile]] = {}
    for file in source.files:
        name = file.path.rsplit("/", 1)[-1]
        if name.endswith(".zip"):
            out += _zip_members(source, file)
        elif ".tar" in name:
            tars.setdefault(file.path[: file.path.rindex(".tar")], []).append(file)
        elif _is_video(name):
            out.append(Member((file.path,), file.path, file.size, file.size, "loose"))
    for parts in tars.values():
        out += _tar_members(source, parts)
    return out


def _is_video(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES and not PurePosixPath(name).name.startswith(".")


def _zip_members(source: Source, file: SourceFile) -> Iterator[Member]:
    try:
        with source.open(file.path) as f, zipfile.ZipFile(f) as archive:
            for info in archive.infolist():
                if not info.is_dir() and _is_video(info.filename):
                    yield Member((file.path,), info.filename, info.file_size, info.compress_size, "zip")
    except DatasetError:
        raise  # the source's own word, the hub being away for example
    except _BROKEN as e:
        if isinstance(e, OSError) and e.errno != errno.EINVAL:
            raise
        raise DatasetError(f"{file.path}: not a whole zip file ({one_line(e)}); fetch it again") from e


def _tar_members(source: Source, parts: Sequence[SourceFile]) -> Iterator[Member]:
    names = tuple(p.path for p in parts)
    try:
        with Joined(source, parts) as f, tarfile.open(fileobj=f, mode="r:") as archive:
            for info in archive:
                if info.isfile() and _is_video(info.name):
                    yield Member(names, info.name, info.size, info.size, "tar", info.offset_data)
    except tarfile.TarError as e:
        raise DatasetError(f"{names[0]} ({len(names)} part(s)): not a whole uncompressed tar file ({e}); fetch it again") from e


class Joined(io.RawIOBase):
    """Several files of a source as one."""

    def __init__(self, source: Source, parts: Sequence[SourceFile]) -> None:
        super().__init__()
        self._source, self._parts = source, parts
        self._size = sum(p.size for p in parts)
        self._at = 0
        self._open: tuple[int, IO[bytes]] | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        start = 0
        for i, part in enumerate(self._parts):
            if start <= self._at < start + part.size:
                if self._open is None or self._open[0] != i:
                    self._shut()
                    self._open = (i, self._source.open(part.path))
                self._open[1].seek(self._at - start)
                data = self._open[1].read(min(len(buffer), start + part.size - self._at))
                buffer[: len(data)] = data
                self._at += len(data)
                return len(data)
            start += part.size
        return 0

    def _shut(self) -> None:
        if self._open is not None:
            self._open[1].close()
        self._open = None

    def close(self) -> None:
        self._shut()
        super().close()


def bring(source: Source, wanted: Sequence[tuple[Member, Path]]) -> Iterator[tuple[Path, str]]:
    """Write each member to its path; yields (path, SHA-256) as each is there. What is there already is not asked about here.

    Raises:
        DatasetError: a member is not what its archive or the source says, or an archive is broken.
    """
    by_path = {f.path: f for f in source.files}
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i][0].files, wanted[i][0].offset))
    archive: tuple[tuple[str, ...], Any, zipfile.ZipFile | None] | None = None
    try:
        for i in order:
            member, to = wanted[i]
            if archive is None or archive[0] != member.files:
                _close(archive)
                archive = (member.files, *_open(source, member, by_path))
            _, f, zipped = archive
            expected = by_path[member.files[0]].sha256 if member.kind == "loose" else ""
            try:
                if zipped is not None:
                    with zipped.open(member.name) as stream:
                        yield to, _save(stream, to, member, "")
                else:
                    f.seek(member.offset)
                    yield to, _save(f, to, member, expected)
            except DatasetError:
                raise
            except _BROKEN as e:
                if isinstance(e, OSError) and e.errno != errno.EINVAL:
                    raise  # the disk, not the archive; an impossible offset in a zip file is EINVAL
                raise DatasetError(
                    f"{member.files[0]}: {member.name}: {one_line(e)}; nothing was kept of it, fetch the archive again"
                ) from e
    finally:
        _close(archive)


def _open(source: Source, member: Member, by_path: dict[str, SourceFile]) -> tuple[Any, zipfile.ZipFile | None]:
    if member.kind == "tar":
        return io.BufferedReader(Joined(source, [by_path[p] for p in member.files]), 1 << 16), None
    f = source.open(member.files[0])
    return f, zipfile.ZipFile(f) if member.kind == "zip" else None


def _close(archive: tuple[tuple[str, ...], Any, zipfile.ZipFile | None] | None) -> None:
    if archive is not None:
        for f in (archive[2], archive[1]):
            if f is not None:
                f.close()


def _save(stream: IO[bytes], to: Path, member: Member, expected: str) -> str:
    to.parent.mkdir(parents=True, exist_ok=True)
    temporary = to.with_name(f".{to.name}.{os.getpid()}.part")
    digest, left = hashlib.sha256(), member.size
    try:
        with temporary.open("wb") as f:
            while left > 0 and (piece := stream.read(min(_PIECE, left))):
                f.write(piece)
                digest.update(piece)
                left -= len(piece)
            if not left:
                stream.read(1) if member.kind == "zip" else None  # the end of a zip member is where its checksum is compared
            f.flush()
            os.fsync(f.fileno())
        if left:
            raise DatasetError(f"{member.files[0]}: {member.name} ends {left:,} bytes early; nothing was kept of it, run the command again")
        if expected and digest.hexdigest() != expected:
            raise DatasetError(
                f"{member.files[0]}: SHA-256 is {digest.hexdigest()[:12]}, the hub says {expected[:12]}; nothing was kept of it, "
                "run the same command again"
            )
        temporary.replace(to)
        sync_folder(to.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return digest.hexdigest()
