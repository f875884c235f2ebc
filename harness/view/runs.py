"""The runs below a folder: which there are, what an index says of each, and whether their files have changed.

Reads scores and gate results only, no records, so that an index of many large runs is quick.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.gate.decision import GateFileError, GateResult
from harness.records import SCORE_FILE, RecordError, Score, read_score

MAX_DEPTH = 4
"""Folders below the one asked for that are looked into."""
MAX_RUNS = 500
_STAGE = re.compile(r"base|iter-\d+")
_SKIPPED = {"data", "hf_home", "model", "train", "eval", "tables", "node_modules", "__pycache__"}
_READ = ("run.json", "failures.jsonl", "timings.json", "pairs.jsonl", "dropped.jsonl", "gate.json", "train/log.jsonl")


@dataclass(frozen=True)
class StageFacts:
    """A stage's name, its scores, and the answers in journals of evaluations that are not finished."""

    key: str
    scores: dict[str, Score]
    pending: int


@dataclass(frozen=True)
class RunFacts:
    """What the index says of a run. `mean`s are strict percentages over the benchmarks that all measured stages have."""

    name: str
    """The folder relative to the one asked for; `.` where that is the run itself."""
    scale: str
    stages: list[StageFacts]
    first_mean: float | None
    last_mean: float | None
    verdict: str
    changed: float
    """When its files last changed, seconds since 1970."""
    problem: str = ""

    @property
    def measured(self) -> list[StageFacts]:
        return [s for s in self.stages if s.scores]

    @property
    def questions(self) -> int:
        return sum(s.n for s in self.measured[-1].scores.values()) if self.measured else 0

    @property
    def pending(self) -> int:
        """Answers of evaluations that are not finished."""
        return sum(s.pending for s in self.stages)


def is_run(folder: Path) -> bool:
    """Whether a report can be made of a folder: a run, or one evaluation."""
    if _STAGE.fullmatch(folder.name):
        return False
    return (
        (folder / "run.json").is_file()
        or (folder / "base" / "eval").is_dir()
        or (folder / "iter-1").is_dir()
        or any(any(d.glob(f"*/{SCORE_FILE}")) for d in (folder, folder / "eval"))
    )


def find_runs(root: Path) -> list[Path]:
    """Run folders at or below `root`, by name. What lies inside a run, behind a link or in a hidden folder is not looked at."""

    def walk(folder: Path, depth: int) -> Iterator[Path]:
        if is_run(folder):
            yield folder
        elif depth < MAX_DEPTH:
            try:
                inner = sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink())
            except OSError:
                return
            for p in inner:
                if not p.name.startswith(".") and p.name not in _SKIPPED:
                    yield from walk(p, depth + 1)

    found = []
    for run in walk(root, 0):
        found.append(run)
        if len(found) == MAX_RUNS:
            break
    return found


def run_id(root: Path, run: Path) -> str:
    """A run's name in addresses: its path below `root`."""
    return run.relative_to(root).as_posix()


def _stage_folders(run: Path) -> list[Path]:
    found = [p for p in run.iterdir() if p.is_dir() and _STAGE.fullmatch(p.name)]
    return sorted(found, key=lambda p: -1 if p.name == "base" else int(p.name[5:])) or [run]


def files_of(run: Path) -> Iterator[Path]:
    """The files that a report of the run reads, and the journals of evaluations that are not finished."""
    stages = _stage_folders(run)
    for folder in dict.fromkeys((run, *stages)):
        yield from (folder / name for name in _READ)
    for stage in stages:
        for name in (SCORE_FILE, "questions.jsonl", "journal*.jsonl"):
            yield from stage.glob(f"eval/*/{name}")
            yield from stage.glob(f"*/{name}")


def fingerprint(run: Path) -> str:
    """Changes when a file of the run does: names, sizes and times, no contents."""
    h = hashlib.sha256()
    for name, size, when in sorted(_stats(run)):
        h.update(f"{name}\t{size}\t{when}\n".encode(errors="surrogateescape"))
    return h.hexdigest()[:16]


def _stats(run: Path) -> Iterator[tuple[str, int, int]]:
    try:
        for path in files_of(run):
            try:
                s = path.stat()
            except OSError:
                continue
            yield str(path), s.st_size, s.st_mtime_ns
    except OSError:
        return


def _scores(stage: Path) -> dict[str, Score]:
    paths = sorted([*stage.glob(f"eval/*/{SCORE_FILE}")] or stage.glob(f"*/{SCORE_FILE}"))
    return {p.parent.name: read_score(p) for p in paths}


def _answers(stage: Path) -> int:
    """Answers in journals: every line but the header."""
    total = 0
    for path in stage.glob("eval/*/journal*.jsonl"):
        with path.open("rb") as f:
            total += max(0, sum(chunk.count(b"\n") for chunk in iter(lambda: f.read(1 << 20), b"")) - 1)
    return total


def _verdict(stage: Path) -> str:
    try:
        raw = json.loads((stage / "gate.json").read_text(encoding="utf-8"))
        found = raw.get("base") or next(iter(raw.values()))
        return GateResult.from_json(found).verdict
    except (OSError, ValueError, AttributeError, StopIteration, TypeError, RecursionError, GateFileError):
        return ""


def facts(root: Path, run: Path) -> RunFacts:
    """What the index says of a run; what cannot be read is its `problem`, never an error."""
    name, times = run_id(root, run), [when for _, _, when in _stats(run)]
    changed = max(times, default=0) / 1e9
    try:
        stages = [StageFacts(d.name if d != run else "model", _scores(d), _answers(d)) for d in _stage_folders(run)]
    except (RecordError, OSError) as e:
        return RunFacts(name, "", [], None, None, "", changed, problem=str(e).replace(f"{run}{os.sep}", ""))
    measured = [s for s in stages if s.scores]
    complete = [b for b in (measured[0].scores if measured else ()) if all(b in s.scores for s in measured)]
    means = [sum(s.scores[b].strict_pct for b in complete) / len(complete) for s in measured] if complete else []
    return RunFacts(
        name,
        next((s.scale for m in measured for s in m.scores.values()), ""),
        stages,
        means[0] if means else None,
        means[-1] if means else None,
        _verdict(run / measured[-1].key) if measured else "",
        changed,
    )
