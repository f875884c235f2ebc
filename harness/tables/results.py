"""The main job's table: measured scores with intervals and differences to the base, and published rows where they may stand beside them.

The module knows scores and records, but no model, no run folder and no paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from benchmarks.benchmark import Benchmark
from benchmarks.catalog import PAPER, in_mean, select
from harness.records import Evaluation
from harness.tables.latex import INTERVALS
from harness.tables.table import RULE_NOTES, SYNTHETIC_NOTE, Cell, Row, ScoreRule, Table, TableError, pct_cell

T = TypeVar("T")
COMPUTED = "‡"
"""Marks the mean of a published row."""


def clustered_se(evaluation: Evaluation, rule: ScoreRule) -> tuple[float, int]:
    """Standard error in points of a benchmark's score, clustered by video, and the number of videos.

    Without records the score's own `se_pct` is taken, which is of the strict rule. Infinite for a single video.
    """
    records = evaluation.records
    if not records:
        return evaluation.score.se_pct, evaluation.score.videos
    import numpy as np

    from harness.stats import cluster_mean, design

    credits = np.asarray([r.strict if rule == "strict" else r.upstream for r in records])
    m = cluster_mean(credits, design([r.video_id for r in records], [r.task for r in records]))
    return 100 * float(m.se), m.df + 1


@dataclass(frozen=True)
class ScoredCell:
    """A score with its standard error and half width of the interval, all in points."""

    value: float
    se: float
    half: float
    videos: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval within 0-100; None where one video, or answers all right or all wrong, tell nothing of the error."""
        return (max(0.0, self.value - self.half), min(100.0, self.value + self.half)) if self.videos > 1 and self.se > 0 else None


def scored(evaluation: Evaluation, rule: ScoreRule, confidence: float = 0.95) -> ScoredCell:
    """A benchmark's score by `rule` with a clustered t interval (videos - 1 degrees of freedom)."""
    value = evaluation.score.strict_pct if rule == "strict" else evaluation.score.upstream_pct
    se, videos = clustered_se(evaluation, rule)
    if videos < 2:
        return ScoredCell(value, 0.0, 0.0, videos)
    from harness.stats import t_quantile

    return ScoredCell(value, se, t_quantile(0.5 + confidence / 2, videos - 1) * se, videos)


def mean_cell(parts: Sequence[ScoredCell | None], confidence: float = 0.95) -> Cell:
    """The unweighted mean over benchmarks; its interval takes the benchmarks as independent. None where one is missing."""
    known = [p for p in parts if p is not None]
    if not parts or len(known) < len(parts):
        return pct_cell(None, source="derived", note="no mean: a benchmark is missing")
    value = sum(p.value for p in known) / len(known)
    se = math.sqrt(sum(p.se**2 for p in known)) / len(known)
    if se == 0:
        return pct_cell(value, source="derived")
    from harness.stats import t_quantile

    half = t_quantile(0.5 + confidence / 2, max(1, min(p.videos for p in known) - 1)) * se
    return pct_cell(value, (max(0.0, value - half), min(100.0, value + half)), source="derived")


@dataclass(frozen=True)
class PublishedRow:
    """A row of published percentages by benchmark name, with where it was published."""

    label: str
    values: Mapping[str, float]
    source: str
    link: str | None = None
    notes: tuple[str, ...] = ()
    group: str = "published"
    base: Mapping[str, float] | None = None
    """The values of the published row it is compared with; none for that row itself and for other models."""


def results_table(
    rows: Mapping[str, Mapping[str, Evaluation]],
    *,
    scale: str,
    rule: ScoreRule,
    published: Sequence[PublishedRow] = (),
    benchmarks: Sequence[str] | None = None,
    intervals: bool = True,
    title: str = "Results",
    notes: Sequence[str] = (),
) -> Table:
    """The main job's table: a row a label of `rows` in their order (base, iteration 1..N, controls), a column a benchmark, and the mean.

    `rule` picks the score and is named below the table. Differences are to the first row. Published rows come last; they are upstream
    scores of real data and stand beside no others.

    Raises:
        TableError: published rows beside strict scores or synthetic data, an evaluation of another scale, synthetic and real data mixed,
            or no rows.
    """
    if not rows:
        raise TableError("a results table needs at least one evaluated model")
    synthetic = _check_kinds(rows, scale, rule, published)
    chosen = select(benchmarks)
    out = []
    base: list[Cell] | None = None
    for label, evaluations in rows.items():
        cells = _measured_cells(label, evaluations, chosen, scale, rule, intervals=intervals)
        out.append(Row(label, tuple(cells if base is None else _with_deltas(cells, [c.value for c in base]))))
        base = base or cells
    out += [_published_row(row, chosen) for row in published]
    averaged = in_mean(b.name for b in chosen)
    mean_title = "Mean" if len(averaged) == len(PAPER) else f"Mean of {len(averaged)}"
    said = _notes(rows, chosen, scale, rule, published, intervals=intervals, synthetic=synthetic)
    return Table(title, scale, (*(b.title for b in chosen), mean_title), tuple(out), (*said, *notes), mark_best=True)


def _check_kinds(rows: Mapping[str, Mapping[str, Evaluation]], scale: str, rule: ScoreRule, published: Sequence[PublishedRow]) -> bool:
    """Whether the rows are of synthetic data. Raises TableError where they may not stand together."""
    kinds = {e.score.synthetic for evaluations in rows.values() for e in evaluations.values()}
    if len(kinds) > 1:
        raise TableError(f"scale {scale!r}: some scores were measured on synthetic data and some on real data; these are never mixed")
    if published and True in kinds:
        raise TableError(f"published numbers are no reference for synthetic data (scale {scale!r}): leave them out")
    if published and rule != "upstream":
        raise TableError(f"published numbers are upstream scores: they cannot stand beside {rule} ones (scale {scale!r})")
    return True in kinds


def _measured_cells(
    label: str, evaluations: Mapping[str, Evaluation], chosen: Sequence[Benchmark], scale: str, rule: ScoreRule, *, intervals: bool
) -> list[Cell]:
    parts: list[ScoredCell | None] = []
    cells: list[Cell] = []
    for b in chosen:
        e = evaluations.get(b.name)
        if e is None:
            parts.append(None)
            cells.append(pct_cell(None, note="not measured"))
            continue
        if e.score.scale != scale:
            raise TableError(f"{label}, {b.title}: measured at scale {e.score.scale!r}, not {scale!r}; scales are never mixed")
        s = scored(e, rule)
        parts.append(s)
        short = "" if e.score.n == e.score.n_expected else f"; {e.score.n_expected} expected"
        if e.score.to_judge:
            short += f"; lmms-eval would send {e.score.to_judge} to its judge: upstream is its own only where none answers"
        note = f"n = {e.score.n} on {e.score.videos} videos{short}; chance {e.score.chance_pct:.1f}"
        cells.append(pct_cell(s.value, s.interval if intervals else None, note=note))
    mean = mean_cell(_averaged(chosen, parts))
    return [*cells, mean if intervals or mean.value is None else pct_cell(float(mean.value), source="derived")]


def _with_deltas(cells: Sequence[Cell], base: Sequence[float | str | None]) -> list[Cell]:
    """The cells with their differences to a base row."""
    return [
        replace(c, delta=c.value - v) if isinstance(c.value, float) and isinstance(v, float) else c
        for c, v in zip(cells, base, strict=True)
    ]


def _published_row(row: PublishedRow, chosen: Sequence[Benchmark]) -> Row:
    """A published row; its mean is not published but computed here, and marked so."""

    def mean(values: Mapping[str, float]) -> float | None:
        known = _averaged(chosen, [values.get(b.name) for b in chosen])
        return sum(v for v in known if v is not None) / len(known) if known and None not in known else None

    cells = [pct_cell(row.values.get(b.name), source="published", link=row.link, note=row.source) for b in chosen]
    cell = pct_cell(mean(row.values), source="derived", note="computed here from the published row")
    cells.append(cell if cell.value is None else replace(cell, text=f"{cell.text} {COMPUTED}"))
    base = [] if row.base is None else [*(row.base.get(b.name) for b in chosen), mean(row.base)]
    return Row(row.label, tuple(_with_deltas(cells, base) if base else cells), row.group)


def _notes(
    rows: Mapping[str, Mapping[str, Evaluation]], chosen: Sequence[Benchmark], scale: str, rule: ScoreRule,
    published: Sequence[PublishedRow], *, intervals: bool, synthetic: bool,
) -> list[str]:  # fmt: skip
    notes = [f"Accuracy in percent; {RULE_NOTES[rule]}."]
    counts: dict[str, set[tuple[int, int]]] = {}
    for evaluations in rows.values():
        for b in chosen:
            if b.name in evaluations:
                score = evaluations[b.name].score
                counts.setdefault(b.title, set()).add((score.n, score.videos))
    if counts:
        notes.append(f"Questions / videos: {'; '.join(f'{name} {_sizes(seen)}' for name, seen in counts.items())}.")
    if intervals:
        notes.append(f"{INTERVALS}, clustered by video; the mean's takes the benchmarks as independent.")
    if synthetic:
        notes.append(SYNTHETIC_NOTE.format(scale=scale))
    if published:
        notes.append(f"{COMPUTED}: the mean of a published row is computed here.")
    return notes + list(dict.fromkeys(n for row in published for n in (f"Published rows: {row.source}.", *row.notes)))


def _averaged(chosen: Sequence[Benchmark], parts: Sequence[T]) -> list[T]:
    """Of one part a benchmark, those that the mean is made of."""
    averaged = in_mean(b.name for b in chosen)
    return [part for b, part in zip(chosen, parts, strict=True) if b.name in averaged]


def _sizes(seen: set[tuple[int, int]]) -> str:
    return " or ".join(f"{n} / {v}" for n, v in sorted(seen))
