"""Pictures for files and pages that stand alone, drawn by matplotlib: the same SVG text for the same numbers, no time stamp, text as text.

Only numbers and labels come in. The report's own charts are inline SVG that its style sheet colours (`harness.report.charts`).
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.escape import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe-Ito: told apart by colour-blind readers.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c", "#b3a900")
_MARKS = "os^D"


@dataclass(frozen=True)
class Point:
    """A score in percent with its interval, at one position of the x axis."""

    value: float
    interval: tuple[float, float] | None = None


@contextmanager
def drawing() -> Iterator[None]:
    """matplotlib's own settings and ours, whatever the user's are; figures are made and written within."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        ours = {"svg.hashsalt": "videosavi", "svg.fonttype": "none", "text.parse_math": False, "font.size": 9}
        matplotlib.rcParams.update({**ours, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
        yield


def svg_text(figure: Figure, title: str, described: str) -> str:
    """The figure as an SVG file's text, with a title and a description for readers who do not see it."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Title": title, "Description": described})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def plot_iterations(
    series: Mapping[str, Sequence[Point | None]], labels: Sequence[str], *, title: str, scale: str, y_label: str = "accuracy, %"
) -> str:
    """Scores over iterations as SVG text: a line for each name in `series`, one point with its interval for each of `labels` (None: not
    measured, the line has a gap). The heading names the scale.

    Raises:
        ValueError: a series of another length than `labels`, no point at all, or a number that is not finite.
    """
    for name, points in series.items():
        if len(points) != len(labels):
            raise ValueError(f"series {name!r} has {len(points)} points for {len(labels)} labels")
    known = [p for points in series.values() for p in points if p]
    if not known:
        raise ValueError("nothing to plot: no series has a point")
    if not all(math.isfinite(v) for p in known for v in (p.value, *(p.interval or ()))):
        raise ValueError("nothing is plotted of numbers that are not finite")
    heading = visible(f"{title} (scale: {scale})", 120)
    with drawing():
        return svg_text(_iterations(series, labels, heading, y_label), heading, _described(series, labels))


def _iterations(series: Mapping[str, Sequence[Point | None]], labels: Sequence[str], heading: str, y_label: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for k, (name, points) in enumerate(series.items()):
        apart = (k - (len(series) - 1) / 2) * min(0.05, 0.3 / len(series))  # intervals beside each other, not on top
        values = [p.value if p else math.nan for p in points]
        below, above = ([abs(p.value - (p.interval or (p.value, p.value))[end]) if p else 0.0 for p in points] for end in (0, 1))
        axes.errorbar(
            [i + apart for i in range(len(labels))], values, yerr=(below, above), label=visible(name, 28), color=COLOURS[k % len(COLOURS)],
            marker=_MARKS[k % len(_MARKS)], markersize=5, linewidth=1.6, elinewidth=1.0,
        )  # fmt: skip
    axes.set(title=heading, ylabel=y_label, xticks=range(len(labels)), xticklabels=[visible(x, 24) for x in labels])
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside right upper")
    return figure


def _described(series: Mapping[str, Sequence[Point | None]], labels: Sequence[str]) -> str:
    """Every number of the picture in words."""

    def said(point: Point | None) -> str:
        return (
            "not measured"
            if point is None
            else f"{point.value:.1f}" + (f" ({point.interval[0]:.1f} to {point.interval[1]:.1f})" if point.interval else "")
        )

    lines = (f"{name}: " + ", ".join(f"{x} {said(p)}" for x, p in zip(labels, points, strict=True)) for name, points in series.items())
    return visible("; ".join(lines), 4000)
