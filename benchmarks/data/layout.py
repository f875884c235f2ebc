"""Where the six data sets lie on disk, whether they are complete, and a fingerprint of what they hold.

lmms-eval's tasks read questions from the `datasets` library's Arrow files and videos from fixed folders, both below HF_HOME. Everything
here reads those files and nothing else: no lmms-eval, no `datasets`, no network. `benchmarks.data.download` fetches what is missing, and
only when told.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.catalog import CATALOG, Benchmark

MVBENCH_FOLDERS: dict[str, str] = {
    "object_interaction": "star/Charades_segment", "action_sequence": "star/Charades_segment", "action_prediction": "star/Charades_segment",
    "action_localization": "sta/sta_video_segment", "moving_count": "clevrer/video_validation", "fine_grained_pose": "nturgbd_convert",
    "character_order": "perception/videos", "object_shuffle": "perception/videos", "egocentric_navigation": "vlnqa",
    "moving_direction": "clevrer/video_validation", "episodic_reasoning": "tvqa/video_fps3_hq_segment",
    "fine_grained_action": "Moments_in_Time_Raw/videos", "scene_transition": "scene_qa/video", "state_change": "perception/videos",
    "moving_attribute": "clevrer/video_validation", "action_antonym": "ssv2_video_mp4", "unexpected_action": "FunQA_test/test",
    "counterfactual_inference": "clevrer/video_validation", "object_existence": "clevrer/video_validation",
    "action_count": "perception/videos",
}  # fmt: skip
"""Folder of each MVBench subtask's videos (lmms-eval 0.7.3, tasks/mvbench/utils.py, DATA_LIST)."""

VIDEO_SUBDIR = {
    "mvbench": "", "perceptiontest": "videos", "tempcompass": "videos", "nextqa": "NExTVideo", "egoschema": "videos",
    "longvideobench": "videos",
}  # fmt: skip
"""Folder of the videos below the benchmark's `data_dir`."""

SNAKE_NAMES = {
    "mvbench": "mv_bench", "perceptiontest": "perception_test_val", "tempcompass": "temp_compass", "nextqa": "n_ex_tqa",
    "egoschema": "egoschema",
    "longvideobench": "long_video_bench",
}  # fmt: skip
"""What the `datasets` library makes of the repository's name."""

GATED = frozenset({"longvideobench"})
"""The hub asks for an accepted licence and a login before it gives the files out."""
MEDIA_CACHE = ".media-sha256.json"
TWINS_STAMP = "twins.json"


class DatasetError(RuntimeError):
    """A data set that is not there or not whole: names what is missing, where it was looked for, and the command that mends it."""


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


def arrow_folder(hf_home: Path, b: Benchmark, config: str) -> Path:
    """Folder of one configuration's Arrow files, above its version and hash."""
    org = b.repo.split("/")[0]
    return hf_home / "datasets" / f"{org}___{SNAKE_NAMES[b.name]}" / config


def arrow_files(hf_home: Path, b: Benchmark, config: str) -> list[Path]:
    """The Arrow files of a configuration's evaluation split (several where it was written in shards); empty if it was never prepared."""
    found = sorted(arrow_folder(hf_home, b, config).glob(f"*/*/{SNAKE_NAMES[b.name]}-{b.split}*.arrow"))
    # Several versions of a data set may lie side by side; `datasets` takes the newest.
    newest = max(
        (f.parent for f in found),
        key=lambda d: (d / "dataset_info.json").stat().st_mtime_ns if (d / "dataset_info.json").exists() else 0,
        default=None,
    )
    return [f for f in found if f.parent == newest]


def read_docs(hf_home: Path, b: Benchmark, config: str) -> Iterator[dict[str, Any]]:
    """A configuration's documents in order, as lmms-eval's task sees them (media columns included, undecoded).

    Raises:
        DatasetError: the configuration was never prepared, or an Arrow file cannot be read.
    """
    import pyarrow as pa

    files = arrow_files(hf_home, b, config)
    if not files:
        raise DatasetError(f"{b.title} ({config}): no Arrow file below {arrow_folder(hf_home, b, config)}; {mend(hf_home, b.name)}")
    for f in files:
        try:
            with pa.memory_map(str(f)) as source, pa.ipc.open_stream(source) as reader:
                for batch in reader:
                    yield from batch.to_pylist()
        except (pa.ArrowInvalid, OSError) as e:
            raise DatasetError(
                f"{f}: not a whole Arrow file ({str(e).splitlines()[0]}); delete its folder, then {mend(hf_home, b.name)}"
            ) from e


def mend(hf_home: Path, benchmark: str) -> str:
    """The command that brings a benchmark's missing files, in words for an error message."""
    if (hf_home / TWINS_STAMP).exists():
        return f"run: python -m benchmarks micro --build-twins {hf_home}"
    return f"run: python -m benchmarks prepare {benchmark} --hf-home {hf_home} --download"


def video_file(b: Benchmark, task: str, doc: Mapping[str, Any]) -> str:
    """Path of a document's video relative to HF_HOME (POSIX), by the rule of the task that reads it.

    Raises:
        KeyError: the document lacks the field that names its video.
    """
    if b.name == "mvbench":
        return f"{b.data_dir}/{MVBENCH_FOLDERS[task.removeprefix('mvbench_')]}/{doc['video']}"
    if b.name == "longvideobench":
        return f"{b.data_dir}/videos/{doc['video_path']}"
    field = {"perceptiontest": "video_name", "tempcompass": "video_id", "nextqa": "video", "egoschema": "video_idx"}[b.name]
    return f"{b.data_dir}/{VIDEO_SUBDIR[b.name]}/{doc[field]}.mp4"


def video_id(b: Benchmark, relative: str) -> str:
    """A video's name within its benchmark, the cluster of paired tests: its path without the common folder and the suffix."""
    return relative.removeprefix(f"{b.data_dir}/").removeprefix(f"{VIDEO_SUBDIR[b.name]}/").rsplit(".", 1)[0]


def twins_stamp(hf_home: Path) -> dict[str, Any] | None:
    """What `benchmarks.micro.twins.twins` wrote about the twins below `hf_home`, or None where there are none.

    Raises:
        DatasetError: the stamp is no JSON object.
    """
    path = hf_home / TWINS_STAMP
    if not path.exists():
        return None
    try:
        stamp = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise DatasetError(f"{path}: no JSON ({e}); delete it, then {mend(hf_home, '')}") from e
    if not isinstance(stamp, dict):
        raise DatasetError(f"{path}: no JSON object; delete it and build the twins again")
    return stamp


def expected_n(hf_home: Path, b: Benchmark, limit: int | None = None) -> int:
    """How many questions a complete evaluation has: the twin's own numbers where twins lie below `hf_home`, else the catalog's.

    `limit` caps each lmms-eval task, as lmms-eval's own `--limit` does. For the real TempCompass and MVBench the catalog knows only the
    sum, so a limit is applied to the number of documents found.
    """
    stamp = twins_stamp(hf_home)
    tasks: dict[str, int] | None = stamp["tasks"].get(b.name) if stamp else None
    if limit is None:
        return sum(tasks.values()) if tasks else b.n
    if tasks is None:
        tasks = (
            {t: sum(1 for _ in read_docs(hf_home, b, c)) for t, c in zip(b.tasks, b.configs, strict=True)}
            if len(b.tasks) > 1
            else {b.tasks[0]: b.n}
        )
    return sum(min(limit, n) for n in tasks.values())


def check(hf_home: Path, b: Benchmark) -> DatasetStatus:
    """List what of a benchmark is on disk and what is missing. Reads the Arrow files and looks at (not into) the videos."""
    n, size = 0, 0
    missing: list[str] = []
    videos: set[str] = set()
    for task, config in zip(b.tasks, b.configs, strict=True):
        if not arrow_files(hf_home, b, config):
            missing.append(str(arrow_folder(hf_home, b, config).relative_to(hf_home)))
            continue
        for doc in read_docs(hf_home, b, config):
            n += 1
            videos.add(video_file(b, task, doc))
    for v in sorted(videos):
        path = existing_video(hf_home / v)
        if path is None:
            missing.append(v)
        else:
            size += path.stat().st_size
    return DatasetStatus(b.name, n, expected_n(hf_home, b), len(videos), size, tuple(missing), b.download_gb, b.name in GATED)


def existing_video(path: Path) -> Path | None:
    """The file itself, or the variants that lmms-eval's tasks also try (suffix in capitals; MVBench's data0613 folder)."""
    for p in (path, path.with_suffix(path.suffix.upper())):
        if p.exists():
            return p
    parts = path.parts
    if "mvbench_video" in parts:
        i = parts.index("mvbench_video") + 1
        p = Path(*parts[:i], "data0613", *parts[i:])
        if p.exists():
            return p
    return None


class MediaIndex:
    """SHA-256 of video files, remembered by size and modification time, so that 100 GB are read once and not at every evaluation.

    The memory is a file in HF_HOME; where that is read-only, digests live as long as the object.
    """

    def __init__(self, hf_home: Path) -> None:
        self.hf_home = hf_home
        self._file = hf_home / MEDIA_CACHE
        self._changed = False
        self._known: dict[str, list[Any]] = {}
        if self._file.exists():
            try:
                known = json.loads(self._file.read_text(encoding="utf-8"))
            except ValueError:
                known = {}  # a memory only: what cannot be read is computed again
            self._known = known if isinstance(known, dict) else {}

    def digest(self, path: Path) -> str:
        """Hex SHA-256 of a file's bytes; a directory of frames counts with its files' names and bytes.

        Raises:
            FileNotFoundError: there is no such file.
        """
        if path.is_dir():
            return hashlib.sha256(
                "".join(f"{p.name} {self.digest(p)}\n" for p in sorted(path.iterdir()) if p.is_file()).encode()
            ).hexdigest()
        st = path.stat()
        key = os.path.relpath(path, self.hf_home)
        known = self._known.get(key)
        if isinstance(known, list) and known[:2] == [st.st_size, st.st_mtime_ns]:
            return str(known[2])
        h = hashlib.sha256()
        with path.open("rb") as f:
            while piece := f.read(1 << 20):
                h.update(piece)
        self._known[key] = [st.st_size, st.st_mtime_ns, h.hexdigest()]
        self._changed = True
        return h.hexdigest()

    def fingerprint(self, relative: Iterable[str]) -> str:
        """SHA-256 over names and bytes of videos (paths relative to HF_HOME, any order); a missing one counts as missing."""
        lines = []
        for v in sorted(set(relative)):
            path = existing_video(self.hf_home / v)
            lines.append(f"{v} {self.digest(path) if path else 'missing'}\n")
        self.save()
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def save(self) -> None:
        """Write the memory, if anything was added and the folder can be written."""
        if not self._changed or not os.access(self.hf_home, os.W_OK):
            return
        tmp = self._file.with_name(f"{MEDIA_CACHE}.{os.getpid()}")
        tmp.write_text(json.dumps(self._known), encoding="utf-8")
        tmp.replace(self._file)
        self._changed = False


def fingerprint(hf_home: Path, b: Benchmark) -> str:
    """SHA-256 over a benchmark's questions (the Arrow files' bytes); the videos have `MediaIndex.fingerprint`.

    Raises:
        DatasetError: a configuration was never prepared.
    """
    h = hashlib.sha256()
    for config in b.configs:
        files = arrow_files(hf_home, b, config)
        if not files:
            raise DatasetError(f"{b.title} ({config}): no Arrow file below {arrow_folder(hf_home, b, config)}; {mend(hf_home, b.name)}")
        for f in files:
            h.update(f"{config} {hashlib.sha256(f.read_bytes()).hexdigest()}\n".encode())
    return h.hexdigest()


def check_all(hf_home: Path) -> list[DatasetStatus]:
    """`check` of all six, in catalog order."""
    return [check(hf_home, b) for b in CATALOG.values()]
