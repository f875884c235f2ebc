"""Bring a real data set onto this machine, and only when told to: fetch from the hub, unpack, build the Arrow files, check.

lmms-eval can do the same as a side effect of the first evaluation; here it is a step of its own that says beforehand what it will take.
Archives are unpacked with every path checked, and parts of a split archive are read one behind the other without a joined copy.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

from benchmarks.benchmark import Benchmark
from benchmarks.data.layout import DatasetError, DatasetStatus, check

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mkv", ".webm", ".mov", ".jpg", ".png"})
ROOM = 2.2
"""Disk space needed, in downloads: the archives and what comes out of them."""

Fetch = Callable[[Benchmark], Path]
"""Brings a repository's files and returns their folder."""
Build = Callable[[Benchmark, str], object]
"""Builds one configuration's Arrow files."""


def prepare(hf_home: Path, b: Benchmark, *, fetch: Fetch | None = None, build: Build | None = None) -> DatasetStatus:
    """Download and unpack what is missing of a benchmark, then return what `check` finds. Videos that are there are kept.

    Raises:
        DatasetError: no room on the disk, no login for a gated set, the hub cannot be reached, or an archive that is broken or reaches
        outside.
    """
    status = check(hf_home, b)
    if status.ready:
        return status
    hf_home.mkdir(parents=True, exist_ok=True)
    free_gb = shutil.disk_usage(hf_home).free / 1e9
    if free_gb < b.download_gb * ROOM:
        raise DatasetError(
            f"{b.title}: needs about {b.download_gb * ROOM:.0f} GB below {hf_home}, {free_gb:.0f} GB are free; point --hf-home elsewhere"
        )
    folder = (fetch or _from_hub(hf_home))(b)
    unpack(folder, hf_home / b.data_dir)
    for config in b.configs:
        (build or _with_datasets(hf_home))(b, config)
    return check(hf_home, b)


def unpack(folder: Path, target: Path) -> int:
    """Unpack a repository's zip files, tar files and split tar files into `target`, and link loose videos; returns the number of new files.

    Raises:
        DatasetError: an archive is broken, or has a member that would land outside `target`.
    """
    n = 0
    for path in sorted(folder.rglob("*.zip")):
        n += _unzip(path, target)
    for parts in _tar_parts(folder):
        n += _untar(parts, target)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
            n += _link(path, target / path.relative_to(folder))
    return n


def _link(path: Path, to: Path) -> int:
    if to.exists():
        return 0
    to.parent.mkdir(parents=True, exist_ok=True)
    to.symlink_to(path.resolve())
    return 1


def _inside(target: Path, name: str, archive: Path) -> Path:
    p = PurePosixPath(name)
    if p.is_absolute() or ".." in p.parts:
        raise DatasetError(f"{archive}: member {name!r} would land outside {target}; nothing more was unpacked")
    return target / p


def _save(source: IO[bytes], to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    tmp = to.with_name(f".{to.name}.{os.getpid()}")
    try:
        with tmp.open("wb") as f:
            shutil.copyfileobj(source, f, 1 << 20)
        tmp.replace(to)
    finally:
        tmp.unlink(missing_ok=True)


def _unzip(path: Path, target: Path) -> int:
    n = 0
    try:
        with zipfile.ZipFile(path) as z:
            for member in z.infolist():
                to = _inside(target, member.filename, path)
                if member.is_dir() or (to.exists() and to.stat().st_size == member.file_size):
                    continue
                with z.open(member) as source:
                    _save(source, to)
                n += 1
    except zipfile.BadZipFile as e:
        raise DatasetError(f"{path}: not a whole zip file ({e}); delete it and prepare again") from e
    return n


def _tar_parts(folder: Path) -> Iterator[list[Path]]:
    groups: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.tar*")):
        groups.setdefault(str(path.parent / path.name.split(".tar")[0]), []).append(path)
    yield from groups.values()


def _untar(parts: Sequence[Path], target: Path) -> int:
    n = 0
    try:
        with _Joined(parts) as joined, tarfile.open(fileobj=joined, mode="r|*") as t:
            for member in t:
                to = _inside(target, member.name, parts[0])
                source = t.extractfile(member) if member.isfile() else None
                if source is None or (to.exists() and to.stat().st_size == member.size):
                    continue
                _save(source, to)
                n += 1
    except tarfile.TarError as e:
        raise DatasetError(f"{parts[0]} ({len(parts)} part(s)): not a whole tar file ({e}); delete the parts and prepare again") from e
    return n


class _Joined(io.RawIOBase):
    """Files read one behind the other as one stream."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__()
        self._left = list(paths)
        self._file: IO[bytes] | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill from the present file, going on to the next at its end."""
        while True:
            if self._file is None:
                if not self._left:
                    return 0
                self._file = self._left.pop(0).open("rb")
            data = self._file.read(len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
            self._file.close()
            self._file = None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


def _from_hub(hf_home: Path) -> Fetch:
    def fetch(b: Benchmark) -> Path:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(b.repo, repo_type="dataset", revision=b.revision, cache_dir=hf_home / "hub"))
        except GatedRepoError as e:
            raise DatasetError(f"{b.repo} is gated: accept its licence on its hub page, then log in with `hf auth login`") from e
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as e:
            note = "; it is gated: a login is needed" if b.gated else ""
            raise DatasetError(f"{b.repo}: could not be downloaded ({type(e).__name__}: {str(e).splitlines()[0]}){note}") from e

    return fetch


def _with_datasets(hf_home: Path) -> Build:
    def build(b: Benchmark, config: str) -> object:
        from datasets import load_dataset

        more = {"revision": b.revision} if b.revision else {}
        return load_dataset(b.repo, config, cache_dir=str(hf_home / "datasets"), **more)

    return build
