"""The paper's numbers: which published rows stand beside ours at which scale.

Reads results/paper/ (see `harness.tables.published` for the form). Knows the paper, but no model and no run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.records import Evaluation
from harness.tables.published import PAPER_DIR, Published, PublishedError, ScaleRows, base_rows, load_published
from harness.tables.results import PublishedRow, results_table
from harness.tables.table import ScoreRule, Table
from reproduce.scale import load_scale, scale_names


def _rows(scale: str, folder: Path) -> tuple[Published, ScaleRows] | None:
    """The pair of rows that the scale's file names (`published`), or None where it names none."""
    row = load_scale(scale).published if scale in scale_names() else None
    return None if row is None else ((published := load_published(folder)), base_rows(published, row))


def published_rows(scale: str, folder: Path = PAPER_DIR) -> list[PublishedRow]:
    """Every row that the paper's table gives at this scale, in its order and groups; an empty list where nothing is published.

    Raises:
        PublishedError: the folder's tables have no row of the name that the scale's file gives.
    """
    found = _rows(scale, folder)
    if found is None:
        return []
    published, pair = found
    table, source = pair.table, f"{published.manifest.title}, {pair.table.info.title}"
    out: dict[str, PublishedRow] = {}
    for i, label in enumerate(table.labels):
        if table.scale_of(label) != table.scale_of(pair.base) or label in out:
            continue
        reason = table.excluded(i)
        group = table.texts[i].get(table.info.group, "") if table.info.group else ""
        notes = (f"†: {reason}.",) if reason else ()
        base = pair.values(pair.base) if any((g.baseline, g.candidate) == (pair.base, label) for g in table.info.gains) else None
        out[label] = PublishedRow(
            f"paper: {label}{' †' if reason else ''}", table.by_benchmark(i), source, published.manifest.link, notes,
            f"published: {group}" if group else "published", base,
        )  # fmt: skip
    return list(out.values())


def published_pair(scale: str, folder: Path = PAPER_DIR) -> tuple[dict[str, float], dict[str, float] | None]:
    """(base, aligned) percentages by benchmark at a scale; aligned is None where the paper reports none (4b).

    Raises:
        PublishedError: nothing is published at `scale`.
    """
    found = _rows(scale, folder)
    if found is None:
        raise PublishedError(f"scale {scale!r} has no published row (`published` in its file in reproduce/scales)")
    pair = found[1]
    return pair.values(pair.base), pair.values(pair.aligned) if pair.aligned is not None else None


def experiment_table(
    rows: Mapping[str, Mapping[str, Evaluation]],
    *,
    scale: str,
    rule: ScoreRule,
    benchmarks: Sequence[str] | None = None,
    intervals: bool = True,
    notes: Sequence[str] = (),
    folder: Path = PAPER_DIR,
) -> Table:
    """The experiment's table: ours and, beside upstream scores of the data sets themselves, the published rows of this scale."""
    published = published_rows(scale, folder) if rule == "upstream" and not on_twins(rows) else []
    return results_table(
        rows, scale=scale, rule=rule, published=published, benchmarks=benchmarks, intervals=intervals,
        title="VideoSAVi: base and iterations", notes=notes,
    )  # fmt: skip


def on_twins(rows: Mapping[str, Mapping[str, Evaluation]]) -> bool:
    """Whether any of the scores was measured on synthetic twins: at no scale is a published number a reference for those."""
    return any(e.score.synthetic for evaluations in rows.values() for e in evaluations.values())


def shown_rule(scale: str, rows: Mapping[str, Mapping[str, Evaluation]]) -> ScoreRule:
    """The score to show first: upstream where published numbers stand beside it, strict else."""
    return "upstream" if published_rows(scale) and not on_twins(rows) else "strict"
