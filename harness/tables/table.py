"""One `Table` of cells, many formats: Markdown, LaTeX, CSV, HTML, JSON.

A cell keeps its value (what is computed with), the text shown for it, its interval and where it comes from apart, so that a format never
parses a number back out of text. Every table names its scale: a number measured at micro scale is no reproduction of a paper's number.
The module knows scores and records, but no model, no run folder and no paper.
"""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from harness import escape
from harness.tables import html, latex
from savi.base.errors import ExitCode, SaviError

TABLE_SCHEMA = 1
FORMATS = ("md", "latex", "html", "csv", "json")

T = TypeVar("T")
CellSource = Literal["measured", "published", "derived"]
ScoreRule = Literal["strict", "upstream"]
Format = Literal["md", "latex", "html", "csv", "json"]

RULE_NOTES: dict[ScoreRule, str] = {
    "strict": "strict score: answers that are unparsed, empty or failed count as wrong",
    "upstream": "upstream score: exactly what lmms-eval reports, random credit for unreadable answers included",
}


SYNTHETIC_NOTE = "Scale {scale}: synthetic data; no number here reproduces a number of the paper."


class TableError(SaviError, ValueError):
    """A table that would say something untrue or cannot be drawn."""

    exit_code = ExitCode.BROKEN


@dataclass(frozen=True)
class Cell:
    """One cell.

    `value` is what was computed (percentages 0-100), `text` what is shown, `interval` (low, high) in the value's unit, `rank` 1 for the
    best; `source` says whether we measured it, a paper published it, or it was derived from other cells; `link` leads to its evidence.
    """

    value: float | str | None = None
    text: str = ""
    interval: tuple[float, float] | None = None
    rank: int | None = None
    source: CellSource = "measured"
    link: str | None = None
    note: str = ""
    worst_rank: int | None = None
    """Where the ranks are intervals: `rank` is the best possible one, this the worst."""
    delta: float | None = None
    """The difference to the table's base row."""
    span: str = ""
    """The part of `text` that shows the interval, for formats that show it in another way."""


@dataclass(frozen=True)
class Row:
    """A labelled row; rows of one `group` stand together under its name."""

    label: str
    cells: tuple[Cell, ...]
    group: str = ""

    @property
    def published(self) -> bool:
        """Whether its numbers were published by others and none was measured."""
        filled = [c for c in self.cells if c.value is not None]
        return bool(filled) and any(c.source == "published" for c in filled) and all(c.source != "measured" for c in filled)


@dataclass(frozen=True)
class Table:
    """A table: `columns` name the cells of each row (the label's column is `label_title`).

    Raises:
        TableError: a row of another length, no scale, or a value that is no finite number.
    """

    title: str
    scale: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    label_title: str = "model"
    mark_best: bool = False
    """Whether LaTeX sets each column's highest value in bold and underlines the second."""

    def __post_init__(self) -> None:
        for name in ("columns", "rows", "notes"):  # lists are welcome, tuples are kept
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.scale:
            raise TableError(f"table {self.title!r} names no scale: give it one (micro, 8b, ...)")
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise TableError(f"table {self.title!r}, row {row.label!r}: {len(row.cells)} cells for {len(self.columns)} columns")
            for column, cell in zip(self.columns, row.cells, strict=True):
                numbers = [cell.value, *(cell.interval or ())]
                if any(isinstance(v, float) and not math.isfinite(v) for v in numbers):
                    raise TableError(f"table {self.title!r}, row {row.label!r}, column {column!r}: {numbers} is no finite number")

    @property
    def caption(self) -> str:
        return f"{self.title} (scale: {self.scale})"

    def render(self, fmt: Format) -> str:
        """The table in one of `FORMATS`."""
        return {"md": self.to_markdown, "latex": self.to_latex, "html": self.to_html, "csv": self.to_csv, "json": self.to_json}[fmt]()

    def to_markdown(self) -> str:
        """A pipe table with caption and notes; group names are rows of their own, best cells bold, published rows in italics."""
        from tabulate import tabulate

        rows: list[list[str]] = []
        for group, members in self.groups():
            if group:
                rows.append([f"**{escape.markdown(group)}**"] + [""] * len(self.columns))
            for row in members:
                label = escape.markdown(row.label)
                cells = [_markdown_cell(c, best) for c, best in zip(row.cells, self.best(row), strict=True)]
                rows.append([f"*{label}*" if label and row.published else label, *cells])
        header = [escape.markdown(c) for c in (self.label_title, *self.columns)]
        align = ["left", *("left" if self.is_text(i) else "right" for i in range(len(self.columns)))]
        body = tabulate(rows, headers=header, tablefmt="pipe", disable_numparse=True, colalign=align if rows else None)
        notes = "".join(f"- {escape.markdown(n, 4000)}\n" for n in self.notes)
        return f"**{escape.markdown(self.caption)}**\n\n{body}\n" + (f"\n{notes}" if notes else "")

    def to_latex(self) -> str:
        """A `table*` environment (see `harness.tables.latex`)."""
        return latex.to_latex(self)

    def to_csv(self) -> str:
        """Values, not texts: a column each for value and source, and for interval bounds and ranks where any cell has one."""
        import pandas as pd

        records: list[dict[str, object]] = []
        spans = [any(r.cells[i].interval for r in self.rows) for i in range(len(self.columns))]
        ranks = [any(r.cells[i].rank is not None for r in self.rows) for i in range(len(self.columns))]
        worst = [any(r.cells[i].worst_rank is not None for r in self.rows) for i in range(len(self.columns))]
        names = _unique([escape.csv_text(c) for c in self.columns])
        for row in self.rows:
            rec: dict[str, object] = {"scale": escape.csv_text(self.scale), "group": escape.csv_text(row.group)}
            rec[escape.csv_text(self.label_title)] = escape.csv_text(row.label)
            for i, cell in enumerate(row.cells):
                rec[names[i]] = escape.csv_text(cell.value) if isinstance(cell.value, str) else cell.value
                if spans[i]:
                    rec[f"{names[i]} low"], rec[f"{names[i]} high"] = cell.interval or (None, None)
                if ranks[i]:
                    rec[f"{names[i]} rank"] = cell.rank
                if worst[i]:
                    rec[f"{names[i]} worst rank"] = cell.worst_rank
                rec[f"{names[i]} source"] = cell.source if cell.value is not None else ""
            records.append(rec)
        # Objects, so that a column with gaps keeps its whole numbers whole.
        return str(pd.DataFrame(records, dtype=object).to_csv(index=False, quoting=csv.QUOTE_MINIMAL, lineterminator="\n"))

    def to_html(self) -> str:
        """A `<figure>` with the table (see `harness.tables.html`)."""
        return html.figure(self)

    def to_json(self) -> str:
        """Everything, machine-readable; `from_json` reads it back to an equal table."""
        return json.dumps({"schema_version": TABLE_SCHEMA, **asdict(self)}, ensure_ascii=True, allow_nan=False, indent=1) + "\n"

    def groups(self) -> list[tuple[str, list[Row]]]:
        """The rows in order, those of one group together with its name."""
        out: list[tuple[str, list[Row]]] = []
        for row in self.rows:
            if not out or out[-1][0] != row.group:
                out.append((row.group, []))
            out[-1][1].append(row)
        return out

    def best(self, row: Row) -> list[bool]:
        """Whether each cell is set in bold: the first rank, in a column where not all share it."""
        return [c.rank == 1 and any((r.cells[i].rank or 1) > 1 for r in self.rows) for i, c in enumerate(row.cells)]

    def is_text(self, column: int) -> bool:
        """Whether column i holds words."""
        values = [r.cells[column].value for r in self.rows if r.cells[column].value is not None]
        return bool(values) and all(isinstance(v, str) for v in values)


def from_json(text: str) -> Table:
    """The table `Table.to_json` wrote.

    Raises:
        TableError: not such a table, or of another schema version.
    """
    try:
        raw: dict[str, Any] = json.loads(text)
        if raw.pop("schema_version") != TABLE_SCHEMA:
            raise TableError(f"a table of another schema version than {TABLE_SCHEMA}")
        rows = []
        for r in raw.pop("rows"):
            cells = (Cell(**{**c, "interval": tuple(c["interval"]) if c["interval"] else None}) for c in r["cells"])
            rows.append(Row(r["label"], tuple(cells), r["group"]))
        return Table(rows=tuple(rows), **raw)
    except TableError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as e:
        raise TableError(f"not a table written by Table.to_json: {e}") from e


def _unique(names: list[str]) -> list[str]:
    """Column names a reader can tell apart: the second `x` becomes `x (2)`."""
    seen: dict[str, int] = {}
    out = []
    for n in names:
        seen[n] = seen.get(n, 0) + 1
        out.append(n if seen[n] == 1 else f"{n} ({seen[n]})")
    return out


def _markdown_cell(cell: Cell, best: bool) -> str:
    text = escape.markdown(cell.text)
    if best and text:
        text = f"**{text}**"
    link = escape.safe_link(cell.link)
    return f"[{text}](<{link}>)" if link and text else text


def pct_cell(
    value: float | None,
    interval: tuple[float, float] | None = None,
    *,
    source: CellSource = "measured",
    rank: int | None = None,
    link: str | None = None,
    note: str = "",
    signed: bool = False,
) -> Cell:
    """A percentage (0-100) with one decimal and, where given, its interval: `52.3 (49.1 to 55.4)`. None is shown as a dash."""
    if value is None:
        return Cell(None, "–", source=source, note=note)
    form = "+.1f" if signed else ".1f"
    span = "" if interval is None else f" ({interval[0]:{form}} to {interval[1]:{form}})"
    return Cell(float(value), f"{value:{form}}{span}", interval, rank, source, link, note, span=span)
