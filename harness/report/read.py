"""A run folder read for a report.

Reading is forgiving in one way only: a part that is missing or cannot be trusted becomes a sentence in `RunData.problems` and
is shown as not there. Nothing is guessed in its place.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness.gate.decision import GateFileError, GateResult
from harness.integrity import edited
from harness.records import QUESTIONS_FILE, SCORE_FILE, Evaluation, RecordError, read_records, read_score
from harness.report.data import (
    FailureGroup,
    Gate,
    Json,
    PairRow,
    Pairs,
    PaperRows,
    ReportError,
    RunData,
    Setting,
    Stage,
    Timing,
    number,
)
from harness.tables.published import PAPER_DIR, PublishedError, base_rows, load_published, scale_rows
from harness.tables.study import STUDY_DIR, read_study

MAX_LISTED_FAILURES = 200


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _read_json(path: Path, problems: list[str]) -> object | None:
    if not path.is_file():
        return None
    try:
        data: object = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, OSError, RecursionError) as e:
        problems.append(f"{path.name} in {path.parent.name}/ cannot be read: {e}")
        return None
    return data


def _read_lines(path: Path, problems: list[str]) -> Iterator[Json]:
    """Rows of a JSON Lines file that are objects; anything else is counted as a problem, once a file."""
    bad: list[int] = []
    with path.open(encoding="utf-8", errors="replace") as f:
        for i, line in enumerate(f, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                bad.append(i)
                continue
            if isinstance(row, dict):
                yield row
            else:
                bad.append(i)
    if bad:
        problems.append(f"{path.parent.name}/{path.name}: {len(bad)} unreadable line{'s' * (len(bad) > 1)} left out (first: line {bad[0]})")


def _read_evaluations(folder: Path, problems: list[str]) -> dict[str, Evaluation]:
    out: dict[str, Evaluation] = {}
    for path in sorted(folder.glob(f"*/{SCORE_FILE}")):
        try:
            score, records = read_score(path), read_records(path.parent / QUESTIONS_FILE)
        except (RecordError, OSError, UnicodeDecodeError) as e:
            problems.append(f"{path.parent.parent.parent.name}: {path.parent.name} left out: {e}")
            continue
        out[path.parent.name] = Evaluation(score, records)
        change = edited(out[path.parent.name])
        if change is not None:
            problems.append(f"{path.parent.parent.parent.name}: {change}")
        if score.n != len(records) or score.n != score.n_expected:
            problems.append(
                f"{path.parent.parent.parent.name}: {path.parent.name} has {len(records)} records, "
                f"its score says n = {score.n}, expected {score.n_expected}"
            )
    return out


def _gates(path: Path, problems: list[str]) -> list[Gate]:
    """The results in gate.json, by what was compared with; one that was changed since it was written is left out and said."""
    data = _read_json(path, problems)
    if not isinstance(data, dict):
        return []
    out = []
    for against, found in ({"": data} if "decisions" in data else data).items():
        try:
            out.append(Gate(str(against), GateResult.from_json(found)))
        except (GateFileError, ValueError, TypeError) as e:
            problems.append(f"gate.json in {path.parent.name}/, against {against or 'its baseline'}, is left out: {e}")
    return out


def _pair_row(row: Json, *, dropped: bool) -> PairRow:
    texts = {k: _text(row.get(k)) for k in ("kind", "video", "question", "initial", "critique", "revision", "chosen", "rejected", "detail")}
    equal = row.get("chosen") is not None and row.get("chosen") == row.get("rejected")
    meta = row.get("meta")
    control = _text(meta.get("control")) if isinstance(meta, dict) else ""
    return PairRow(
        id=_text(row.get("pair_id")),
        outcome="dropped" if dropped else "unchanged" if equal else "pair",
        reason=_text(row.get("reason")) or "no reason given" if dropped else f"control: {control}" if control else "",
        **texts | {"kind": texts["kind"] or "unknown"},
    )


def _pairs(folder: Path, problems: list[str]) -> Pairs | None:
    path, dropped = folder / "pairs.jsonl", folder / "dropped.jsonl"
    if not path.is_file() and not dropped.is_file():
        return None
    made = [_pair_row(r, dropped=False) for r in (_read_lines(path, problems) if path.is_file() else ())]
    left = [_pair_row(r, dropped=True) for r in (_read_lines(dropped, problems) if dropped.is_file() else ())]
    kinds = Counter(f"unchanged {p.kind}" if p.outcome == "unchanged" else p.kind for p in made)
    words = {k: sum(len(getattr(p, k).split()) for p in made) for k in ("question", "chosen", "rejected", "critique")}
    return Pairs(
        len(made),
        len({p.video for p in made}),
        dict(kinds.most_common()),
        dict(Counter(p.reason for p in left).most_common()),
        {k: v / len(made) for k, v in words.items()} if made else {},
        made + left,
    )


def _log(path: Path, problems: list[str]) -> list[dict[str, float]]:
    if not path.is_file():
        return []
    rows = ({k: v for k, v in ((k, number(v)) for k, v in row.items()) if v is not None} for row in _read_lines(path, problems))
    return [r for r in rows if r]


_PARTICULARS = re.compile(r"(?:/[^\s:;,]+)+|\b\S+\.(?:mp4|avi|mkv|webm|jsonl|json)\b|\b[0-9a-f]{8,}\b|\d+(?:\.\d+)?")


def _failures(path: Path, problems: list[str]) -> list[FailureGroup] | None:
    """Failures grouped by stage and by reason, paths and numbers replaced by an ellipsis so that like meets like."""
    if not path.is_file():
        return None
    groups: dict[tuple[str, str], list[str]] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for row in _read_lines(path, problems):
        why = _text(row.get("why")) or "no reason given"
        key = (_text(row.get("stage")) or "unknown", _PARTICULARS.sub("…", why)[:160])
        counts[key] += 1
        if key not in groups:
            groups[key] = [" · ".join(t for t in (_text(row.get(k)) for k in ("what", "where", "why")) if t)]
    return [FailureGroup(stage, why, n, groups[stage, why][0]) for (stage, why), n in counts.most_common(MAX_LISTED_FAILURES)]


def _timings(path: Path, problems: list[str]) -> list[Timing] | None:
    """Wall time and peak memory of each stage, as a run notes them."""
    data = _read_json(path, problems)
    if data is None:
        return None
    out = []
    for stage, row in data.items() if isinstance(data, dict) else ():
        seconds, memory = (number(row.get(key)) if isinstance(row, dict) else None for key in ("wall_s", "peak_memory_gb"))
        if seconds is not None:
            out.append(Timing(stage, max(seconds, 0.0), "" if memory is None else f"peak memory {memory:g} GB"))
    if not isinstance(data, dict) or len(out) < len(data):
        problems.append(f"{path.name}: not a mapping of stages to wall_s and peak_memory_gb; what is not is left out")
    return out


def _settings(run: Json) -> list[Setting]:
    raw = run.get("settings")
    rows = raw.items() if isinstance(raw, dict) else ()
    return [Setting(name, _text(row.get("value")), _text(row.get("source"))) for name, row in rows if isinstance(row, dict)]


def _facts(run: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Everything else in run.json as flat (name, value) rows."""
    out: list[tuple[str, str]] = []
    for key, value in run.items():
        name = f"{prefix}{key}"
        if name == "settings":
            continue
        if isinstance(value, dict) and value:
            out += _facts(value, f"{name}.")
        else:
            out.append((name.replace("_", " "), _text(value)))
    return out


def read_published(scale: str, folder: Path = PAPER_DIR, *, row: str | None = None) -> PaperRows | None:
    """The paper's two rows that start from the row `row`, or without one the rows of `scale`; None where nothing is published there. A row
    that the paper does not have is empty.

    Raises:
        PublishedError: the tables are not there or not as their manifest says.
    """
    found = load_published(folder)
    rows = base_rows(found, row) if row else scale_rows(found, scale)
    if rows is None:
        return None
    return PaperRows(rows.base, rows.aligned or "aligned model (not reported)", rows.values(rows.base), rows.values(rows.aligned))


def read_settings(run_dir: Path) -> Json | None:
    """What run.json holds; None where it is not there or cannot be read."""
    found = _read_json(run_dir / "run.json", [])
    return found if isinstance(found, dict) else None


def _stages(run_dir: Path, problems: list[str]) -> list[Stage]:
    """The base and the iterations of a run, in order; the one stage of an evaluation's folder."""
    folders = sorted((p for p in run_dir.glob("iter-*") if p.is_dir() and re.fullmatch(r"iter-\d+", p.name)), key=lambda p: int(p.name[5:]))
    stages = []
    if (run_dir / "base").is_dir():
        stages.append(Stage("base", "Base", "base", _read_evaluations(run_dir / "base" / "eval", problems)))
    elif folders:
        problems.append("base/ is not there: nothing to compare the iterations with")
    elif (alone := next((d for d in (run_dir, run_dir / "eval") if any(d.glob(f"*/{SCORE_FILE}"))), None)) is not None:
        stages.append(Stage("model", "Model", "model", _read_evaluations(alone, problems)))
    for d in folders:
        t = int(d.name[5:])
        stages.append(
            Stage(
                d.name,
                f"Iteration {t}",
                str(t),
                _read_evaluations(d / "eval", problems),
                _gates(d / "gate.json", problems),
                _pairs(d, problems),
                _log(d / "train" / "log.jsonl", problems),
            )
        )
    return stages


def read_run(run_dir: Path, *, published_folder: Path = PAPER_DIR, study_folder: Path = STUDY_DIR) -> RunData:
    """Read a run folder, or the folder of one evaluation.

    Raises:
        ReportError: the folder is not there, or holds nothing that a run writes.
    """
    if not run_dir.is_dir():
        raise ReportError(f"{run_dir}: no such folder")
    problems: list[str] = []
    stages = _stages(run_dir, problems)
    run = _read_json(run_dir / "run.json", problems)
    if not stages and run is None:
        raise ReportError(f"{run_dir}: no run here (looked for run.json, base/, iter-1/, <benchmark>/{SCORE_FILE})")
    if run is not None and not isinstance(run, dict):
        problems.append("run.json is no object")
        run = None
    scores = [e.score for s in stages for e in s.evaluations.values()]
    scales = Counter(s.scale for s in scores)
    scale = next(iter(scales), _text((run or {}).get("scale")) or "unknown")
    if len(scales) > 1:
        problems.append(f"scores of several scales are mixed in this run: {', '.join(scales)}")
    synthetic = any(s.synthetic for s in scores)
    published = None
    try:
        if len(scales) == 1 and not synthetic and (run or {}).get("published", "") is not None:  # null: this scale has no published row
            published = read_published(scale, published_folder, row=_text((run or {}).get("published")))
    except PublishedError as e:
        problems.append(f"nothing is compared with the paper, its numbers are not there: {e}")
    return RunData(
        run_dir,
        run_dir.resolve().name,
        scale,
        synthetic,
        stages,
        _failures(run_dir / "failures.jsonl", problems),
        _timings(run_dir / "timings.json", problems),
        _settings(run or {}),
        _facts(run or {}),
        run,
        published,
        problems,
        read_study(scale, study_folder) if len(scales) < 2 else None,
    )
