"""What is wrong with the data sets on this machine, each finding with its fix: before a GPU hour is spent on them.

Looks at questions (absent, of another revision, without a field that the task reads), at videos (absent, unreadable, shorter than their
file or their question says, two the same, two swapped, changed since they were fetched) and at the installed lmms-eval (other folders,
other repository). A fault of a video on the committed list of known bad videos is shown and does not count.
"""

from __future__ import annotations

import ast
import csv
import importlib.util
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from benchmarks.benchmark import Benchmark
from benchmarks.data.layout import (
    DatasetError,
    MediaIndex,
    arrow_files,
    expected_n,
    find_video,
    fingerprint,
    fix_command,
    read_docs,
    twins_stamp,
    video_of,
)
from benchmarks.data.prepare import RECORD_FILE, Record, read_records
from savi.base.av_guard import open_video

LMMS_EVAL = "0.7.3"
"""The version whose tasks the catalog describes."""
KNOWN_BAD = Path(__file__).with_name("known_bad.csv")
SHORT_S = 1.0
"""Seconds by which a video may end before it should."""


@dataclass(frozen=True)
class Finding:
    """One fault. `what` is its kind, `where` a file or folder relative to HF_HOME (or a package), `known` why it does not count."""

    benchmark: str
    what: str
    where: str
    detail: str
    fix: str
    known: str = ""


@cache
def known_bad(path: Path = KNOWN_BAD) -> Mapping[tuple[str, str], str]:
    """(benchmark, video id) -> what is known of it, with its source."""
    with path.open(encoding="utf-8", newline="") as f:
        return {(row["benchmark"], row["video"]): f"{row['what']} ({row['source']})" for row in csv.DictReader(f)}


def examine(
    hf_home: Path, benchmark: Benchmark, *, read_videos: bool = True, known: Mapping[tuple[str, str], str] | None = None
) -> list[Finding]:
    """Everything that is wrong with one benchmark's data. `read_videos`: open and hash them too (reads every byte once)."""
    known = known_bad() if known is None else known
    found = [*_installed(benchmark)]
    record, problem = _record(hf_home, benchmark)
    found += problem
    questions, seconds = _questions(hf_home, benchmark, record)
    found += questions
    found += _absent(hf_home, benchmark, seconds)
    if read_videos:
        found += _videos(hf_home, benchmark, seconds, record)
    bad = (known.get((benchmark.name, benchmark.video_id(f.where)), "") for f in found)
    return [Finding(f.benchmark, f.what, f.where, f.detail, f.fix, why) for f, why in zip(found, bad, strict=True)]


def _record(hf_home: Path, benchmark: Benchmark) -> tuple[Record | None, list[Finding]]:
    """What the data should be: the record of `prepare`, or the twins' stamp."""
    try:
        record = read_records(hf_home).get(benchmark.name)
        stamp = twins_stamp(hf_home)
    except DatasetError as e:
        return None, [
            Finding(benchmark.name, "broken record", RECORD_FILE, str(e), "move it away and run `python -m benchmarks prepare` again")
        ]
    if record is None and stamp is not None:
        record = Record(
            benchmark.repo, "", "", {name: list(v) for name, v in stamp["files"].items() if name.startswith(f"{benchmark.video_folder}/")}
        )
    return record, []


def _questions(hf_home: Path, benchmark: Benchmark, record: Record | None) -> tuple[list[Finding], dict[str, float | None]]:
    """Faults of the questions, and each video with the seconds that its questions need."""
    out: list[Finding] = []
    seconds: dict[str, float | None] = {}
    fix = fix_command(hf_home, benchmark.name)
    n, whole = 0, True
    for task, config in zip(benchmark.tasks, benchmark.configs, strict=True):
        if not arrow_files(hf_home, benchmark, config):
            out.append(Finding(benchmark.name, "questions absent", config, "no Arrow file", fix))
            whole = False
            continue
        lacking: set[str] = set()
        try:
            for doc in read_docs(hf_home, benchmark, config):
                n += 1
                lacking |= set(benchmark.fields) - set(doc)
                if not lacking:
                    video = video_of(hf_home, benchmark, task, doc)
                    needs = [s for s in (seconds.get(video), benchmark.seconds(doc)) if s is not None]
                    seconds[video] = max(needs, default=None)
        except DatasetError as e:
            out.append(Finding(benchmark.name, "questions broken", config, str(e), fix))
            whole = False
        if lacking:
            detail = f"no field {', '.join(sorted(lacking))}: another revision than lmms-eval {LMMS_EVAL} reads"
            out.append(Finding(benchmark.name, "wrong revision", config, detail, f"{fix} --update"))
    expected = expected_n(hf_home, benchmark)
    if whole and n != expected:
        detail = f"{n:,} questions, {expected:,} expected: another revision"
        out.append(Finding(benchmark.name, "wrong revision", benchmark.repo, detail, f"{fix} --update"))
    if whole and record is not None and record.questions and fingerprint(hf_home, benchmark) != record.questions:
        detail = f"the questions are not those that were prepared (commit {record.commit[:12]})"
        out.append(Finding(benchmark.name, "wrong revision", benchmark.repo, detail, f"{fix} --update"))
    return out, seconds


def _absent(hf_home: Path, benchmark: Benchmark, videos: Iterable[str]) -> Iterator[Finding]:
    for video in sorted(videos):
        if find_video(hf_home, benchmark, video) is not None:
            continue
        elsewhere = next((p for p in benchmark.elsewhere(video) if (hf_home / p).exists()), None)
        if elsewhere is not None:
            move = f"mkdir -p '{(hf_home / video).parent}' && mv '{hf_home / elsewhere}' '{hf_home / video}'"
            yield Finding(
                benchmark.name, "wrong folder", video, f"lies in {elsewhere}, where lmms-eval {LMMS_EVAL} does not look", f"run: {move}"
            )
        else:
            yield Finding(benchmark.name, "absent", video, "no such file", fix_command(hf_home, benchmark.name))


def _videos(hf_home: Path, benchmark: Benchmark, seconds: Mapping[str, float | None], record: Record | None) -> Iterator[Finding]:
    index = MediaIndex(hf_home)
    recorded = record.videos if record is not None else {}
    owner = {digest: video for video, (_, digest) in recorded.items()}
    same: dict[str, list[str]] = defaultdict(list)
    for video, needs in sorted(seconds.items()):
        path = find_video(hf_home, benchmark, video)
        if path is None:
            continue
        again = f"delete {path}, then {fix_command(hf_home, benchmark.name)}"
        try:
            digest = index.digest(path)
        except OSError as e:
            yield Finding(benchmark.name, "unreadable", video, f"cannot be read ({e.strerror or e})", again)
            continue
        same[digest].append(video)
        if video in recorded and digest != recorded[video][1]:
            other = owner.get(digest)
            kind = "swapped" if other else "changed"
            detail = f"has the bytes of {other}" if other else "other bytes than were fetched"
            yield Finding(benchmark.name, kind, video, detail, again)
            if other:
                continue
        if path.is_file() and (fault := _fault(path, needs)):
            yield Finding(benchmark.name, fault[0], video, fault[1], again)
    index.save()
    expected_same = defaultdict(list)
    for video, (_, digest) in recorded.items():
        expected_same[digest].append(video)
    for digest, videos in same.items():
        if len(videos) > 1 and len(expected_same[digest]) < len(videos):
            where = videos[-1]
            yield Finding(
                benchmark.name,
                "duplicated",
                where,
                f"the same bytes as {videos[0]}",
                f"delete both, then {fix_command(hf_home, benchmark.name)}",
            )


def _fault(path: Path, needs: float | None) -> tuple[str, str] | None:
    """Whether a video cannot be read, or ends early: (kind, detail)."""
    import av

    try:
        with open_video(path) as (container, stream):
            said = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else None
            if said is None and container.duration:
                said = container.duration / 1_000_000
            start = float((stream.start_time or 0) * (stream.time_base or 0))
            last = next(container.decode(stream), None)
            if said and stream.time_base:
                container.seek(int(stream.start_time or 0) + int(max(said - 2, 0) / stream.time_base), stream=stream)
            if last is None:
                return "unreadable", "no frame can be decoded"
            for frame in container.decode(stream):
                last = frame
            shown = (last.time or 0.0) - start + float(1 / (stream.average_rate or 25))
    except (av.error.FFmpegError, IndexError, OSError, ValueError) as e:
        return "unreadable", f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else 'no video'} ({path.stat().st_size:,} bytes)"
    if said is not None and shown < said - SHORT_S:
        return "short", f"ends after {shown:.1f} of the {said:.1f} s that its header says"
    if needs is not None and shown < needs - SHORT_S:
        return "short", f"ends after {shown:.1f} s, a question needs {needs:.1f} s"
    return None


def _installed(benchmark: Benchmark) -> Iterator[Finding]:
    """Where the installed lmms-eval reads something else than the catalog says. Its files are read, not run."""
    spec = importlib.util.find_spec("lmms_eval")
    if spec is None or not spec.submodule_search_locations:
        yield Finding(benchmark.name, "lmms-eval", "lmms_eval", "not installed", f'pip install "lmms_eval=={LMMS_EVAL}"')
        return
    yield from task_differences(benchmark, Path(next(iter(spec.submodule_search_locations))) / "tasks" / benchmark.task_folder)


def task_differences(benchmark: Benchmark, folder: Path) -> Iterator[Finding]:
    """`_installed` for one folder of lmms-eval's tasks."""
    fix = f'pip install "lmms_eval=={LMMS_EVAL}", or move the videos to the folders that the installed version reads'
    texts = {p: p.read_text(encoding="utf-8") for p in sorted(folder.rglob("*")) if p.suffix in ("", ".yaml") and p.is_file()}
    loaded = {p: raw for p, text in texts.items() if isinstance(raw := yaml.load(text, _Plain), dict)}  # noqa: S506 (a SafeLoader)
    names = {raw.get("task"): p for p, raw in loaded.items() if isinstance(raw.get("task"), str)}
    for task in benchmark.tasks:
        if task not in names:
            yield Finding(benchmark.name, "lmms-eval", task, "the installed version has no such task", fix)
            continue
        raw = loaded[names[task]]
        base = loaded.get(names[task].parent / str(raw.get("include")), {})
        merged = {**base, **raw}
        says = {
            "dataset_path": (merged.get("dataset_path"), benchmark.repo),
            "cache_dir": ((merged.get("dataset_kwargs") or {}).get("cache_dir"), benchmark.data_dir),
            "split": (merged.get("test_split") or merged.get("validation_split"), benchmark.split),
        }
        for key, (theirs, ours) in says.items():
            if theirs != ours:
                yield Finding(benchmark.name, "lmms-eval", task, f"{key} is {theirs!r} there, {ours!r} here", fix)
    yield from _folder_differences(benchmark, folder, fix)


def _folder_differences(benchmark: Benchmark, folder: Path, fix: str) -> Iterator[Finding]:
    folders = benchmark.task_folders
    utils = folder / "utils.py"
    if not folders or not utils.exists():
        return
    theirs: dict[str, Any] = {}
    for node in ast.parse(utils.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DATA_LIST":
            theirs = ast.literal_eval(node.value)
    for name, ours in folders.items():
        if theirs.get(name) != ours:
            yield Finding(benchmark.name, "lmms-eval", name, f"videos in {theirs.get(name)!r} there, in {ours!r} here", fix)


class _Plain(yaml.SafeLoader):
    """Reads lmms-eval's YAML without running what `!function` names."""


_Plain.add_constructor("!function", lambda loader, node: f"!function {node.value}")
