"""Small plots as inline SVG text: no library, no script, readable in light and dark, the same bytes for the same numbers.

Only numbers and labels come in; every label is escaped here, so the result may be put into a page as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape as html_escape

from harness.escape import visible

# Okabe-Ito: told apart by colour-blind readers, on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c", "#b3a900")
_MARKS = ("circle", "square", "triangle", "diamond")


@dataclass(frozen=True)
class Point:
    """A score in percent with its interval, at one position of the x axis; None where it was not measured."""

    value: float
    interval: tuple[float, float] | None = None


def _t(text: str, limit: int = 60) -> str:
    return html_escape(visible(text, limit), quote=True)


def _ticks(low: float, high: float) -> list[float]:
    step = next(s for s in (0.5, 1, 2, 5, 10, 20, 25, 50) if (high - low) / s <= 7 or s == 50)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _mark(kind: str, x: float, y: float, colour: str) -> str:
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'
    if kind == "square":
        return f'<rect x="{x - 3.2:.1f}" y="{y - 3.2:.1f}" width="6.4" height="6.4" fill="{colour}"/>'
    corners = [(0, -4.4), (4, 3), (-4, 3)] if kind == "triangle" else [(0, -4.6), (4.6, 0), (0, 4.6), (-4.6, 0)]
    return f'<polygon points="{" ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in corners)}" fill="{colour}"/>'


def plot_iterations(
    series: Mapping[str, Sequence[Point | None]],
    labels: Sequence[str],
    *,
    title: str,
    scale: str,
    bands: Mapping[str, tuple[float, float]] | None = None,
    y_label: str = "accuracy, %",
    width: int = 720,
    height: int = 360,
    standalone: bool = False,
) -> str:
    """Scores over iterations: a line for each name in `series`, a point and interval bar for each of `labels` (base, iteration 1, ...).

    Args:
        series: name -> one point a label (None: not measured, the line has a gap).
        labels: names of the x positions.
        title: shown on top together with `scale`, which every figure names.
        bands: horizontal bands (low, high) in percent, such as a published value with its rounding.
        standalone: for a file of its own, shown as an image: it then brings its size and its text colours for light and dark.

    Returns:
        A whole `<svg>` element with title and description for screen readers.

    Raises:
        ValueError: a series of another length than `labels`, no point at all, or a number that is not finite.
    """
    for name, points in series.items():
        if len(points) != len(labels):
            raise ValueError(f"series {name!r} has {len(points)} points for {len(labels)} labels")
    numbers = [v for pts in series.values() for p in pts if p for v in (p.value, *(p.interval or ()))]
    numbers += [v for band in (bands or {}).values() for v in band]
    if not any(p for pts in series.values() for p in pts):
        raise ValueError("nothing to plot: no series has a point")
    if not all(math.isfinite(v) for v in numbers):
        raise ValueError("nothing is plotted of numbers that are not finite")
    low, high = min(numbers), max(numbers)
    pad = max(1.0, 0.08 * (high - low))
    low, high = max(0.0, low - pad), min(100.0, high + pad)
    if high <= low:  # all numbers at one end of the scale
        low, high = max(0.0, low - 1), min(100.0, high + 1)
    legend = 16 + max(len(visible(n, 28)) for n in [*series, *(bands or {})]) * 7
    left, top, right, bottom = 52, 40, width - legend - 24, height - 44

    def x_of(i: int, shift: float = 0.0) -> float:
        gap = (right - left) / max(1, len(labels))
        return left + gap * (i + 0.5) + shift

    def y_of(v: float) -> float:
        return bottom - (v - low) / (high - low) * (bottom - top)

    heading = _t(f"{title} (scale: {scale})", 120)
    size = f'width="{width}" height="{height}" ' if standalone else ""
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}viewBox="0 0 {width} {height}" role="img" class="plot" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="currentColor" aria-label="{heading}">',
        f"<title>{heading}</title>",
        f"<desc>{_t(_describe(series, labels), 4000)}</desc>",
        f'<text x="{left}" y="20" font-size="14" font-weight="600">{heading}</text>',
        f'<text transform="translate(14 {(top + bottom) / 2:.1f}) rotate(-90)" text-anchor="middle">{_t(y_label)}</text>',
    ]
    if standalone:
        out.append("<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>")
    for tick in _ticks(low, high):
        y = y_of(tick)
        out.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" stroke-opacity="0.15"/>')
        out.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for i, label in enumerate(labels):
        out.append(f'<text x="{x_of(i):.1f}" y="{bottom + 18}" text-anchor="middle">{_t(label, 24)}</text>')
    row_y = top + 8
    for k, (name, (a, b)) in enumerate((bands or {}).items()):
        colour = COLOURS[(len(series) + k) % len(COLOURS)]
        y, h = y_of(max(a, b)), max(1.5, abs(y_of(a) - y_of(b)))
        out.append(f'<rect x="{left}" y="{y:.1f}" width="{right - left}" height="{h:.1f}" fill="{colour}" fill-opacity="0.3"/>')
        out.append(f'<rect x="{right + 14}" y="{row_y - 5}" width="12" height="6" fill="{colour}" fill-opacity="0.5"/>')
        out.append(f'<text x="{right + 32}" y="{row_y + 4}">{_t(name, 28)}</text>')
        row_y += 18
    for k, (name, points) in enumerate(series.items()):
        colour, mark = COLOURS[k % len(COLOURS)], _MARKS[k % len(_MARKS)]
        shift = (k - (len(series) - 1) / 2) * min(7.0, 40 / max(1, len(series)))
        path, pen_up = "", True
        for i, p in enumerate(points):
            if p is None:
                pen_up = True
                continue
            path += f"{'M' if pen_up else 'L'}{x_of(i, shift):.1f} {y_of(p.value):.1f}"
            pen_up = False
        out.append(f'<g class="series"><path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        for i, p in enumerate(points):
            if p is None:
                continue
            x = x_of(i, shift)
            if p.interval:
                y1, y2 = y_of(p.interval[0]), y_of(p.interval[1])
                out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y1:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="1.2"/>')
            tip = f"{name}, {labels[i]}: {p.value:.1f}" + (f" ({p.interval[0]:.1f} to {p.interval[1]:.1f})" if p.interval else "")
            out.append(f"<g><title>{_t(tip, 200)}</title>{_mark(mark, x, y_of(p.value), colour)}</g>")
        out.append("</g>")
        out.append(_mark(mark, right + 20, row_y, colour))
        out.append(f'<text x="{right + 32}" y="{row_y + 4}">{_t(name, 28)}</text>')
        row_y += 18
    return "\n".join([*out, "</svg>"]) + "\n"


def _describe(series: Mapping[str, Sequence[Point | None]], labels: Sequence[str]) -> str:
    return "; ".join(
        f"{name}: " + ", ".join(f"{label} {p.value:.1f}" if p else f"{label} not measured" for label, p in zip(labels, points, strict=True))
        for name, points in series.items()
    )
