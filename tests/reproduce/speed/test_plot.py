"""The speed table as text and as a picture, from figures made up here."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import pytest

from reproduce.speed.case import Row
from reproduce.speed.cli import table
from reproduce.speed.plot import plot_ratios, ratio_figure

FAST = Row(
    "generation-6x150",
    "six prompts <b>",
    {"ours": [2.0, 2.2], "theirs": [10.0, 11.0]},
    "ours",
    "theirs",
    5.0,
    4.5,
    5.5,
    4.3,
    8.0,
    {"ours": 4e12},
    {"prefix": 8290},
    {"ours": 100.0, "theirs": 900.0},
    {},
    ["a note"],
    memory_target=8.0,
    memory_against="theirs",
)
SLOW = replace(FAST, name="dpo-1-full", title="one pair", ratio=0.8, ratio_low=0.7, ratio_high=0.9, target=2.5, limit=None, memory_mb={})
FREE = replace(SLOW, name="prefetch", title="prefetch", ratio=1.4, ratio_low=1.3, ratio_high=1.5, target=None, memory_target=None)


def report(*rows: Row, extras: dict[str, float] | None = None) -> dict[str, Any]:
    cases = [{**row.to_json(), "extras": extras or {}} for row in rows]
    return {"preset": "cpu", "machine": {"device": "x", "threads": 1}, "matmul_peak_tflops": 0.1, "cases": cases}


IDLE = {"idle_pct": 3.0, "idle with the first video_pct": 7.5, "decoding in turn_pct": 30.0}


def test_the_table_is_complete() -> None:
    head, _, row, *rest = [line for line in table(report(FAST)).splitlines() if line.startswith("|")]
    assert not rest
    assert [cell.strip() for cell in head.strip("|").split("|")] == [
        "case", "ours (s)", "against (s)", "ratio [range]", "target", "limit by FLOPs", "share of limit", "memory ours / theirs (MB)",
    ]  # fmt: skip
    assert [cell.strip() for cell in row.strip("|").split("|")][1:] == [
        "2.10", "theirs: 10.50", "5.00x [4.50, 5.50]", "4.3x met", "8.0x", "62 %", "100 / 900 = 1/9.0 (target under 1/8: met)",
    ]  # fmt: skip


@pytest.mark.parametrize(("theirs", "met"), [(900.0, True), (800.0, False), (100.0, False)])
def test_the_memory_target_is_a_strict_bound(theirs: float, met: bool) -> None:
    row = replace(FAST, memory_mb={"ours": 100.0, "theirs": theirs})
    assert row.memory_met is met
    assert ("1/8: met" in table(report(row))) is met


def test_memory_may_count_against_another_way_and_says_so() -> None:
    row = replace(FAST, memory_mb={"ours": 100.0, "theirs": 300.0, "at once": 900.0}, memory_against="at once")
    text = table(report(row))
    assert "100 / 900 (at once) = 1/9.0 (target under 1/8: met)" in text
    assert "theirs: 300 MB" in text


def test_memory_that_was_not_measured_is_not_met() -> None:
    assert replace(FAST, memory_mb={}).memory_met is None
    assert replace(FAST, memory_mb={"ours": 0.0, "theirs": 5.0}).memory_met is None, "nothing grew: the smoke lengths"


def test_idle_is_shown_both_ways_and_judged_where_its_target_holds() -> None:
    text = table(report(FREE, extras=IDLE))
    assert "idle under 5 %: met (3.0 %)" in text
    assert "idle 3.0 %; idle with the first video 7.5 %; decoding in turn 30.0 %" in text
    assert "not met (6.0 %)" in table(report(FREE, extras={**IDLE, "idle_pct": 6.0}))
    assert "idle under" not in table(report(FREE, extras={**IDLE, "decoding in turn_pct": 60.0})), "decoding is over half"


def test_the_picture_has_a_bar_a_case_with_range_target_and_limit() -> None:
    figure = ratio_figure(report(FAST, SLOW, FREE))
    (axes,) = figure.axes
    bars = {round(bar.get_y() + bar.get_height() / 2): bar for bar in axes.patches}
    ends = {place: (bar.get_x(), bar.get_x() + bar.get_width()) for place, bar in bars.items()}
    assert ends == {0: (1, 5.0), 1: (1, pytest.approx(0.8)), 2: (1, pytest.approx(1.4))}, "slower: the bar ends below 1x"
    assert bars[1].get_facecolor() != bars[0].get_facecolor() == bars[2].get_facecolor(), "a case below its target looks otherwise"
    ranges, targets, limits = ([line.tolist() for line in c.get_segments()] for c in axes.collections)
    assert [(a[0], b[0]) for a, b in ranges] == [(4.5, 5.5), (0.7, 0.9), (1.3, 1.5)]
    assert [a[0] for a, _ in targets] == [4.3, 2.5]
    assert [a[0] for a, _ in limits] == [8.0]
    low, high = axes.get_xlim()
    assert low < 0.7
    assert high > 8


def test_the_picture_says_every_case_in_words() -> None:
    words = " ".join(e.text or "" for e in ET.fromstring(plot_ratios(report(FAST, SLOW, FREE))).iter())
    for said in (
        "six prompts <b>: 5.00x (4.50 to 5.50), target 4.3x met, limit by FLOPs 8.0x",
        "one pair: 0.80x (0.70 to 0.90), target 2.5x not met",
        "prefetch: 1.40x (1.30 to 1.50)",
    ):
        assert said in words


def test_the_same_figures_give_the_same_bytes() -> None:
    assert plot_ratios(report(FAST, SLOW)) == plot_ratios(report(FAST, SLOW))


@pytest.mark.parametrize("ratio", [float("nan"), float("inf"), 0.0])
def test_ratios_that_are_none_are_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="not finite and positive"):
        plot_ratios(report(replace(FREE, ratio=ratio)))


def test_no_case_is_refused() -> None:
    with pytest.raises(ValueError, match="no case"):
        plot_ratios(report())
