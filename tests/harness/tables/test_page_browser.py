"""The leaderboard's page in a real headless Chromium: sorts by a click, reads on a laptop and on a phone, asks no network."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.tables.html import page
from harness.tables.table import Row, Table, pct_cell
from tests.harness.browser import Browser, find_browser

pytestmark = [pytest.mark.browser, pytest.mark.skipif(find_browser() is None, reason="no Chromium here")]
NAMES = "[...document.querySelectorAll('tbody tr:not(.group) th')].map((x) => x.textContent).join(' ')"


def made(tmp_path: Path) -> Path:
    """Two groups and eight columns, as wide as the six benchmarks' are."""
    values = {"b": 50.0, "a": 70.0, "c": None, "y": 10.0, "x": 20.0}
    rows = []
    for name, value in values.items():
        interval = None if value is None else (value - 5, value + 5)
        cells = tuple(pct_cell(None if value is None else (100 - value if k == 1 else value), interval) for k in range(8))
        rows.append(Row(name, cells, "measured" if name in "abc" else "published"))
    columns = ("Rank", "TempCompass", "Perception Test", "NExT-QA", "MVBench", "EgoSchema", "LongVideoBench", "Mean")
    path = tmp_path / "page.html"
    path.write_text(page([Table("Leaderboard", "micro", columns, tuple(rows), ("A note.",))], "Leaderboard"), encoding="utf-8")
    return path


def test_sorting_and_widths(tmp_path: Path) -> None:
    binary = find_browser()
    assert binary
    with Browser(binary) as browser:
        browser.show(1366, 768)
        browser.open(made(tmp_path))
        assert browser.run(NAMES) == "b a c y x"
        click = "document.querySelectorAll('thead button')[{}].click()"
        browser.run(click.format(3))
        assert browser.run(NAMES) == "a b c x y", "highest first, no value last, groups stay together"
        browser.run(click.format(3))
        assert browser.run(NAMES) == "b a c y x", "lowest first, no value still last"
        browser.run(click.format(2))
        assert browser.run(NAMES) == "b a c y x", "this column holds the opposite"
        browser.run(click.format(1))
        assert browser.run(NAMES) == "b a c y x", "of ranks the lowest come first"
        browser.run(click.format(0))
        assert browser.run(NAMES) == "a b c x y"
        assert browser.run("document.querySelector('th[aria-sort]').textContent") == "model"
        assert browser.run("document.querySelector('.scroll').scrollWidth <= document.querySelector('.scroll').clientWidth"), "fits 1366"
        browser.show(390, 844, mobile=True)
        assert browser.run("document.documentElement.scrollWidth") == 390, "only the table scrolls sideways"
        assert browser.run(
            "(() => { const s = document.querySelector('.scroll'); s.scrollLeft = 400; "
            "return document.querySelector('tbody tr:not(.group) th').getBoundingClientRect().left; })()"
        ) == pytest.approx(browser.run("document.querySelector('.scroll').getBoundingClientRect().left")), "names stay in view"
        assert browser.errors == []
        assert [r for r in browser.requests if not r.startswith(("file://", "data:"))] == []
