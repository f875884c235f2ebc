"""Finds what may enter a leaderboard below given paths: our evaluations, stock lmms-eval result folders, folders of published tables.

Everything becomes an `Entry` of `EntryScore`s in percent. Where per-question answers are there they are kept, keyed by (task, doc_id),
since ranks are decided on them. Files come from anyone: what cannot be trusted is a `LeaderboardError` with its place, never a number.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from benchmarks.benchmark import Benchmark, Credit
from benchmarks.catalog import CATALOG
from harness.integrity import edited
from harness.records import QUESTIONS_FILE, SCORE_FILE, Evaluation, RecordError, read_records, read_score
from harness.tables.published import MANIFEST_FILE, Published, PublishedError, load_published
from harness.tables.table import ScoreRule
from savi.base.errors import ExitCode, SaviError

UNSTATED = "unstated"
"""Scale of a stock result folder, which does not say it, unless the caller does."""
MAX_RESULTS_BYTES = 200_000_000
MAX_DEPTH = 12
_SKIP = {"model", "train", "frames", "node_modules", "__pycache__"}
_STAGE = re.compile(r"base|iter-\d+")
_RESULTS = re.compile(r"(?P<date>.+)_results\.json")

Kind = Literal["run", "lmms-eval", "published"]
Key = tuple[str, int]


class LeaderboardError(SaviError, ValueError):
    """Something that may not enter: names the file and what is wrong. `usage` where the caller asked for what is not there."""

    exit_code = ExitCode.USAGE

    def __init__(self, message: str, *, usage: bool = False) -> None:
        super().__init__(message)
        self.usage = usage


@dataclass(frozen=True)
class Answers:
    """Per-question credits (0-1) of one model on one benchmark, in key order.

    `content` tells whether the same keys mean the same questions: our question ids, or (stock results keep no more) the right answers, as
    `content_kind` says; only contents of one kind can be compared. `videos` are the clusters, None where the source does not say them.
    """

    keys: tuple[Key, ...]
    credits: tuple[float, ...]
    content: tuple[str, ...]
    content_kind: Literal["question ids", "targets"]
    videos: tuple[str, ...] | None


@dataclass(frozen=True)
class EntryScore:
    """A model's score on a benchmark, in percent."""

    pct: float
    n: int | None
    n_expected: int | None
    answers: Answers | None = None
    note: str = ""


@dataclass(frozen=True)
class Entry:
    """A model at one scale, however it was measured."""

    label: str
    kind: Kind
    scale: str
    scores: Mapping[str, EntryScore]
    place: str
    """Where it was read, as a path below what the caller gave."""
    link: str | None = None
    notes: tuple[str, ...] = ()
    marks: str = ""
    """Shown after the label (a dagger for a published row on other questions)."""
    synthetic: bool = False
    """Measured on the synthetic twins."""


@dataclass
class Found:
    """What discovery brought: entries in a stable order, and what could not be used."""

    entries: list[Entry] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def discover(
    paths: Sequence[Path],
    *,
    rule: ScoreRule = "upstream",
    stock_scale: str | None = None,
    stock_data: Literal["real", "micro"] = "real",
    all_stages: bool = False,
    published: bool = True,
) -> Found:
    """Read every entry below `paths` (folders, or single result files).

    Args:
        rule: strict leaves out stock and published entries, which have no strict score.
        stock_scale: the scale of stock lmms-eval folders, which do not say it.
        stock_data: what they were measured on; where a scale is given, real data must have the catalog's numbers of questions.
        all_stages: every iteration of a run, not only base and the last.

    Raises:
        LeaderboardError: a path is not there, or there is nothing to rank below any of them.
    """
    out = Found()
    evals: dict[Path, str] = {}
    stocks: dict[Path, list[Path]] = {}
    manifests: list[Path] = []
    for path in paths:
        if not path.exists():
            raise LeaderboardError(f"{path}: no such file or folder", usage=True)
        for folder, files in [(path.parent, [path.name])] if path.is_file() else _walk(path):
            if SCORE_FILE in files:
                evals.setdefault(folder.parent, _label(path, folder.parent))
            if MANIFEST_FILE in files and published:
                manifests.append(folder)
            stocks.setdefault(folder, []).extend(folder / f for f in files if _RESULTS.fullmatch(f))
    _collect(out, [lambda f=f, n=n: _own(f, n, rule) for f, n in sorted(_stages(evals, all_stages).items())])
    out.entries = _merge_equal(out.entries)
    if rule == "upstream":
        _collect(out, [lambda f=f, x=x: _stock(f, x, stock_scale, stock_data) for f, x in sorted(stocks.items()) if x])
        _collect(out, [lambda f=f: _published_entries(f) for f in dict.fromkeys(manifests)])
    if not out.entries and not out.problems:
        raise LeaderboardError(
            f"nothing to rank below {', '.join(map(str, paths))}: looked for <benchmark>/{SCORE_FILE}, "
            f"*_results.json of lmms-eval and {MANIFEST_FILE}" + (" (only the first has strict scores)" if rule == "strict" else ""),
            usage=True,
        )
    out.problems += _mixed(out.entries)
    out.entries = _distinct_labels(out.entries)
    return out


def _mixed(entries: Sequence[Entry]) -> list[str]:
    """Scales at which some entries were measured on synthetic data and some on real data."""
    out = []
    for scale in sorted({e.scale for e in entries}):
        made, real = ([e.place for e in entries if e.scale == scale and e.synthetic is kind] for kind in (True, False))
        if made and real:
            out.append(f"scale {scale}: {made[0]} was measured on synthetic data, {real[0]} on real data; these are never ranked together")
    return out


def _collect(out: Found, jobs: Iterable[Any]) -> None:
    for job in jobs:
        try:
            out.entries += job()
        except (LeaderboardError, RecordError, PublishedError) as e:
            out.problems.append(str(e))
        except OSError as e:
            out.problems.append(f"{e.filename}: {e.strerror}")


def _walk(root: Path) -> Iterable[tuple[Path, list[str]]]:
    for name, folders, files in os.walk(root, followlinks=False):
        here = Path(name)
        deep = len(here.relative_to(root).parts) >= MAX_DEPTH
        folders[:] = [] if deep else sorted(f for f in folders if f not in _SKIP and not f.startswith("."))
        yield here, sorted(files)


def _label(root: Path, folder: Path) -> str:
    """A name out of the path: the run and the stage, without `eval`."""
    parts = [p for p in folder.resolve().parts if p not in ("eval", "/")]
    here, top = folder.resolve(), root.resolve()
    own = len([p for p in here.relative_to(top).parts if p != "eval"]) if here.is_relative_to(top) else 0
    return "/".join(parts[-max(2 if parts and _STAGE.fullmatch(parts[-1]) else 1, own) :]) or str(folder)


def _stages(evals: Mapping[Path, str], all_stages: bool) -> dict[Path, str]:
    """Base and the last iteration of every run; what is no stage of a run stays."""
    runs: dict[Path, list[tuple[int, Path]]] = {}
    keep: dict[Path, str] = {}
    for folder, label in evals.items():
        stage = folder.parent if folder.name == "eval" else folder
        if all_stages or not stage.name.startswith("iter-") or not _STAGE.fullmatch(stage.name):
            keep[folder] = label
        else:
            runs.setdefault(stage.parent, []).append((int(stage.name.split("-")[1]), folder))
    for iterations in runs.values():
        last = max(iterations)[1]
        keep[last] = evals[last]
    return keep


def _own(folder: Path, label: str, rule: ScoreRule) -> list[Entry]:
    by_scale: dict[tuple[str, bool], dict[str, EntryScore]] = {}
    for path in sorted(folder.glob(f"*/{SCORE_FILE}")):
        s = read_score(path)
        if s.benchmark not in CATALOG or s.benchmark != path.parent.name:
            raise LeaderboardError(f"{path}: benchmark {s.benchmark!r} is not what its folder says, or not in the catalog")
        questions = path.parent / QUESTIONS_FILE
        answers, note = None, "no per-question answers"
        if questions.is_file():
            e = Evaluation(s, read_records(questions))
            if len(e.records) != s.n:
                raise LeaderboardError(f"{questions}: {len(e.records)} questions, {path.name} says {s.n}")
            answers, note = own_answers(e, rule), ""
            change = edited(e)
            if change is not None:
                raise LeaderboardError(f"{folder}: {change}")
        pct = s.strict_pct if rule == "strict" else s.upstream_pct
        by_scale.setdefault((s.scale, s.synthetic), {})[s.benchmark] = EntryScore(pct, s.n, s.n_expected, answers, note)
    if len(by_scale) > 1:
        raise LeaderboardError(
            f"{folder}: several scales or data in one folder ({', '.join(sorted(s for s, _ in by_scale))}); scales are never mixed"
        )
    report = (folder.parent if folder.name == "eval" else folder).parent / "report.html"
    link = report.as_posix() if report.is_file() and not report.is_absolute() else None
    return [Entry(label, "run", scale, scores, str(folder), link, synthetic=made) for (scale, made), scores in by_scale.items()]


def own_answers(e: Evaluation, rule: ScoreRule) -> Answers:
    """The credits of an evaluation of ours.

    Raises:
        LeaderboardError: one question twice.
    """
    rows: list[tuple[Key, float, str, str | None]] = [
        ((r.task, r.doc_id), r.strict if rule == "strict" else r.upstream, r.question_id, r.video_id) for r in e.records
    ]
    rows.sort(key=lambda r: r[0])
    return _answers(rows, e.score.benchmark, "question ids")


def _answers(rows: Sequence[tuple[Key, float, str, str | None]], place: str, content: Literal["question ids", "targets"]) -> Answers:
    keys = tuple(r[0] for r in rows)
    twice = next((k for k, after in pairwise(keys) if k == after), None)
    if twice is not None:
        raise LeaderboardError(f"{place}: question {twice[1]} of {twice[0]} is there twice")
    videos = tuple(str(r[3]) for r in rows) if all(r[3] is not None for r in rows) else None
    return Answers(keys, tuple(r[1] for r in rows), tuple(r[2] for r in rows), content, videos)


def _merge_equal(entries: list[Entry]) -> list[Entry]:
    """One entry for runs that answered alike (the base of several seeds), naming the others."""
    out: list[Entry] = []
    same: dict[Any, int] = {}
    for e in entries:
        key = (e.scale, e.synthetic, tuple((b, s.pct, s.answers) for b, s in sorted(e.scores.items())))
        if any(s.answers is None for s in e.scores.values()) or key not in same:
            same.setdefault(key, len(out))
            out.append(e)
        else:
            first = out[same[key]]
            out[same[key]] = replace(first, notes=(*first.notes, f"{first.label}: the same answers as {e.label}"))
    return out


def _distinct_labels(entries: list[Entry]) -> list[Entry]:
    """Labels a reader can tell apart: entries that share one get their place added."""
    count: dict[tuple[str, str, Kind], int] = {}
    for e in entries:
        count[e.label, e.scale, e.kind] = count.get((e.label, e.scale, e.kind), 0) + 1
    return [replace(e, label=f"{e.label} ({e.place})") if count[e.label, e.scale, e.kind] > 1 else e for e in entries]


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
    """The models behind the `*_results.json` files of one folder.

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


def _stock(folder: Path, files: Sequence[Path], scale: str | None, data: Literal["real", "micro"]) -> list[Entry]:
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
    match = _RESULTS.fullmatch(path.name)
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


def _stock_answers(b: Benchmark, tasks: Mapping[str, StockTask]) -> tuple[Answers | None, str]:
    if any(t.samples is None for t in tasks.values()):
        return None, "no per-question answers (run lmms-eval with --log_samples)"
    rows: list[tuple[Key, float, str, str | None]] = []
    empty = 0
    for name, task in tasks.items():
        credits, counted = [], []
        for i, s in enumerate(task.samples or [], 1):
            credit = _credit(b, s, f"{task.source}:{i}")
            credits.append(credit.right)
            counted.append(credit.counted)
            rows.append(((name, s["doc_id"]), credit.right, str(s.get("target")), credit.video or None))
        if len(credits) != task.effective:
            raise LeaderboardError(f"{task.source}: {len(credits)} samples, the result file says {task.effective}")
        empty += counted.count(False)
        # As the task itself counts: MVBench's leaves an empty answer out of the denominator.
        said = [c for c, a in zip(credits, counted, strict=True) if a]
        mean = sum(said) / len(said) * b.unit if said else 0.0
        if abs(mean - task.value) > 1e-3 * b.unit:
            raise LeaderboardError(f"{task.source}: the samples give {mean:.4f}, the result file says {task.value:.4f}")
    note = f"{empty} empty answers are not counted by lmms-eval" if empty else ""
    rows.sort(key=lambda r: r[0])
    return _answers(rows, str(next(iter(tasks.values())).source), "targets"), note


def _credit(b: Benchmark, sample: Mapping[str, Any], place: str) -> Credit:
    try:
        credit = b.credit(sample)
    except (KeyError, TypeError, ValueError) as e:
        raise LeaderboardError(f"{place}: no {b.metric} as {b.group} leaves it ({e}); another version of lmms-eval?") from e
    if credit.right not in (0.0, 1.0):
        raise LeaderboardError(f"{place}: {b.metric} gives a credit of {credit.right}, which is neither 0 nor 1")
    return credit


def _published_entries(folder: Path) -> list[Entry]:
    published: Published = load_published(folder)
    m = published.manifest
    out: list[Entry] = []
    seen: set[tuple[str, str]] = set()
    for table in published.tables.values():
        for i, label in enumerate(table.labels):
            scale = table.scale_of(label)
            if scale is None or (label, scale) in seen:
                continue
            seen.add((label, scale))
            scores = {b: EntryScore(v, None, None) for b, v in table.by_benchmark(i).items() if b in CATALOG}
            reason = table.excluded(i)
            notes = [f"Published rows: {m.title}; they have no per-question answers, so they have no rank."]
            notes += [f"{m.benchmarks[b].title}: {m.benchmarks[b].undocumented}" for b in scores if m.benchmarks[b].undocumented]
            notes += [f"†: {reason}."] if reason else []
            mark = " †" if reason else ""
            if scores:
                out.append(Entry(label, "published", scale, scores, f"{folder}/{table.info.file}", m.link, tuple(notes), mark))
    return out
