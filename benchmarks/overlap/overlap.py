"""A folder of training videos against the benchmarks' videos: which are the same, by which evidence, and which questions ask on them."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from benchmarks.benchmark import Benchmark
from benchmarks.data.layout import MediaIndex, arrow_files, find_video, read_docs, video_of
from benchmarks.overlap.hashes import FRAMES, NOTHING, RATE, SIDE, Look, UnreadableVideoError, look
from benchmarks.overlap.search import find_pairs
from savi.base.digests import sha256_file
from savi.base.files import write_bytes_atomic

CACHE_FOLDER = ".overlap"
_WEAK_NAME = re.compile(r"(?:video|clip|frame|movie|v|\D?)[_-]?\d{1,7}", re.IGNORECASE)
"""Names that many data sets give: equal ones say nothing."""
_CUT = re.compile(r"(?:_\d+(?:\.\d+)?){2}$")
"""Start and end of a segment, as MVBench's file names have them."""
_LEAST_NAME = 5

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Overlap:
    """One training video that is a benchmark's video. `evidence`: bytes, look or name, the strongest (by name alone the frames differ or
    could not be read); `share`: of frames that are alike (1 for the same bytes); `questions`: how many ask on that video."""

    training: str
    benchmark: str
    video: str
    evidence: str
    share: float
    mirrored: bool
    questions: int
    tasks: str


@dataclass(frozen=True)
class Comparison:
    """What was compared and found. `unreadable`: videos of either side without a frame to compare (names and bytes still were)."""

    overlaps: tuple[Overlap, ...]
    training: int
    compared: dict[str, int]
    unreadable: tuple[str, ...]

    @property
    def excluded(self) -> tuple[str, ...]:
        """Training videos to leave out: all that were found, those by name too."""
        return tuple(sorted({o.training for o in self.overlaps}))


def compare(
    videos: Sequence[Path], root: Path, hf_home: Path, benchmarks: Sequence[Benchmark], *, progress: Progress = lambda done, total: None
) -> Comparison:
    """Compare training videos below `root` with the videos of those benchmarks whose questions are on this machine."""
    asked: list[tuple[Benchmark, str, Path]] = []
    tasks: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for b in benchmarks:
        for task, config in zip(b.tasks, b.configs, strict=True):
            for doc in read_docs(hf_home, b, config) if arrow_files(hf_home, b, config) else ():
                tasks[b.name, video_of(hf_home, b, task, doc)][task] += 1
        asked += [(b, v, p) for name, v in sorted(tasks) if name == b.name and (p := find_video(hf_home, b, v)) is not None]
    total = len(videos) + len(asked)
    unreadable: list[str] = []
    index = MediaIndex(hf_home)
    cache = LookCache(hf_home)
    mine = _looks([*videos], cache, unreadable, lambda n: progress(n, total))
    theirs = _looks([p for _, _, p in asked], cache, unreadable, lambda n: progress(len(videos) + n, total))
    cache.save()
    digests = {index.digest(p): i for i, (_, _, p) in enumerate(asked)}
    names: dict[str, list[int]] = defaultdict(list)
    for i, (b, video, _) in enumerate(asked):
        if name := telling_name(b.video_id(video)):
            names[name].append(i)
    best: dict[tuple[int, int], tuple[str, float, bool]] = {}
    for i, path in enumerate(videos):
        for j in names.get(telling_name(path.stem), ()):
            best[i, j] = ("name", 0.0, False)
    for pair in find_pairs(mine, theirs):
        best[pair.first, pair.second] = ("look", round(pair.share, 3), pair.mirrored)
    for i, path in enumerate(videos):
        if (same := digests.get(_digest(path))) is not None:
            best[i, same] = ("bytes", 1.0, False)
    index.save()
    found = []
    for (i, j), (evidence, share, flipped) in sorted(best.items()):
        b, video, _ = asked[j]
        counts = tasks[b.name, video]
        found.append(
            Overlap(
                videos[i].relative_to(root).as_posix(),
                b.name,
                video,
                evidence,
                share,
                flipped,
                sum(counts.values()),
                " ".join(sorted(counts)),
            )
        )
    compared = Counter(b.name for b, _, _ in asked)
    return Comparison(tuple(found), len(videos), {b.name: compared[b.name] for b in benchmarks}, tuple(unreadable))


def _digest(path: Path) -> str:
    try:
        return sha256_file(path) if path.is_file() else ""
    except OSError:  # it counts as unreadable already
        return ""


def telling_name(path: str) -> str:
    """A video's name where equal names mean something, in lower case and without a segment's start and end; else empty."""
    name = _CUT.sub("", path.rsplit("/", 1)[-1])
    return "" if len(name) < _LEAST_NAME or _WEAK_NAME.fullmatch(name) else name.lower()


def to_csv(overlaps: Iterable[Overlap]) -> str:
    """The table of overlaps."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [f.name for f in fields(Overlap)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(o) for o in overlaps)
    return out.getvalue()


def summary(found: Comparison, benchmarks: Sequence[Benchmark]) -> list[str]:
    """One line a benchmark, and what is not comparable."""
    lines = []
    for b in benchmarks:
        mine = [o for o in found.overlaps if o.benchmark == b.name]
        videos = {o.video for o in mine}
        questions = sum({o.video: o.questions for o in mine}.values())
        if not found.compared[b.name]:
            lines.append(f"{b.title}: not on this machine, not compared")
            continue
        kinds = ", ".join(f"{n} by {kind}" for kind, n in sorted(Counter(o.evidence for o in mine).items()))
        alike = len({o.training for o in mine})
        lines.append(
            f"{b.title}: {alike:,} of {found.training:,} training videos are among its {found.compared[b.name]:,} videos"
            + (f" ({kinds}); {questions:,} questions ask on {len(videos):,} of them" if mine else "")
        )
    if found.unreadable:
        lines.append(
            f"{len(found.unreadable):,} videos could not be decoded and were compared by name and bytes only: {found.unreadable[0]}"
        )
    return lines


class LookCache:
    """Looks by path, size and modification time, kept below HF_HOME where that can be written: decoding takes far longer than comparing."""

    def __init__(self, hf_home: Path) -> None:
        self._file = hf_home / CACHE_FOLDER / f"looks-{FRAMES}-{RATE:g}-{SIDE}.npz"
        self._known: dict[str, Look] = {}
        self._changed = False
        if self._file.exists():
            try:
                with np.load(self._file, allow_pickle=False) as raw:
                    ends = raw["ends"]
                    for key, start, end in zip(raw["keys"].tolist(), [0, *ends[:-1].tolist()], ends.tolist(), strict=True):
                        self._known[key] = Look(raw["hashes"][start:end], raw["pictures"][start:end])
            except (OSError, ValueError, KeyError, EOFError, BadZipFile):
                self._known = {}  # a memory only

    def of(self, path: Path) -> Look:
        """A video's look, decoded where it is not known.

        Raises:
            UnreadableVideoError: no frame can be decoded.
        OSError: there is no such file.
        """
        st = path.stat()
        key = hashlib.sha256(os.fsencode(path.resolve()) + f"\t{st.st_size}\t{st.st_mtime_ns}".encode()).hexdigest()[:32]
        if key not in self._known:
            self._known[key] = look(path)
            self._changed = True
        return self._known[key]

    def save(self) -> None:
        """Write what was added."""
        folder = self._file.parent.parent
        if not self._changed or not os.access(folder, os.W_OK):
            return
        out = io.BytesIO()
        looks = list(self._known.values())
        np.savez(
            out,
            keys=np.array(list(self._known)),
            ends=np.cumsum([len(x.hashes) for x in looks]),
            hashes=np.concatenate([x.hashes for x in looks]),
            pictures=np.concatenate([x.pictures for x in looks]),
        )
        write_bytes_atomic(self._file, out.getvalue())
        self._changed = False


def _looks(paths: Sequence[Path], cache: LookCache, unreadable: list[str], progress: Callable[[int], None]) -> list[Look]:
    out = []
    for i, path in enumerate(paths):
        try:
            out.append(cache.of(path))
        except (UnreadableVideoError, OSError):
            unreadable.append(str(path))
            out.append(NOTHING)
        progress(i + 1)
        if i % 500 == 499:
            cache.save()
    return out
