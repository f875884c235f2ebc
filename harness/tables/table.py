"""One `Table` of cells, many formats: Markdown, LaTeX, CSV, HTML, JSON.

A cell keeps its value (what is computed with), the text shown for it, its interval and where it comes from apart, so that a format never
parses a number back out of text. Every table names its scale: a number measured at micro scale is no reproduction of a paper's number.
The module knows scores and records, but no model, no run folder and no paper.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

from benchmarks.benchmark import Benchmark
from benchmarks.catalog import CATALOG, PAPER, in_mean, select
from harness import escape
from harness.records import Evaluation
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


@dataclass(frozen=True)
class Row:
    """A labelled row; rows of one `group` stand together under its name."""

    label: str
    cells: tuple[Cell, ...]
    group: str = ""


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
        for group, members in self._groups():
            if group:
                rows.append([f"**{escape.markdown(group)}**"] + [""] * len(self.columns))
            for row in members:
                label = escape.markdown(row.label)
                cells = [_markdown_cell(c, best) for c, best in zip(row.cells, self._best(row), strict=True)]
                rows.append([f"*{label}*" if label and _published(row) else label, *cells])
        header = [escape.markdown(c) for c in (self.label_title, *self.columns)]
        align = ["left", *("left" if self._is_text(i) else "right" for i in range(len(self.columns)))]
        body = tabulate(rows, headers=header, tablefmt="pipe", disable_numparse=True, colalign=align if rows else None)
        notes = "".join(f"- {escape.markdown(n, 4000)}\n" for n in self.notes)
        return f"**{escape.markdown(self.caption)}**\n\n{body}\n" + (f"\n{notes}" if notes else "")

    def to_latex(self) -> str:
        r"""A `table` environment with booktabs rules; needs `\usepackage{booktabs,hyperref,textcomp}` and T1 fonts."""
        spec = "l" + "".join("l" if self._is_text(i) else "r" for i in range(len(self.columns)))
        width = len(self.columns) + 1
        lines = [r"\begin{table}[t]", r"\centering", rf"\caption{{{escape.latex(self.caption)}}}"]
        lines += [rf"\begin{{tabular}}{{{spec}}}", r"\toprule"]
        lines.append(" & ".join(escape.latex(c) for c in (self.label_title, *self.columns)) + r" \\")
        for i, (group, members) in enumerate(self._groups()):
            if i == 0 or group:
                lines.append(r"\midrule")
            if group:
                lines.append(rf"\multicolumn{{{width}}}{{l}}{{\textit{{{escape.latex(group)}}}}} \\")
            for row in members:
                label = escape.latex(row.label)
                label = rf"\textit{{{label}}}" if _published(row) else label
                # A leading bracket would be read as the optional argument of the line before.
                label = "{}" + label if label.startswith("[") else label
                cells = [_latex_cell(c, best) for c, best in zip(row.cells, self._best(row), strict=True)]
                lines.append(" & ".join([label, *cells]) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}"]
        if self.notes:
            lines.append(r"\par\smallskip\footnotesize " + r"\\ ".join("{}" + escape.latex(n, 4000) for n in self.notes))
        return "\n".join([*lines, r"\end{table}", ""])

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
        """A `<figure>` with the table; every text is escaped by jinja2, links only to http(s) or relative addresses."""
        import jinja2

        env = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        env.filters["v"] = lambda s: escape.visible(str(s), 4000)
        env.filters["link"] = escape.safe_link
        groups = [(g, [(r, _published(r), self._best(r)) for r in rows]) for g, rows in self._groups()]
        return env.from_string(_HTML).render(t=self, groups=groups, text=[self._is_text(i) for i in range(len(self.columns))])

    def to_json(self) -> str:
        """Everything, machine-readable; `from_json` reads it back to an equal table."""
        return json.dumps({"schema_version": TABLE_SCHEMA, **asdict(self)}, ensure_ascii=True, allow_nan=False, indent=1) + "\n"

    def _groups(self) -> list[tuple[str, list[Row]]]:
        out: list[tuple[str, list[Row]]] = []
        for row in self.rows:
            if not out or out[-1][0] != row.group:
                out.append((row.group, []))
            out[-1][1].append(row)
        return out

    def _best(self, row: Row) -> list[bool]:
        """Whether each cell is set in bold: the first rank, in a column where not all share it."""
        return [c.rank == 1 and any((r.cells[i].rank or 1) > 1 for r in self.rows) for i, c in enumerate(row.cells)]

    def _is_text(self, i: int) -> bool:
        values = [r.cells[i].value for r in self.rows if r.cells[i].value is not None]
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
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as e:
        raise TableError(f"not a table written by Table.to_json: {e}") from e


def _unique(names: list[str]) -> list[str]:
    """Column names a reader can tell apart: the second `x` becomes `x (2)`."""
    seen: dict[str, int] = {}
    out = []
    for n in names:
        seen[n] = seen.get(n, 0) + 1
        out.append(n if seen[n] == 1 else f"{n} ({seen[n]})")
    return out


def _published(row: Row) -> bool:
    filled = [c for c in row.cells if c.value is not None]
    return bool(filled) and any(c.source == "published" for c in filled) and all(c.source != "measured" for c in filled)


def _markdown_cell(cell: Cell, best: bool) -> str:
    text = escape.markdown(cell.text)
    if best and text:
        text = f"**{text}**"
    link = escape.safe_link(cell.link)
    return f"[{text}](<{link}>)" if link and text else text


def _latex_cell(cell: Cell, best: bool) -> str:
    text = escape.latex(cell.text)
    if best and text:
        text = rf"\textbf{{{text}}}"
    link = escape.safe_link(cell.link)
    if not link or not text:
        return text
    address = "".join("\\" + c if c in "%#&_$" else r"\string~" if c == "~" else c for c in link)
    return rf"\href{{{address}}}{{{text}}}"


_HTML = """<figure class="table" data-scale="{{ t.scale|v }}">
<figcaption>{{ t.title|v }} <span class="scale">scale: {{ t.scale|v }}</span></figcaption>
<table>
<thead><tr><th scope="col">{{ t.label_title|v }}</th>{% for c in t.columns %}<th scope="col">{{ c|v }}</th>{% endfor %}</tr></thead>
<tbody>
{% for group, rows in groups %}
{% if group %}
<tr class="group"><th scope="rowgroup" colspan="{{ t.columns|length + 1 }}">{{ group|v }}</th></tr>
{% endif %}
{% for row, published, best in rows %}
<tr{% if published %} class="published"{% endif %}><th scope="row"><bdi>{{ row.label|v }}</bdi></th>
{%- for c in row.cells %}
<td class="{{ c.source }}{{ ' text' if text[loop.index0] else '' }}{{ ' best' if best[loop.index0] else '' }}"
{%- if c.value is number %} data-value="{{ c.value }}"{% endif %}
{%- if c.interval %} data-low="{{ c.interval[0] }}" data-high="{{ c.interval[1] }}"{% endif %}
{%- if c.note %} title="{{ c.note|v }}"{% endif %}>
{%- if c.link|link %}<a href="{{ c.link|link }}" rel="noopener">{{ c.text|v }}</a>{% else %}{{ c.text|v }}{% endif %}</td>
{%- endfor %}</tr>
{% endfor %}
{% endfor %}
</tbody>
</table>
{% if t.notes %}
<ul class="notes">{% for n in t.notes %}<li>{{ n|v }}</li>{% endfor %}</ul>
{% endif %}
</figure>
"""


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
    text = f"{value:+.1f}" if signed else f"{value:.1f}"
    if interval is not None:
        form = "+.1f" if signed else ".1f"
        text += f" ({interval[0]:{form}} to {interval[1]:{form}})"
    return Cell(float(value), text, interval, rank, source, link, note)


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
    notes: tuple[str, ...] = field(default=())


def results_table(
    rows: Mapping[str, Mapping[str, Evaluation]],
    *,
    scale: str,
    rule: ScoreRule,
    published: Sequence[PublishedRow] = (),
    groups: Mapping[str, str] | None = None,
    benchmarks: Sequence[str] | None = None,
    intervals: bool = True,
    title: str = "Results",
    notes: Sequence[str] = (),
) -> Table:
    """The main job's table: a row a label of `rows` in their order (base, iteration 1..N, controls), a column a benchmark, and the mean.

    `rule` picks the score and is named below the table. `groups` puts labels under a heading. Published rows come last, and never
    beside synthetic data.

    Raises:
        TableError: published rows beside synthetic data, an evaluation of another scale, synthetic and real data mixed, or no rows.
    """
    kinds = {e.score.synthetic for evaluations in rows.values() for e in evaluations.values()}
    if len(kinds) > 1:
        raise TableError(f"scale {scale!r}: some scores were measured on synthetic data and some on real data; these are never mixed")
    if published and True in kinds:
        raise TableError(f"published numbers are no reference for synthetic data (scale {scale!r}): leave them out")
    if not rows:
        raise TableError("a results table needs at least one evaluated model")
    chosen = select(benchmarks)
    out: list[Row] = []
    counts: dict[str, set[tuple[int, int]]] = {}
    for label, evaluations in rows.items():
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
            counts.setdefault(b.name, set()).add((e.score.n, e.score.videos))
            s = scored(e, rule)
            parts.append(s)
            short = "" if e.score.n == e.score.n_expected else f"; {e.score.n_expected} expected"
            note = f"n = {e.score.n} on {e.score.videos} videos{short}; chance {e.score.chance_pct:.1f}"
            cells.append(pct_cell(s.value, s.interval if intervals else None, note=note))
        mean = mean_cell(_averaged(chosen, parts))
        cells.append(mean if intervals or mean.value is None else pct_cell(float(mean.value), source="derived"))
        out.append(Row(label, tuple(cells), (groups or {}).get(label, "")))
    for row in published:
        cells = [pct_cell(row.values.get(b.name), source="published", link=row.link, note=row.source) for b in chosen]
        values = _averaged(chosen, [row.values.get(b.name) for b in chosen])
        known = [v for v in values if v is not None]
        mean_value = sum(known) / len(known) if known and len(known) == len(values) else None
        cells.append(pct_cell(mean_value, source="derived", note="mean of the published row"))
        out.append(Row(row.label, tuple(cells), "published"))
    sizes = "; ".join(f"{CATALOG[b].title} {_sizes(counts[b])}" for b in counts)
    all_notes = [f"Accuracy in percent; {RULE_NOTES[rule]}.", f"Questions / videos: {sizes}." if sizes else ""]
    if intervals:
        all_notes.append("In parentheses: 95 % interval, clustered by video; the mean's takes the benchmarks as independent.")
    if True in kinds:
        all_notes.append(SYNTHETIC_NOTE.format(scale=scale))
    all_notes += [n for row in published for n in (f"{row.label}: {row.source}", *row.notes)]
    averaged = in_mean(b.name for b in chosen)
    mean_title = "Mean" if len(averaged) == len(PAPER) else f"Mean of {len(averaged)}"
    columns = (*(b.title for b in chosen), mean_title)
    return Table(title, scale, columns, tuple(out), tuple(n for n in [*all_notes, *notes] if n))


def _averaged(chosen: Sequence[Benchmark], parts: Sequence[T]) -> list[T]:
    """Of one part a benchmark, those that the mean is made of."""
    averaged = in_mean(b.name for b in chosen)
    return [part for b, part in zip(chosen, parts, strict=True) if b.name in averaged]


def _sizes(seen: set[tuple[int, int]]) -> str:
    return " or ".join(f"{n} / {v}" for n, v in sorted(seen))
