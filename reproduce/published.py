"""The paper's numbers: which published rows stand beside ours at which scale.

Reads results/paper/ (see `harness.tables.published` for the form). Knows the paper, but no model and no run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.records import Evaluation
from harness.tables.published import Published, PublishedError, load_published, scale_rows
from harness.tables.table import PAPER_SCALES, PublishedRow, ScoreRule, Table, results_table

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


_BASES = {"8b": "InternVL2.5-8B", "4b": "InternVL2.5-4B", "2b": "InternVL2.5-2B", "1b": "InternVL2.5-1B"}
"""What stands beside our rows: the base model's full name, which the paper's tables shorten in two ways."""


def published_rows(scale: str, folder: Path = PAPER_DIR) -> list[PublishedRow]:
    """The paper's rows for a paper scale, base first; an empty list at any other scale, where no published number applies.

    Raises:
        PublishedError: the folder's manifest has no row at this scale.
    """
    if scale not in PAPER_SCALES:
        return []
    published = load_tables(folder)
    found = scale_rows(published, scale)
    if found is None:
        raise PublishedError(f"{folder}: no published rows at scale {scale}")
    source = f"{published.manifest.title}, {found.table.info.title}"
    named = [(f"paper: {_BASES[scale]}", found.base), (f"paper: {_BASES[scale]} + VideoSAVi", found.aligned)]
    return [PublishedRow(label, found.values(row), source, published.manifest.link) for label, row in named if row is not None]


def published_pair(scale: str, folder: Path = PAPER_DIR) -> tuple[dict[str, float], dict[str, float] | None]:
    """(base, aligned) percentages by benchmark at a paper scale; aligned is None where the paper reports none (4b).

    Raises:
        PublishedError: `scale` is no paper scale.
    """
    rows = published_rows(scale, folder)
    if not rows:
        raise PublishedError(f"scale {scale!r} has no published numbers; those are for {', '.join(PAPER_SCALES)}")
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
    """The experiment's table: ours, and at paper scales the published rows below (see `harness.tables.table.results_table`)."""
    return results_table(
        rows, scale=scale, rule=rule, published=published_rows(scale, folder), groups=groups, benchmarks=benchmarks,
        intervals=intervals, title=title, notes=notes,
    )  # fmt: skip
