"""A `Table` as HTML: a `<figure>` for any page, and a page of its own whose columns sort by a click and which reads on a phone.

Every text is escaped by jinja2; links go to http(s) or relative addresses only. The page runs its own script alone and asks no network.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness import escape

if TYPE_CHECKING:
    from harness.tables.table import Table


def figure(table: Table) -> str:
    """The table with caption and notes."""
    import jinja2

    env = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    env.filters["v"] = lambda s: escape.visible(str(s), 4000)
    env.filters["link"] = escape.safe_link
    groups = [(g, [(r, table.best(r)) for r in rows]) for g, rows in table.groups()]
    return env.from_string(_FIGURE).render(t=table, groups=groups, text=[table.is_text(i) for i in range(len(table.columns))])


def page(tables: Sequence[Table], title: str) -> str:
    """Tables as one page."""
    import jinja2
    from markupsafe import Markup

    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    return (
        jinja2.Environment(autoescape=True)
        .from_string(_PAGE)
        .render(
            title=title,
            tables=[Markup(figure(t)) for t in tables],  # noqa: S704  (escaped already)
            script=Markup(_SCRIPT),  # noqa: S704  (a constant)
            digest=digest,
        )
    )


_FIGURE = """<figure class="table" data-scale="{{ t.scale|v }}">
<figcaption>{{ t.title|v }} <span class="scale">scale: {{ t.scale|v }}</span></figcaption>
<div class="scroll"><table>
<thead><tr><th scope="col">{{ t.label_title|v }}</th>{% for c in t.columns %}<th scope="col">{{ c|v }}</th>{% endfor %}</tr></thead>
<tbody>
{% for group, rows in groups %}
{% if group %}
<tr class="group"><th scope="rowgroup" colspan="{{ t.columns|length + 1 }}">{{ group|v }}</th></tr>
{% endif %}
{% for row, best in rows %}
<tr{% if row.published %} class="published"{% endif %}><th scope="row"><bdi>{{ row.label|v }}</bdi></th>
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
</table></div>
{% if t.notes %}
<ul class="notes">{% for n in t.notes %}<li>{{ n|v }}</li>{% endfor %}</ul>
{% endif %}
</figure>
"""

_SCRIPT = """
// A click on a column's head sorts the rows by it, rows of a group staying under their heading; another click turns the order round.
for (const table of document.querySelectorAll("figure.table table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const [first, second] = column === 0 || head.textContent === "Rank" ? ["ascending", "descending"] : ["descending", "ascending"];
      const order = head.getAttribute("aria-sort") === first ? second : first;
      heads.forEach((h) => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const key = (row) => {
        const cell = row.cells[column];
        return cell.dataset.value !== undefined ? Number(cell.dataset.value) : column === 0 ? cell.textContent : null;
      };
      const compare = (a, b) => {
        const x = key(a), y = key(b);
        if (x === null || y === null) return (x === null) - (y === null);  // what has no value comes last, either way
        return (typeof x === "string" ? x.localeCompare(y) : x - y) * (order === "ascending" ? 1 : -1);
      };
      const body = table.tBodies[0], groups = [[]];
      for (const row of [...body.rows]) {
        if (row.classList.contains("group")) groups.push([row]);
        else groups[groups.length - 1].push(row);
      }
      for (const rows of groups) {
        const top = rows[0] && rows[0].classList.contains("group") ? rows.splice(0, 1) : [];
        body.append(...top, ...rows.sort(compare));
      }
    });
  });
}
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{{ digest }}'">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --line: #8886; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 84rem; padding: 0 1rem; }
figure { margin: 0 0 3rem; }
figcaption { font-weight: 600; margin-bottom: .5rem; }
.scale { border: 1px solid var(--line); border-radius: 1em; padding: 0 .6em; font-weight: 400; margin-left: .5em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9em; }
th, td { padding: .3rem .5rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
td { min-width: 4.5rem; }
th:first-child, td.text, tr.group th { text-align: left; }
th:first-child { position: sticky; left: 0; background: Canvas; }
thead th { vertical-align: bottom; }
thead button { all: unset; cursor: pointer; font-weight: 600; }
thead button:focus-visible { outline: 2px solid; }
th[aria-sort="descending"] button::after { content: " ▾"; }
th[aria-sort="ascending"] button::after { content: " ▴"; }
tbody th { font-weight: 400; max-width: 16rem; overflow-wrap: break-word; }
tr.group th { font-weight: 600; font-size: .9em; max-width: none; }
tr.published { font-style: italic; }
td.best { font-weight: 700; }
.notes { font-size: .9em; padding-left: 1.2em; }
@media (max-width: 40rem) {
  body { margin: 1rem auto; font-size: 13px; }
  tbody th { min-width: 5rem; max-width: 8rem; }
  td { white-space: nowrap; }
}
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for t in tables %}{{ t }}{% endfor %}
<script>{{ script }}</script>
</body>
</html>
"""
