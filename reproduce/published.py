"""The paper's numbers: which published rows stand beside ours at which scale.

Reads results/paper/ (see `harness.tables.published` for the form). Knows the paper, but no model and no run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.records import Evaluation
from harness.tables.published import Published, PublishedError, base_rows, load_published
from harness.tables.table import PublishedRow, ScoreRule, Table, results_table
from reproduce.scale import load_scale, scale_names

PAPER_DIR = Path(__file__).resolve().parent.parent / "results" / "paper"

TABLE1 = "table1_main.csv"
SAVI_ROW = "VideoSAVi"


def load_tables(folder: Path = PAPER_DIR) -> Published:
    """The folder's manifest and tables (results/paper/ by default).

    Raises:
        PublishedError: no manifest, a file missing or not as the manifest says; the message names the place.
    """
    return load_published(folder)


def table1(model: str = SAVI_ROW, folder: Path = PAPER_DIR) -> dict[str, float]:
    """Table 1's row of `model` as {benchmark: percent}; benchmarks it does not report are left out.

    Raises:
        PublishedError: no such row, or no such table in `folder`.
    """
    table = load_tables(folder).table(TABLE1)
    return table.by_benchmark(table.position(model))


def published_rows(scale: str, folder: Path = PAPER_DIR) -> list[PublishedRow]:
    """The paper's rows that the scale's file names (`published`), base first; an empty list where it names none.

    Raises:
        PublishedError: the folder's tables have no such row.
    """
    row = load_scale(scale).published if scale in scale_names() else None
    if row is None:
        return []
    published = load_tables(folder)
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
