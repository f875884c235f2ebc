r"""A `Table` as LaTeX that compiles as it is and fits a page of two columns: `table*`, booktabs rules, a label, small intervals and deltas.

Needs `\usepackage{booktabs,textcomp}` and T1 fonts. Print has no links, so none are set.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from harness import escape

if TYPE_CHECKING:
    from harness.tables.table import Cell, Table


def to_latex(table: Table) -> str:
    """The whole environment."""
    columns = range(len(table.columns))
    spec = "l" + "".join("l" if table.is_text(i) else "r" for i in columns)
    lines = [r"\begin{table*}[t]", r"\centering", rf"\caption{{{escape.latex(table.caption)}}}", rf"\label{{{label(table)}}}"]
    lines += [r"\footnotesize", r"\setlength{\tabcolsep}{2pt}", rf"\begin{{tabular}}{{@{{}}{spec}@{{}}}}", r"\toprule"]
    lines.append(" & ".join(escape.latex(c) for c in (table.label_title, *table.columns)) + r" \\")
    marked = [_marks(table, i) for i in columns]
    for number, (group, members) in enumerate(table.groups()):
        if number == 0 or group:
            lines.append(r"\midrule")
        if group:
            lines.append(rf"\multicolumn{{{len(table.columns) + 1}}}{{@{{}}l}}{{\textit{{{escape.latex(group)}}}}} \\")
        for row in members:
            name = escape.latex(row.label)
            name = rf"\textit{{{name}}}" if row.published else name
            # A leading bracket would be read as the optional argument of the line before.
            name = "{}" + name if name.startswith("[") else name
            cells = [_cell(cell, marked[i].get(_key(cell), "")) for i, cell in enumerate(row.cells)]
            lines.append(" & ".join([name, *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if table.notes:
        notes = r"\\ ".join("{}" + escape.latex(n, 4000) for n in _notes(table))
        lines.append(rf"\par\smallskip\parbox{{\textwidth}}{{\scriptsize\raggedright {notes}}}")
    return "\n".join([*lines, r"\end{table*}", ""])


INTERVALS = "In parentheses: 95 % interval"
"""How a table's notes speak of the intervals that the other formats show beside a score."""


def _notes(table: Table) -> list[str]:
    """The table's notes, with what is shown in another way here."""
    cells = [c for row in table.rows for c in row.cells]
    notes = [n.replace(INTERVALS, "Subscript: half of the 95 % interval") for n in table.notes]
    if any(c.delta is not None for c in cells):
        notes.append("Superscript: difference to the base, in points.")
    return [*notes, "Bold: the highest of a column; underlined: the second."] if table.mark_best else notes


def label(table: Table) -> str:
    r"""What `\ref` takes: `tab:results-micro`."""
    return "tab:" + (re.sub(r"[^a-z0-9]+", "-", f"{table.title} {table.scale}".lower()).strip("-") or "table")


def _key(cell: Cell) -> float | int | str | None:
    """What decides on bold: the value as it is shown, or the rank."""
    if cell.rank is not None:
        return f"rank {cell.rank}"
    return round(cell.value, 1) if isinstance(cell.value, float) else None


def _marks(table: Table, index: int) -> dict[float | int | str | None, str]:
    """Commands for the values of a column: bold for the best, underlined for the second; where there are ranks, bold for the first."""
    cells = [row.cells[index] for row in table.rows]
    ranks = sorted({c.rank for c in cells if c.rank is not None})
    if ranks:
        return {"rank 1": r"\textbf"} if ranks[0] == 1 and len(ranks) > 1 else {}
    values = sorted({round(c.value, 1) for c in cells if isinstance(c.value, float)}, reverse=True)
    if not table.mark_best or len(values) < 2:
        return {}
    return dict(zip(values[:2], (r"\textbf", r"\underline"), strict=True))


def _cell(cell: Cell, mark: str) -> str:
    text, low, high = cell.text, "", ""
    if isinstance(cell.value, float) and cell.interval is not None and cell.span and cell.span in text:
        text = text.replace(cell.span, "", 1)
        # The longer side: an interval that ends at 0 or 100 is cut there.
        low = rf"_{{\pm{max(cell.interval[1] - cell.value, cell.value - cell.interval[0]):.1f}}}"
    number, dot, rest = text.partition(" · ")
    shown = escape.latex(number)
    shown = rf"{mark}{{{shown}}}" if mark and shown else shown
    if cell.delta is not None:
        high = f"^{{{cell.delta:+.1f}}}"
    return shown + (f"${high}{low}$" if high or low else "") + (escape.latex(dot + rest) if dot else "")
