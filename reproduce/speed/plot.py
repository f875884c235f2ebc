"""The speed table as a picture: a bar a case, how many times faster, with its range, its target and its limit by FLOPs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.escape import visible
from harness.tables.plots import COLOURS, drawing, svg_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TICKS = (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000)


def plot_ratios(report: Mapping[str, Any]) -> str:
    """An SVG file's text for a report that `reproduce.speed.cases.run` made.

    Raises:
        ValueError: a report without cases, or a ratio that is not finite and positive.
    """
    rows = report["cases"]
    if not rows:
        raise ValueError("nothing to draw: the report has no case")
    if not all(math.isfinite(x) and x > 0 for x in _numbers(report)):
        raise ValueError("nothing is drawn of ratios that are not finite and positive")
    with drawing():
        return svg_text(ratio_figure(report), _heading(report), visible("; ".join(_said(row) for row in rows), 4000))


def ratio_figure(report: Mapping[str, Any]) -> Figure:
    """The figure itself: the axis is logarithmic, bars start at equal speed (1x)."""
    from matplotlib.figure import Figure

    rows = report["cases"]
    places = range(len(rows))
    ratios = [row["ratio"] for row in rows]
    figure = Figure(figsize=(10, 1.5 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for missed, words in ((False, "median of the rounds"), (True, "below its target")):
        some = [i for i in places if (rows[i]["met"] is False) is missed]
        if some:
            axes.barh(some, [ratios[i] - 1 for i in some], left=1, height=0.55, color=COLOURS[int(missed)], alpha=0.75, label=words)
    axes.errorbar(
        ratios, places, xerr=([r["ratio"] - r["ratio_low"] for r in rows], [r["ratio_high"] - r["ratio"] for r in rows]),
        fmt="none", ecolor="0.1", elinewidth=1, capsize=3, label="range of the rounds",
    )  # fmt: skip
    for key, words, colour, style in (
        ("target", "target", COLOURS[2], "solid"),
        ("limit", "limit by matrix-product FLOPs", "0.1", "dashed"),
    ):
        some = [i for i in places if rows[i][key] is not None]
        axes.vlines(
            [rows[i][key] for i in some], [i - 0.4 for i in some], [i + 0.4 for i in some], color=colour, linestyle=style, label=words
        )
    for i, row in enumerate(rows):
        edge = max(x for x in (row["ratio_high"], row["target"], row["limit"]) if x is not None)
        axes.annotate(f"{row['ratio']:.1f}x", (edge, i), xytext=(6, 0), textcoords="offset points", va="center", weight="bold")
    low, high = min(1.0, *_numbers(report)), max(2.0, *_numbers(report))
    axes.set(xscale="log", xlim=(0.95 * low, 1.25 * high), yticks=places, yticklabels=[visible(r["title"], 56) for r in rows])
    shown = [tick for tick in _TICKS if low <= tick <= high]
    axes.set_xticks(shown, [f"{tick:g}x" for tick in shown])
    axes.minorticks_off()
    axes.axvline(1.0, color="0.3", linewidth=0.8)
    axes.grid(axis="x", alpha=0.3)
    axes.invert_yaxis()
    figure.suptitle(_heading(report), fontsize=10)
    figure.legend(loc="outside lower center", ncols=5)
    return figure


def _numbers(report: Mapping[str, Any]) -> list[float]:
    return [row[key] for row in report["cases"] for key in ("ratio", "ratio_low", "ratio_high", "target", "limit") if row[key] is not None]


def _heading(report: Mapping[str, Any]) -> str:
    device = ", ".join(f"{key} {value}" for key, value in report["machine"].items() if key in ("device", "threads"))
    return visible(f"How many times faster than what a user would run instead (preset {report['preset']}; {device})", 130)


def _said(row: Mapping[str, Any]) -> str:
    """A case in words."""
    words = f"{row['title']}: {row['ratio']:.2f}x ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
    if row["target"] is not None:
        words += f", target {row['target']:g}x {'met' if row['met'] else 'not met'}"
    return words + ("" if row["limit"] is None else f", limit by FLOPs {row['limit']:.1f}x")
