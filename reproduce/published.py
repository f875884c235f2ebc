"""The paper's numbers: which published rows stand beside ours at which scale.

Reads results/paper/ (see `harness.published_tables` for the form). Knows the paper, but no model and no run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.published_tables import Published, PublishedError, load_published
from harness.records import Evaluation
from harness.tables import PAPER_SCALES, PublishedRow, ScoreRule, Table, results_table

PAPER_DIR = Path(__file__).resolve().parent.parent / "results" / "paper"

TABLE1 = "table1_main.csv"
TABLE6 = "table6_parameter_efficiency.csv"
BASE_ROW = "InternVL2.5"
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


# Which published rows belong to a scale: (table, row, label beside ours). The 8B numbers are Table 1's, the smaller ones Table 6's.
_SCALE_ROWS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "8b": ((TABLE1, BASE_ROW, "paper: InternVL2.5-8B"), (TABLE1, SAVI_ROW, "paper: InternVL2.5-8B + VideoSAVi")),
    "4b": ((TABLE6, "InternVL (4B)", "paper: InternVL2.5-4B"),),
    "2b": ((TABLE6, "InternVL (2B)", "paper: InternVL2.5-2B"), (TABLE6, "InternVL (2B) + VideoSAVi", "paper: InternVL2.5-2B + VideoSAVi")),
    "1b": ((TABLE6, "InternVL (1B)", "paper: InternVL2.5-1B"), (TABLE6, "InternVL (1B) + VideoSAVi", "paper: InternVL2.5-1B + VideoSAVi")),
}


def published_rows(scale: str, folder: Path = PAPER_DIR) -> list[PublishedRow]:
    """The paper's rows for a paper scale, base first; an empty list at any other scale, where no published number applies."""
    if scale not in PAPER_SCALES:
        return []
    published = load_tables(folder)
    out = []
    for file, row, label in _SCALE_ROWS[scale]:
        table = published.table(file)
        values = table.by_benchmark(table.position(row))
        out.append(PublishedRow(label, values, f"{published.manifest.title}, {table.info.title}", published.manifest.link))
    return out


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
    """The experiment's table: ours, and at paper scales the published rows below (see `harness.tables.results_table`)."""
    return results_table(
        rows, scale=scale, rule=rule, published=published_rows(scale, folder), groups=groups, benchmarks=benchmarks,
        intervals=intervals, title=title, notes=notes,
    )  # fmt: skip
