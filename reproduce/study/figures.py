"""A study's pictures, made from its records alone: gain against gap, curves over iterations, what the pairs were worth."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from harness.escape import visible
from harness.tables.plots import COLOURS, drawing, svg_text
from harness.tables.study import FIGURES
from reproduce.study.claims import LAST, METHOD, Side, contrast, runs_of
from reproduce.study.records import Questions, Record
from reproduce.study.tables import score, variants_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


MOST_INSIDE = 4
"""Lines that a legend inside the axes has at most; a longer one stands beside them."""


def all_figures(records: Sequence[Record], questions: Questions, frozen: str) -> dict[str, str]:
    """SVG text by name (`FIGURES`); one with nothing to show is left out. `frozen` stands below each."""
    made = {
        "gain_by_gap": gain_by_gap(records, questions, frozen),
        "curves": curves(records, questions, frozen),
        "pairs": pairs(records, frozen),
    }
    return {name: text for name, text in made.items() if text}


def _drawn(name: str, records: Sequence[Record], frozen: str, described: str, draw: object) -> str:
    from matplotlib.figure import Figure

    heading = visible(f"{FIGURES[name]} (scale: {records[0].scale})", 120)
    with drawing():
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        axes = figure.subplots()
        draw(axes)  # type: ignore[operator]
        axes.set_title(heading)
        axes.grid(alpha=0.3)
        if (lines := len(axes.get_legend_handles_labels()[0])) > MOST_INSIDE:
            figure.legend(loc="outside right upper")
        elif lines:
            axes.legend(loc="best")
        figure.supxlabel(visible(frozen, 160), fontsize=7, color="#555555")
        return svg_text(figure, heading, visible(described, 4000))


def gain_by_gap(records: Sequence[Record], questions: Questions, frozen: str) -> str:
    """A dot a base: what the method gained on it, over how much better its answers are after its own critique; with a line through them
    where there are three or more. Empty where no base has a gap."""
    from scipy import stats

    dots = []
    for base, runs in runs_of(records, METHOD).items():
        gaps = [run.gap for run in runs if run.gap is not None]
        alone = contrast(runs, questions, Side(METHOD, LAST), Side(METHOD, 0))
        if gaps and alone is not None:
            gain = statistics.fmean(score(run, questions, run.iterations) - score(run, questions, 0) for run in runs)
            dots.append((base, statistics.fmean(gaps), gain, 1.96 * alone.question_se))
    if not dots:
        return ""
    x, y = np.array([dot[1] for dot in dots]), np.array([dot[2] for dot in dots])
    fit = stats.linregress(x, y) if len(dots) > 2 and np.ptp(x) > 0 else None
    half = 0.0 if fit is None else float(stats.t.ppf(0.975, len(dots) - 2)) * fit.stderr
    line = "" if fit is None else f"slope {fit.slope:+.2f} [{fit.slope - half:+.2f}, {fit.slope + half:+.2f}] points a point"

    def draw(axes: Axes) -> None:
        axes.errorbar(
            x, y, yerr=[dot[3] for dot in dots], fmt="o", color=COLOURS[0], elinewidth=0.8, label="a base (error of its questions)"
        )
        if fit is not None:
            ends = np.array([x.min(), x.max()])
            axes.plot(ends, fit.intercept + fit.slope * ends, color=COLOURS[1], label=line)
        axes.axhline(0, color="#888888", linewidth=0.8)
        axes.set(xlabel="right after critique minus right at first, points", ylabel="gain of the method, points")

    said = "; ".join(f"{base}: gap {gap:.1f}, gain {gain:+.1f}" for base, gap, gain, _ in dots)
    return _drawn("gain_by_gap", records, frozen, said + (f"; {line}" if line else ""), draw)


def curves(records: Sequence[Record], questions: Questions, frozen: str) -> str:
    """The gain of each variant by iteration, with the band of its interval."""
    steps = max(record.iterations for record in records)
    series = {}
    for name in variants_of(records):
        effects = [contrast(records, questions, Side(name, t), Side(name, 0)) for t in range(1, steps + 1)]
        known = [(t, e) for t, e in enumerate(effects, start=1) if e is not None]
        series[name] = [(0, 0.0, 0.0, 0.0), *((t, e.points, e.low, e.high) for t, e in known)]

    def draw(axes: Axes) -> None:
        for k, (name, points) in enumerate(series.items()):
            t, mean, low, high = (np.array(column) for column in zip(*points, strict=True))
            colour = COLOURS[k % len(COLOURS)]
            style = ("-", "--", ":")[k // len(COLOURS) % 3]
            axes.plot(
                t, mean, marker="o", markersize=3, color=colour, linestyle=style, linewidth=2.2 if name == METHOD else 1.2, label=name
            )
            axes.fill_between(t, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.axhline(0, color="#888888", linewidth=0.8)
        axes.set(
            xticks=range(steps + 1), xticklabels=["base", *(f"{t}" for t in range(1, steps + 1))], xlabel="iteration", ylabel="gain, points"
        )

    said = (
        f"{name}: " + ", ".join(f"{t} {mean:+.1f} ({low:+.1f} to {high:+.1f})" for t, mean, low, high in points[1:])
        for name, points in series.items()
    )
    return _drawn("curves", records, frozen, "; ".join(said), draw)


def pairs(records: Sequence[Record], frozen: str) -> str:
    """How right the method's first and revised answers and its pairs are, by iteration: the mean over its runs and the range of them.
    Empty where no run has pairs."""
    shown = {
        "initial_pct": "right at first",
        "revised_pct": "right after critique",
        "precision_pct": "precision of pairs",
        "valid_pct": "valid questions",
    }
    mine = [record.pairs for record in records if record.variant == METHOD and record.pairs]
    if not mine:
        return ""
    steps = min(map(len, mine))
    series = {}
    for key, label in shown.items():
        values = [[float(v) for found in mine if (v := found[t].get(key)) is not None] for t in range(steps)]
        series[label] = [(t + 1, statistics.fmean(v), min(v), max(v)) for t, v in enumerate(values) if v]

    def draw(axes: Axes) -> None:
        for k, (label, points) in enumerate(series.items()):
            if points:
                t, mean, low, high = (np.array(column) for column in zip(*points, strict=True))
                axes.plot(t, mean, marker="o", markersize=4, color=COLOURS[k], label=label)
                axes.fill_between(t, low, high, color=COLOURS[k], alpha=0.12, linewidth=0)
        axes.set(xticks=range(1, steps + 1), xlabel="iteration", ylabel="percent (band: all runs)", ylim=(0, 100))

    said = (
        f"{label}: " + ", ".join(f"{t} {mean:.1f} ({low:.1f} to {high:.1f})" for t, mean, low, high in points)
        for label, points in series.items()
    )
    return _drawn("pairs", records, frozen, "; ".join(said), draw)
