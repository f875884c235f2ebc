"""Bring real data sets onto this machine, and only when told to: questions first, then the videos that the questions need and no others.

What would stop the work is asked for before anything large is fetched: a login for gated sets, the hub, the questions, room on the
disk. Run again, it goes on with what is missing. What was taken from which commit is kept in HF_HOME, and `benchmarks.data.doctor`
compares with it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from benchmarks.benchmark import Benchmark
from benchmarks.data.archives import Member, bring, find_members
from benchmarks.data.layout import DatasetError, MediaIndex, arrow_files, find_video, fingerprint, read_docs, video_of
from benchmarks.data.source import HubSource, Source
from savi.base.digests import parse_json
from savi.base.files import write_json_atomic

RECORD_FILE = "prepared.json"
INDEX_FOLDER = ".prepare"
SPARE_BYTES = 1_000_000_000
"""Room that is left free on the disk."""

Build = Callable[[Benchmark, str, str | None], object]
"""Builds one configuration's questions (Arrow files) from a revision of the repository."""
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Record:
    """What a benchmark's data were made from: the repository's commit, the questions' fingerprint, and [size, SHA-256] of each video."""

    repo: str
    commit: str
    questions: str
    videos: dict[str, list[Any]]


@dataclass(frozen=True)
class Plan:
    """What there is to fetch for one benchmark. `fetch`: members and the paths they land at; `absent`: videos that no file of the source
    holds; `differing`: videos that are there with another size than the source's, which are left alone."""

    benchmark: Benchmark
    source: Source
    needed: tuple[str, ...]
    fetch: tuple[tuple[Member, Path], ...]
    absent: tuple[str, ...]
    differing: tuple[str, ...]

    @property
    def fetch_bytes(self) -> int:
        """Bytes to be read from the source."""
        return sum(m.fetched for m, _ in self.fetch)

    @property
    def disk_bytes(self) -> int:
        """Bytes that the videos take."""
        return sum(m.size for m, _ in self.fetch)

    @property
    def whole_bytes(self) -> int:
        """Bytes of all files of the source."""
        return sum(f.size for f in self.source.files)


def read_records(hf_home: Path) -> dict[str, Record]:
    """What was prepared below `hf_home`, by benchmark.

    Raises:
        DatasetError: the record is broken.
    """
    path = hf_home / RECORD_FILE
    if not path.exists():
        return {}
    try:
        found = {name: Record(**raw) for name, raw in parse_json(path.read_text(encoding="utf-8")).items()}
        for record in found.values():
            for size, digest in record.videos.values():
                if not (isinstance(size, int) and isinstance(digest, str)):
                    raise ValueError("a video without its size and digest")
        return found
    except (ValueError, TypeError, AttributeError, RecursionError) as e:
        raise DatasetError(f"{path}: no record of prepared data ({e}); move it away and run `prepare` again") from e


def refuse_early(benchmarks: Sequence[Benchmark]) -> None:
    """What can be said before the network is used.

    Raises:
        DatasetError: a gated set and no login on this machine.
    """
    from huggingface_hub import constants, get_token

    for benchmark in benchmarks:
        if benchmark.gated and not get_token():
            raise DatasetError(
                f"{benchmark.title} is gated: accept its licence on {constants.ENDPOINT}/datasets/{benchmark.repo}, "
                "then log in with `hf auth login`; nothing was fetched"
            )


def make_plan(
    hf_home: Path,
    benchmark: Benchmark,
    *,
    source: Source | None = None,
    build: Build | None = None,
    tasks: Sequence[str] = (),
    update: bool = False,
    tell: Tell = lambda _: None,
) -> Plan:
    """Fetch a benchmark's questions where they are missing, and work out which videos of the source they need.

    The commit of an earlier `prepare` is kept unless `update`. `tasks` narrows to some tasks (by task or configuration name).

    Raises:
        DatasetError: the hub, a gated repository, an archive that is broken, or a task that the benchmark does not have.
    """
    chosen = _chosen(benchmark, tasks)
    before = read_records(hf_home).get(benchmark.name)
    if source is None:
        source = HubSource(
            benchmark.repo, benchmark.revision if update or before is None or not before.commit else before.commit, gated=benchmark.gated
        )
    if source.commit:
        kept = " (as before)" if before and before.commit == source.commit else ""
        tell(f"{benchmark.title}: {benchmark.repo} at {source.commit[:12]}{kept}")
    for _, config in chosen:
        if update or not arrow_files(hf_home, benchmark, config):
            (build or _with_datasets(hf_home))(benchmark, config, source.commit or benchmark.revision)
    needed = sorted({video_of(hf_home, benchmark, task, doc) for task, config in chosen for doc in read_docs(hf_home, benchmark, config)})
    for video in needed:
        _check_inside(benchmark, video)
    members = _members(hf_home, benchmark, source)
    fetch, absent, differing = [], [], []
    for video in needed:
        found = _match(benchmark, video, members)
        there = find_video(hf_home, benchmark, video)
        if there is None and not found:
            absent.append(video)
        for member, path in found:
            target = hf_home / path
            if there is None or (target != hf_home / video and not target.exists()):
                fetch.append((member, target))
            elif there.is_file() and there.stat().st_size != member.size:
                differing.append(video)
    return Plan(benchmark, source, tuple(needed), tuple(fetch), tuple(absent), tuple(differing))


def check_room(hf_home: Path, plans: Sequence[Plan]) -> None:
    """Whether all that is to be fetched fits on the disk.

    Raises:
        DatasetError: it does not; says what is needed and what is free.
    """
    need = sum(p.disk_bytes for p in plans)
    existing = next(p for p in (hf_home, *hf_home.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if need and need + SPARE_BYTES > free:
        each = ", ".join(f"{p.benchmark.title} {p.disk_bytes / 1e9:.1f} GB" for p in plans if p.fetch)
        raise DatasetError(
            f"{hf_home}: {free / 1e9:.1f} GB are free, the videos take {need / 1e9:.1f} GB ({each}) and {SPARE_BYTES / 1e9:.0f} GB stay "
            "free; point --data at another disk"
        )


def carry_out(hf_home: Path, plan: Plan, progress: Callable[[int, int], None] = lambda done, total: None) -> Record:
    """Fetch what a plan names and record what is there then. Interrupted, it keeps what arrived; the same call goes on.

    Raises:
        DatasetError: a file is not what the source says, or the source fails.
        OSError: the disk is full; nothing half-written stays.
    """
    index = MediaIndex(hf_home)
    total, done = plan.fetch_bytes, 0
    sizes = {path: member.fetched for member, path in plan.fetch}
    try:
        for path, digest in bring(plan.source, plan.fetch):
            index.remember(path, digest)
            done += sizes[path]
            progress(done, total)
    finally:
        index.save()
    return keep_record(hf_home, plan, index)


def keep_record(hf_home: Path, plan: Plan, index: MediaIndex) -> Record:
    """Write down what is on disk for a plan's benchmark."""
    benchmark = plan.benchmark
    records = read_records(hf_home)
    before = records.get(benchmark.name)
    videos = dict(before.videos) if before is not None and before.commit == plan.source.commit else {}
    for video in plan.needed:
        path = find_video(hf_home, benchmark, video)
        if path is not None and video not in videos:
            videos[video] = [path.stat().st_size if path.is_file() else 0, index.digest(path)]
    index.save()
    whole = all(arrow_files(hf_home, benchmark, config) for config in benchmark.configs)
    record = Record(benchmark.repo, plan.source.commit, fingerprint(hf_home, benchmark) if whole else "", videos)
    write_json_atomic(hf_home / RECORD_FILE, {name: asdict(r) for name, r in {**records, benchmark.name: record}.items()})
    return record


def _chosen(benchmark: Benchmark, tasks: Sequence[str]) -> list[tuple[str, str]]:
    pairs = list(zip(benchmark.tasks, benchmark.configs, strict=True))
    unknown = [t for t in tasks if t not in benchmark.tasks and t not in benchmark.configs]
    if unknown:
        raise DatasetError(f"{benchmark.title} has no task {', '.join(map(repr, unknown))}; choose from {', '.join(benchmark.configs)}")
    return [(t, c) for t, c in pairs if not tasks or t in tasks or c in tasks]


def _check_inside(benchmark: Benchmark, video: str) -> None:
    path = PurePosixPath(video)
    if path.is_absolute() or ".." in path.parts:
        raise DatasetError(
            f"{benchmark.title}: a question names the video {video!r}, which lies outside of {benchmark.data_dir}; nothing was fetched"
        )


def _members(hf_home: Path, benchmark: Benchmark, source: Source) -> dict[str, list[Member]]:
    """Members by file name; the list of a hub repository's commit is kept, since reading it takes requests."""
    kept = hf_home / INDEX_FOLDER / f"{benchmark.name}-{source.commit[:12]}.json" if source.commit else None
    members: list[Member] | None = None
    if kept is not None and kept.exists():
        try:
            members = [Member(**{**raw, "files": tuple(raw["files"])}) for raw in parse_json(kept.read_text(encoding="utf-8"))]
        except (ValueError, TypeError, KeyError):
            members = None  # a memory only: read again
    if members is None:
        members = find_members(source)
        if kept is not None:
            write_json_atomic(kept, [asdict(m) for m in members])
    out: dict[str, list[Member]] = {}
    for m in members:
        parts = PurePosixPath(m.name).parts
        out.setdefault(parts[-1], []).append(m)
        if len(parts) > 1 and parts[-1].endswith((".jpg", ".png")):
            out.setdefault(parts[-2], []).append(m)  # a folder of frames is named as a video
    return out


def _match(benchmark: Benchmark, video: str, members: dict[str, list[Member]]) -> list[tuple[Member, str]]:
    """The members that hold a video, with their paths relative to HF_HOME: the one whose path agrees longest with the video's from the
    end. Where videos lie in several folders (MVBench), the folder has to agree too."""
    parts = PurePosixPath(video).parts
    least = 2 if not benchmark.video_dir else 1
    candidates = [video, *(str(PurePosixPath(video).with_suffix(s)) for s in benchmark.other_suffixes)]
    for name in candidates:
        wanted = PurePosixPath(name).parts
        scored = [(_agreeing(wanted, PurePosixPath(m.name).parts), m) for m in members.get(wanted[-1], ())]
        scored = [(n, m) for n, m in scored if n >= least]
        if scored:
            best = max(n for n, _ in scored)
            return [(next(m for n, m in scored if n == best), name)]
    frames = [m for m in members.get(parts[-1], ()) if _agreeing(parts, PurePosixPath(m.name).parts[:-1]) >= least]
    return [(m, f"{video}/{PurePosixPath(m.name).name}") for m in frames]


def _agreeing(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts are equal, from the end."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(reversed(one), reversed(other), strict=False)))


def _with_datasets(hf_home: Path) -> Build:
    def build(benchmark: Benchmark, config: str, revision: str | None) -> object:
        from datasets import load_dataset
        from huggingface_hub.errors import HTTPError

        from benchmarks.data.source import explain

        more = {"revision": revision} if revision else {}
        try:
            return load_dataset(benchmark.repo, config, cache_dir=str(hf_home / "datasets"), **more)
        except (HTTPError, ConnectionError) as e:
            raise DatasetError(explain(e, benchmark.repo)) from e
        except (ValueError, RuntimeError, FileNotFoundError) as e:
            raise DatasetError(f"{benchmark.repo} ({config}): no questions could be built ({(str(e).splitlines() or [''])[0]})") from e

    return build


def describe(plans: Sequence[Plan]) -> Iterator[str]:
    """One line a plan."""
    for p in plans:
        kept = len(p.needed) - len({t for _, t in p.fetch}) - len(p.absent)
        line = f"{p.benchmark.name}: {len(p.needed):,} videos needed, {max(kept, 0):,} there, {len(p.fetch):,} to fetch: "
        line += f"{p.fetch_bytes / 1e9:.2f} GB of {p.whole_bytes / 1e9:.2f} GB"
        if p.absent:
            line += f"; {len(p.absent):,} in no file of the source, such as {p.absent[0]}"
        if p.differing:
            line += f"; {len(p.differing):,} there in another size and left alone, such as {p.differing[0]}"
        yield line
