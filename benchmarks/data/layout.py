"""Where the data sets lie on disk, whether they are complete, and a fingerprint of what they hold.

lmms-eval's tasks read questions from the `datasets` library's Arrow files and videos from fixed folders, both below HF_HOME. Everything
here reads those files and nothing else: no lmms-eval, no `datasets`, no network. `benchmarks.data.download` fetches what is missing, and
only when told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.benchmark import Benchmark
from benchmarks.catalog import select
from savi.base.digest_memory import DigestMemory
from savi.base.digests import parse_json, sha256_bytes, sha256_file
from savi.base.errors import SaviError
from savi.base.files import beside_or_cached

MEDIA_CACHE = ".media-sha256.json"
TWINS_STAMP = "twins.json"


class DatasetError(SaviError, RuntimeError):
    """A data set that is not there or not whole: names what is missing, where it was looked for, and the command that brings it."""


@dataclass(frozen=True)
class DatasetStatus:
    """What of one benchmark is on disk. `n` questions found of `n_expected`; `missing` names files (relative to HF_HOME), at most all."""

    benchmark: str
    n: int
    n_expected: int
    videos: int
    bytes: int
    missing: tuple[str, ...]
    download_gb: float
    gated: bool

    @property
    def ready(self) -> bool:
        """Every question and every video is there."""
        return not self.missing and self.n == self.n_expected


def arrow_folder(hf_home: Path, benchmark: Benchmark, config: str) -> Path:
    """Folder of one configuration's Arrow files, above its version and hash."""
    org = benchmark.repo.split("/")[0]
    return hf_home / "datasets" / f"{org}___{benchmark.dataset_name}" / config


def arrow_files(hf_home: Path, benchmark: Benchmark, config: str) -> list[Path]:
    """The Arrow files of a configuration's evaluation split (several where it was written in shards); empty if it was never prepared."""
    found = sorted(arrow_folder(hf_home, benchmark, config).glob(f"*/*/{benchmark.dataset_name}-{benchmark.split}*.arrow"))
    # Several versions of a data set may lie side by side; `datasets` takes the newest.
    newest = max(
        (f.parent for f in found),
        key=lambda d: (d / "dataset_info.json").stat().st_mtime_ns if (d / "dataset_info.json").exists() else 0,
        default=None,
    )
    return [f for f in found if f.parent == newest]


def _prepared_files(hf_home: Path, benchmark: Benchmark, config: str) -> list[Path]:
    """A configuration's Arrow files.

    Raises:
        DatasetError: there is none.
    """
    files = arrow_files(hf_home, benchmark, config)
    if not files:
        where = arrow_folder(hf_home, benchmark, config)
        raise DatasetError(f"{benchmark.title} ({config}): no Arrow file below {where}; {fix_command(hf_home, benchmark.name)}")
    return files


def read_docs(hf_home: Path, benchmark: Benchmark, config: str) -> Iterator[dict[str, Any]]:
    """A configuration's documents in order, as lmms-eval's task sees them (media columns included, undecoded).

    Raises:
        DatasetError: the configuration was never prepared, or an Arrow file cannot be read.
    """
    import pyarrow as pa

    for f in _prepared_files(hf_home, benchmark, config):
        try:
            with pa.memory_map(str(f)) as source, pa.ipc.open_stream(source) as reader:
                for batch in reader:
                    yield from batch.to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
            raise DatasetError(
                f"{f}: not a whole Arrow file ({str(e).splitlines()[0]}); delete its folder, then {fix_command(hf_home, benchmark.name)}"
            ) from e


def video_of(hf_home: Path, benchmark: Benchmark, task: str, doc: Mapping[str, Any]) -> str:
    """`Benchmark.video_file` of a document on disk.

    Raises:
        DatasetError: the document does not say its video as the task reads it.
    """
    try:
        return benchmark.video_file(task, doc)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        fix = fix_command(hf_home, benchmark.name) + ("" if has_twins(hf_home) else " --update")
        raise DatasetError(
            f"{benchmark.title} ({task}): a question does not say its video ({type(e).__name__}: {e}), as in another revision; {fix}"
        ) from e


def has_twins(hf_home: Path) -> bool:
    """Whether the data below `hf_home` are the synthetic twins and not the data sets themselves."""
    return (hf_home / TWINS_STAMP).exists()


def fix_command(hf_home: Path, benchmark: str) -> str:
    """The command that brings a benchmark's missing files, in words for an error message."""
    if has_twins(hf_home):
        return f"run: python -m benchmarks micro --build-twins {hf_home}"
    return f"run: python -m benchmarks prepare {benchmark} --data {hf_home} --download"


def twins_stamp(hf_home: Path) -> dict[str, Any] | None:
    """What `benchmarks.micro.twins.twins` wrote about the twins below `hf_home`, or None where there are none.

    Raises:
        DatasetError: the stamp is no JSON object.
    """
    path = hf_home / TWINS_STAMP
    if not path.exists():
        return None
    try:
        stamp = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise DatasetError(f"{path}: no JSON ({e}); delete it, then {fix_command(hf_home, '')}") from e
    if not isinstance(stamp, dict):
        raise DatasetError(f"{path}: no JSON object; delete it and build the twins again")
    if not all(isinstance(stamp.get(part), dict) for part in ("tasks", "files")):
        raise DatasetError(f"{path}: does not say its tasks and files; delete it and build the twins again")
    return stamp


def expected_n(hf_home: Path, benchmark: Benchmark, limit: int | None = None) -> int:
    """How many questions a complete evaluation has: the twin's own numbers where twins lie below `hf_home`, else the catalog's.

    `limit` caps each lmms-eval task, as lmms-eval's own `--limit` does.
    """
    stamp = twins_stamp(hf_home)
    twin: dict[str, int] | None = stamp["tasks"].get(benchmark.name) if stamp else None
    sizes = twin.values() if twin else benchmark.sizes
    return sum(n if limit is None else min(limit, n) for n in sizes)


def check(hf_home: Path, benchmark: Benchmark) -> DatasetStatus:
    """List what of a benchmark is on disk and what is missing. Reads the Arrow files and looks at (not into) the videos."""
    n, size = 0, 0
    missing: list[str] = []
    videos: set[str] = set()
    for task, config in zip(benchmark.tasks, benchmark.configs, strict=True):
        if not arrow_files(hf_home, benchmark, config):
            missing.append(str(arrow_folder(hf_home, benchmark, config).relative_to(hf_home)))
            continue
        for doc in read_docs(hf_home, benchmark, config):
            n += 1
            videos.add(video_of(hf_home, benchmark, task, doc))
    for v in sorted(videos):
        path = find_video(hf_home, benchmark, v)
        if path is None:
            missing.append(v)
        else:
            size += path.stat().st_size
    return DatasetStatus(
        benchmark.name, n, expected_n(hf_home, benchmark), len(videos), size, tuple(missing), benchmark.download_gb, benchmark.gated
    )


def find_video(hf_home: Path, benchmark: Benchmark, relative: str) -> Path | None:
    """A video's file, or the one that the benchmark's task takes in its place."""
    path = hf_home / relative
    return next((p for p in (path, *(path.with_suffix(suffix) for suffix in benchmark.other_suffixes)) if p.exists()), None)


class MediaIndex(DigestMemory):
    """SHA-256 of video files, remembered, so that 100 GB are read once and not at every evaluation.

    The memory is a file in HF_HOME; where that is read-only, in the user's cache.
    """

    def __init__(self, hf_home: Path) -> None:
        super().__init__(hf_home, beside_or_cached(hf_home, MEDIA_CACHE))

    def digest(self, path: Path) -> str:
        """Hex SHA-256 of a file's bytes; a directory of frames counts with its files' names and bytes.

        Raises:
            FileNotFoundError: there is no such file.
        """
        if path.is_dir():
            return sha256_bytes("".join(f"{p.name} {self.digest(p)}\n" for p in sorted(path.iterdir()) if p.is_file()).encode())
        return super().digest(path)

    def fingerprint(self, benchmark: Benchmark, relative: Iterable[str]) -> str:
        """SHA-256 over names and bytes of a benchmark's videos (paths relative to HF_HOME, any order); a missing one counts as missing."""
        lines = []
        for v in sorted(set(relative)):
            path = find_video(self.root, benchmark, v)
            lines.append(f"{v} {self.digest(path) if path else 'missing'}\n")
        self.save()
        return sha256_bytes("".join(lines).encode())


def fingerprint(hf_home: Path, benchmark: Benchmark) -> str:
    """SHA-256 over a benchmark's questions (the Arrow files' bytes); the videos have `MediaIndex.fingerprint`.

    Raises:
        DatasetError: a configuration was never prepared.
    """
    h = hashlib.sha256()
    for config in benchmark.configs:
        for f in _prepared_files(hf_home, benchmark, config):
            h.update(f"{config} {sha256_file(f)}\n".encode())
    return h.hexdigest()


def check_all(hf_home: Path) -> list[DatasetStatus]:
    """`check` of the paper's benchmarks, in catalog order."""
    return [check(hf_home, benchmark) for benchmark in select(None)]
