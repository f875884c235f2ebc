"""Stock lmms-eval result folders: a model each, with the answers of every question where `--log_samples` left them.

Files come from anyone: what cannot be trusted is a `LeaderboardError` with its place, never a number.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.benchmark import Benchmark, Credit
from benchmarks.catalog import CATALOG
from harness.tables.leaderboard.entry import UNSTATED, Answers, Entry, EntryScore, Key, LeaderboardError, answers_of

MAX_RESULTS_BYTES = 200_000_000
RESULTS = re.compile(r"(?P<date>.+)_results\.json")
"""A result file's name, with the date that its samples share."""


@dataclass
class StockTask:
    """One lmms-eval task's result: its value in the task's own unit, and its sample rows."""

    value: float
    original: int
    effective: int
    samples: list[dict[str, Any]] | None
    source: Path


def _load(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_RESULTS_BYTES:
        raise LeaderboardError(f"{path}: {path.stat().st_size:,} bytes is more than a result file has")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"), parse_constant=_not_a_number)
    except (UnicodeDecodeError, ValueError, RecursionError) as e:
        raise LeaderboardError(f"{path}: no valid JSON: {e}") from e
    need = ("results", "configs", "n-samples")
    if not isinstance(raw, dict) or not all(isinstance(raw.get(k), dict) for k in need):
        raise LeaderboardError(f"{path}: not a result file of lmms-eval 0.7 (it has {', '.join(need)}); another tool's or version's?")
    return raw


def _not_a_number(token: str) -> float:
    raise ValueError(f"{token} is no score")


@dataclass
class StockRun:
    """What stock lmms-eval left of one model in a folder: its tasks, later result files first, and what the newest file says beside."""

    name: str
    raw: dict[str, Any]
    tasks: dict[str, StockTask] = field(default_factory=dict)
    replaced: set[str] = field(default_factory=set)
    """Tasks that several files have."""

    @property
    def config(self) -> dict[str, Any]:
        """lmms-eval's own settings of the run."""
        found = self.raw.get("config")
        return found if isinstance(found, dict) else {}


def stock_runs(files: Sequence[Path]) -> list[StockRun]:
    """The models of the `*_results.json` files of one folder.

    Raises:
        LeaderboardError: a file that cannot be trusted.
    """
    runs: dict[str, StockRun] = {}
    for path in sorted(files, key=lambda p: p.name):
        found = StockRun("", _load(path))
        found.name = str(found.raw.get("model_name") or found.config.get("model") or path.parent.name)
        run = runs.setdefault(json.dumps([found.name, found.config.get("model_args")], sort_keys=True, default=str), found)
        run.raw = found.raw
        for task, value in _tasks(path, found.raw).items():
            if task in run.tasks:
                run.replaced.add(task)
            run.tasks[task] = value
    return list(runs.values())


def stock_entries(folder: Path, files: Sequence[Path], scale: str | None, data: Literal["real", "micro"]) -> list[Entry]:
    """Entries of one stock folder: a model each, its benchmarks taken from all result files there."""
    out = []
    for run in stock_runs(files):
        scores, notes = _stock_scores(folder, run.tasks, scale if data == "real" else None)
        if run.replaced:
            notes.append(f"{run.name}: several results of {', '.join(sorted(run.replaced)[:3])}; the latest counts")
        if scores:
            out.append(Entry(run.name, "lmms-eval", scale or UNSTATED, scores, str(folder), None, tuple(notes), synthetic=data == "micro"))
    if not out:
        groups = ", ".join(b.group for b in CATALOG.values())
        raise LeaderboardError(f"{folder}: lmms-eval results, but none of a whole benchmark of the catalog ({groups})")
    return out


def _tasks(path: Path, raw: Mapping[str, Any]) -> dict[str, StockTask]:
    out = {}
    match = RESULTS.fullmatch(path.name)
    date = match["date"] if match else ""
    for task, b in ((t, known) for known in CATALOG.values() for t in known.tasks):
        row = raw["results"].get(task)
        if not isinstance(row, dict):
            continue
        value = row.get(f"{b.metric},none")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= b.unit:
            what = f"{b.metric},none is {value!r}, no number from 0 to {b.unit}"
            raise LeaderboardError(f"{path}: {task}: {what}; another version of lmms-eval?")
        counts = raw["n-samples"].get(task)
        original, effective = (counts.get(k) if isinstance(counts, dict) else None for k in ("original", "effective"))
        if not isinstance(original, int) or not isinstance(effective, int) or not 0 < effective <= original:
            raise LeaderboardError(f"{path}: {task}: n-samples is {counts!r}, no count of questions")
        samples = path.parent / f"{date}_samples_{task}.jsonl"
        out[task] = StockTask(float(value), original, effective, _samples(samples) if samples.is_file() else None, samples)
    return out


def _samples(path: Path) -> list[dict[str, Any]]:
    out = []
    with path.open(encoding="utf-8") as f:
        for i, line in enumerate(f, 1):
            try:
                row = json.loads(line, parse_constant=_not_a_number)
            except (ValueError, RecursionError) as e:
                raise LeaderboardError(f"{path}:{i}: no valid JSON: {e}") from e
            if not isinstance(row, dict) or not isinstance(row.get("doc_id"), int):
                raise LeaderboardError(f"{path}:{i}: a sample without doc_id; another version of lmms-eval?")
            out.append(row)
    return out


def _stock_scores(folder: Path, tasks: Mapping[str, StockTask], scale: str | None) -> tuple[dict[str, EntryScore], list[str]]:
    scores, notes = {}, []
    for b in CATALOG.values():
        have = [t for t in b.tasks if t in tasks]
        if not have:
            continue
        if len(have) < len(b.tasks):
            notes.append(f"{folder.name}: {b.title} left out, {len(have)} of its {len(b.tasks)} tasks are there")
            continue
        original = sum(tasks[t].original for t in have)
        if scale and original != b.n:
            raise LeaderboardError(
                f"{folder}: {b.title} has {original} questions, at scale {scale} it has {b.n} (results on the twins: --stock-data micro)"
            )
        pct = sum(tasks[t].value for t in have) / len(have) * (100 / b.unit)
        answers, note = _stock_answers(b, {t: tasks[t] for t in have})
        scores[b.name] = EntryScore(pct, sum(tasks[t].effective for t in have), original, answers, note)
    return scores, notes


def _stock_answers(benchmark: Benchmark, tasks: Mapping[str, StockTask]) -> tuple[Answers | None, str]:
    if any(t.samples is None for t in tasks.values()):
        return None, "no per-question answers (run lmms-eval with --log_samples)"
    rows: list[tuple[Key, float, str, str | None]] = []
    empty = 0
    for name, task in tasks.items():
        credits, counted = [], []
        for i, s in enumerate(task.samples or [], 1):
            credit = _credit(benchmark, s, f"{task.source}:{i}")
            credits.append(credit.right)
            counted.append(credit.counted)
            rows.append(((name, s["doc_id"]), credit.right, str(s.get("target")), credit.video or None))
        if len(credits) != task.effective:
            raise LeaderboardError(f"{task.source}: {len(credits)} samples, the result file says {task.effective}")
        empty += counted.count(False)
        # As the task itself counts: MVBench's leaves an empty answer out of the denominator.
        said = [c for c, a in zip(credits, counted, strict=True) if a]
        mean = sum(said) / len(said) * benchmark.unit if said else 0.0
        if abs(mean - task.value) > 1e-3 * benchmark.unit:
            raise LeaderboardError(f"{task.source}: the samples give {mean:.4f}, the result file says {task.value:.4f}")
    note = f"{empty} empty answers are not counted by lmms-eval" if empty else ""
    rows.sort(key=lambda r: r[0])
    return answers_of(rows, str(next(iter(tasks.values())).source), "targets"), note


def _credit(benchmark: Benchmark, sample: Mapping[str, Any], place: str) -> Credit:
    try:
        credit = benchmark.credit(sample)
    except (KeyError, TypeError, ValueError) as e:
        raise LeaderboardError(f"{place}: no {benchmark.metric} as {benchmark.group} leaves it ({e}); another version of lmms-eval?") from e
    if credit.right not in (0.0, 1.0):
        raise LeaderboardError(f"{place}: {benchmark.metric} gives a credit of {credit.right}, which is neither 0 nor 1")
    return credit
