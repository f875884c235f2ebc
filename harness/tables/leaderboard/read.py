"""Finds what may enter a leaderboard below given paths: our evaluations, stock lmms-eval result folders, folders of published tables.

Everything becomes an `Entry` of `EntryScore`s in percent. Where per-question answers are there they are kept, keyed by (task, doc_id),
since ranks are decided on them. Files come from anyone: what cannot be trusted is a `LeaderboardError` with its place, never a number.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.catalog import CATALOG
from harness.integrity import edited, reading_rule
from harness.reading import READING_VERSION
from harness.records import QUESTIONS_FILE, SCORE_FILE, Evaluation, RecordError, read_records, read_score
from harness.tables.leaderboard.entry import Answers, Entry, EntryScore, Key, Kind, LeaderboardError, answers_of
from harness.tables.leaderboard.stock import RESULTS, stock_entries
from harness.tables.published import MANIFEST_FILE, Published, PublishedError, load_published
from harness.tables.table import ScoreRule

MAX_DEPTH = 12
STUDY_FILE = "study.json"
"""What a study keeps of its runs: scores of every stage, no answers."""
_SKIP = {"model", "train", "frames", "node_modules", "__pycache__"}
_STAGE = re.compile(r"base|iter-\d+")


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
    studies: dict[Path, str] = {}
    for path in paths:
        if not path.exists():
            raise LeaderboardError(f"{path}: no such file or folder", usage=True)
        for folder, files in [(path.parent, [path.name])] if path.is_file() else _walk(path):
            if SCORE_FILE in files:
                evals.setdefault(folder.parent, _label(path, folder.parent))
            if STUDY_FILE in files:
                studies.setdefault(folder, _label(path, folder))
            if MANIFEST_FILE in files and published:
                manifests.append(folder)
            stocks.setdefault(folder, []).extend(folder / f for f in files if RESULTS.fullmatch(f))
    _collect(out, [lambda f=f, n=n: _own(f, n, rule) for f, n in sorted(_stages(evals, all_stages).items())])
    out.entries = _merge_equal(out.entries)
    _collect(out, [lambda f=f, n=n: _study_entries(f, n, rule) for f, n in sorted(studies.items())])
    if rule == "upstream":
        _collect(out, [lambda f=f, x=x: stock_entries(f, x, stock_scale, stock_data) for f, x in sorted(stocks.items()) if x])
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
    read_by: set[int | None] = set()
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
        read_by.add(reading_rule(s))
        pct = s.strict_pct if rule == "strict" else s.upstream_pct
        by_scale.setdefault((s.scale, s.synthetic), {})[s.benchmark] = EntryScore(pct, s.n, s.n_expected, answers, note)
    if len(by_scale) > 1:
        raise LeaderboardError(
            f"{folder}: several scales or data in one folder ({', '.join(sorted(s for s, _ in by_scale))}); scales are never mixed"
        )
    report = (folder.parent if folder.name == "eval" else folder).parent / "report.html"
    link = report.as_posix() if report.is_file() and not report.is_absolute() else None
    notes = _read_otherwise(label, read_by, rule)
    return [Entry(label, "run", scale, scores, str(folder), link, notes, synthetic=made) for (scale, made), scores in by_scale.items()]


def _read_otherwise(label: str, read_by: Set[int | None], rule: ScoreRule) -> tuple[str, ...]:
    """A note where strict scores rest on another rule of reading replies than this version's."""
    older = sorted(r for r in read_by if r not in (None, READING_VERSION))
    if rule != "strict" or not older:
        return ()
    rules = ", ".join(map(str, older))
    return (f"{label}: replies were read by rule {rules}, now by rule {READING_VERSION}: strict scores of two rules differ by it.",)


def own_answers(evaluation: Evaluation, rule: ScoreRule) -> Answers:
    """The credits of an evaluation of ours.

    Raises:
        LeaderboardError: one question twice.
    """
    rows: list[tuple[Key, float, str, str | None]] = [
        ((r.task, r.doc_id), r.strict if rule == "strict" else r.upstream, r.question_id, r.video_id) for r in evaluation.records
    ]
    rows.sort(key=lambda r: r[0])
    return answers_of(rows, evaluation.score.benchmark, "question ids")


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


def _study_entries(folder: Path, label: str, rule: ScoreRule) -> list[Entry]:
    """The base and the last iteration of a study's runs, means over its loop seeds, with each seed's score."""
    path = folder / STUDY_FILE
    key = "strict_pct" if rule == "strict" else "upstream_pct"
    stages: dict[str, dict[int, dict[str, Any]]] = {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        notes = _read_otherwise(label, {int(content.get("reading") or 1)}, rule)
        for run in content["runs"]:
            seed = int(run["seed"])
            stages.setdefault("base", {})[seed] = run["stages"][0]
            stages.setdefault(f"{run['control']}, iteration {len(run['stages']) - 1}", {})[seed] = run["stages"][-1]
        out = []
        for name, found in stages.items():
            first = next(iter(found.values()))
            scores = {}
            for b in (b for b in CATALOG if all(b in s for s in found.values())):
                seeds = {seed: float(s[b][key]) for seed, s in found.items()}
                n = int(first[b]["n"])
                scores[b] = EntryScore(sum(seeds.values()) / len(seeds), n, n, note=f"mean over {len(seeds)} loop seeds", seeds=seeds)
            out.append(
                Entry(f"{label}: {name}", "run", str(content["scale"]), scores, str(folder), None, notes, synthetic=True, study=label)
            )
    except (ValueError, LookupError, TypeError, AttributeError) as e:
        raise LeaderboardError(f"{path}: no study of this project ({type(e).__name__}: {e})") from e
    return out


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
