"""The speed table as text and as a picture, from figures made up here."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import pytest

from reproduce.speed.cases import Row
from reproduce.speed.cli import table
from reproduce.speed.plot import plot_ratios

SPACE = "{http://www.w3.org/2000/svg}"
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
    tree = ET.fromstring(plot_ratios(report(FAST, SLOW, FREE)))
    groups = tree.findall(f"{SPACE}g")
    assert [group.find(f"{SPACE}title").text for group in groups] == [  # type: ignore[union-attr]
        "six prompts <b>: 5.00x (4.50 to 5.50), target 4.3x met, limit by FLOPs 8.0x",
        "one pair: 0.80x (0.70 to 0.90), target 2.5x not met",
        "prefetch: 1.40x (1.30 to 1.50)",
    ]
    bars = [group.find(f"{SPACE}rect") for group in groups]
    widths = [float(bar.get("width", "0")) for bar in bars if bar is not None]
    assert widths[0] > widths[2] > 0
    assert bars[0].get("fill") != bars[1].get("fill"), "a case below its target looks otherwise"  # type: ignore[union-attr]
    one = float(bars[0].get("x", "0"))  # type: ignore[union-attr]
    assert float(bars[1].get("x", "0")) + widths[1] == pytest.approx(one, abs=0.2), "slower: the bar ends at 1x"  # type: ignore[union-attr]
    assert [len(group.findall(f"{SPACE}path")) for group in groups] == [3, 2, 1]


def test_longer_is_faster_and_everything_stays_inside() -> None:
    rows = [replace(FREE, ratio=r, ratio_low=r, ratio_high=r) for r in (1.0, 1.5, 3.0, 30.0, 300.0)]
    tree = ET.fromstring(plot_ratios(report(*rows)))
    widths = [float(group.find(f"{SPACE}rect").get("width", "0")) for group in tree.findall(f"{SPACE}g")]  # type: ignore[union-attr]
    assert widths == sorted(widths)
    numbers = [float(x) for x in re.findall(r'\bx[12]?="([\d.]+)"', ET.tostring(tree, encoding="unicode"))]
    assert max(numbers) < float(tree.get("width", "0"))
    assert min(numbers) >= 0


def test_the_same_figures_give_the_same_bytes() -> None:
    assert plot_ratios(report(FAST, SLOW)) == plot_ratios(report(FAST, SLOW))


@pytest.mark.parametrize("ratio", [float("nan"), float("inf"), 0.0])
def test_ratios_that_are_none_are_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="not finite and positive"):
        plot_ratios(report(replace(FREE, ratio=ratio)))


def test_no_case_is_refused() -> None:
    with pytest.raises(ValueError, match="no case"):
        plot_ratios(report())
