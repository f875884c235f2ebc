"""The paper's numbers: which published rows stand beside ours at which scale.

Reads results/paper/ (see `harness.tables.published` for the form). Knows the paper, but no model and no run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.records import Evaluation
from harness.tables.published import PAPER_DIR, PublishedError, base_rows, load_published
from harness.tables.table import PublishedRow, ScoreRule, Table, results_table
from reproduce.scale import load_scale, scale_names


def published_rows(scale: str, folder: Path = PAPER_DIR) -> list[PublishedRow]:
    """The paper's rows that the scale's file names (`published`), base first; an empty list where it names none.

    Raises:
        PublishedError: the folder's tables have no such row.
    """
    row = load_scale(scale).published if scale in scale_names() else None
    if row is None:
        return []
    published = load_published(folder)
    found = base_rows(published, row)
    source = f"{published.manifest.title}, {found.table.info.title}"
    named = [name for name in (found.base, found.aligned) if name is not None]
    return [PublishedRow(f"paper: {name}", found.values(name), source, published.manifest.link) for name in named]


def published_pair(scale: str, folder: Path = PAPER_DIR) -> tuple[dict[str, float], dict[str, float] | None]:
    """(base, aligned) percentages by benchmark at a scale; aligned is None where the paper reports none (4b).

    Raises:
        PublishedError: nothing is published at `scale`.
    """
    rows = published_rows(scale, folder)
    if not rows:
        raise PublishedError(f"scale {scale!r} has no published row (`published` in its file in reproduce/scales)")
    return dict(rows[0].values), dict(rows[1].values) if len(rows) > 1 else None


def experiment_table(
    rows: Mapping[str, Mapping[str, Evaluation]],
    *,
    scale: str,
    rule: ScoreRule,
    groups: Mapping[str, str] | None = None,
    benchmarks: Sequence[str] | None = None,
    intervals: bool = True,
    title: str = "VideoSAVi: base and iterations",
    notes: Sequence[str] = (),
    folder: Path = PAPER_DIR,
) -> Table:
    """The experiment's table: ours, and the published rows of this scale below (see `harness.tables.table.results_table`)."""
    return results_table(
        rows, scale=scale, rule=rule, published=published_rows(scale, folder), groups=groups, benchmarks=benchmarks,
        intervals=intervals, title=title, notes=notes,
    )  # fmt: skip
