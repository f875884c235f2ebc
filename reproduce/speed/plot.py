"""The speed table as a picture: a bar a case, how many times faster, with its range, its target and its limit by FLOPs.

Inline SVG text without any library, in the style of `harness.tables.plots`: readable in light and dark, the same bytes for the same
numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from harness.escape import visible
from harness.tables.plots import COLOURS

WIDTH, LABEL, RIGHT, ROW, TOP = 880, 350, 70, 28, 62
"""Pixels: the whole, the labels' column, room for figures at the right, a case, what is above the first case."""
_TICKS = (0.5, 1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000)


def plot_ratios(report: Mapping[str, Any]) -> str:
    """A whole `<svg>` file of a report of `reproduce.speed.cases.run`; the axis is logarithmic and starts at equal speed (1x), or below
    where a case is slower.

    Raises:
        ValueError: a report without cases, or a ratio that is not finite and positive.
    """
    rows = report["cases"]
    if not rows:
        raise ValueError("nothing to draw: the report has no case")
    numbers = [row[key] for row in rows for key in ("ratio", "ratio_low", "ratio_high", "target", "limit") if row[key] is not None]
    if not all(math.isfinite(number) and number > 0 for number in numbers):
        raise ValueError("nothing is drawn of ratios that are not finite and positive")
    low = max((tick for tick in _TICKS if tick <= min(1.0, *numbers)), default=min(numbers))
    high = 1.05 * max(2.0, *numbers)
    left, right, bottom = LABEL, WIDTH - RIGHT, TOP + ROW * len(rows)

    def x_of(value: float) -> float:
        return left + math.log(value / low) / math.log(high / low) * (right - left)

    device = ", ".join(f"{key} {value}" for key, value in report["machine"].items() if key in ("device", "threads"))
    heading = _text(f"How many times faster than what a user would run instead (preset {report['preset']}; {device})", 130)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{bottom + 56}" viewBox="0 0 {WIDTH} {bottom + 56}" role="img" '
        f'class="plot" font-family="system-ui, sans-serif" font-size="12" fill="currentColor" aria-label="{heading}">',
        f"<title>{heading}</title>",
        f"<desc>{_text('; '.join(_said(row) for row in rows), 4000)}</desc>",
        "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>",
        f'<text x="12" y="22" font-size="14" font-weight="600">{heading}</text>',
    ]
    for tick in (tick for tick in _TICKS if low <= tick <= high):
        x = x_of(tick)
        strength = 0.6 if tick == 1 else 0.15
        out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{bottom}" stroke="currentColor" stroke-opacity="{strength}"/>')
        out.append(f'<text x="{x:.1f}" y="{TOP - 14}" text-anchor="middle">{tick:g}x</text>')
    for number, row in enumerate(rows):
        out += _bar(row, TOP + ROW * number + ROW / 2, x_of)
    return "\n".join([*out, *_legend(bottom + 34), "</svg>"]) + "\n"


def _bar(row: Mapping[str, Any], y: float, x_of: Any) -> list[str]:
    """One case: name, bar from 1x, range, target and limit as upright marks, the ratio in figures."""
    start, end = sorted((x_of(1.0), x_of(row["ratio"])))
    a, b = x_of(row["ratio_low"]), x_of(row["ratio_high"])
    colour = COLOURS[1] if row["met"] is False else COLOURS[0]
    out = [
        f"<g><title>{_text(_said(row), 300)}</title>",
        f'<text x="{LABEL - 10}" y="{y + 4:.1f}" text-anchor="end">{_text(row["title"], 56)}</text>',
        f'<rect x="{start:.1f}" y="{y - 7:.1f}" width="{max(1.0, end - start):.1f}" height="14" fill="{colour}" fill-opacity="0.75"/>',
        f'<path d="M{a:.1f} {y:.1f}H{b:.1f}M{a:.1f} {y - 4:.1f}v8M{b:.1f} {y - 4:.1f}v8" stroke="currentColor" stroke-width="1.2"/>',
    ]
    edge = b
    if row["target"] is not None:
        out.append(_upright(x_of(row["target"]), y, COLOURS[2], ""))
        edge = max(edge, x_of(row["target"]))
    if row["limit"] is not None:
        out.append(_upright(x_of(row["limit"]), y, "currentColor", ' stroke-dasharray="3 2"'))
        edge = max(edge, x_of(row["limit"]))
    return [*out, f'<text x="{edge + 8:.1f}" y="{y + 4:.1f}" font-weight="600">{row["ratio"]:.1f}x</text></g>']


def _upright(x: float, y: float, colour: str, dash: str) -> str:
    return f'<path d="M{x:.1f} {y - 11:.1f}v22" stroke="{colour}" stroke-width="2.5"{dash}/>'


def _legend(y: float) -> list[str]:
    out, x = [], 12.0
    entries = [("median of the rounds", COLOURS[0]), ("below its target", COLOURS[1])]
    for words, colour in entries:
        out.append(f'<rect x="{x:.1f}" y="{y - 9:.1f}" width="14" height="11" fill="{colour}" fill-opacity="0.75"/>')
        out.append(f'<text x="{x + 20:.1f}" y="{y:.1f}">{words}</text>')
        x += 40 + 6.6 * len(words)
    marks = [("target", COLOURS[2], ""), ("limit by matrix-product FLOPs", "currentColor", ' stroke-dasharray="3 2"')]
    for words, colour, dash in marks:
        out.append(_upright(x + 4, y - 4, colour, dash))
        out.append(f'<text x="{x + 14:.1f}" y="{y:.1f}">{words}</text>')
        x += 34 + 6.6 * len(words)
    out.append(f'<path d="M{x:.1f} {y - 4:.1f}h18m-18 -4v8m18 -8v8" stroke="currentColor" stroke-width="1.2" fill="none"/>')
    return [*out, f'<text x="{x + 24:.1f}" y="{y:.1f}">range of the rounds</text>']


def _said(row: Mapping[str, Any]) -> str:
    """A case in words, for a tooltip and for screen readers."""
    words = f"{row['title']}: {row['ratio']:.2f}x ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
    if row["target"] is not None:
        words += f", target {row['target']:g}x {'met' if row['met'] else 'not met'}"
    return words + ("" if row["limit"] is None else f", limit by FLOPs {row['limit']:.1f}x")


def _text(text: str, limit: int) -> str:
    return escape(visible(text, limit), quote=True)
