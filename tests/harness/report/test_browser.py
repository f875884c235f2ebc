"""The report in a real headless Chromium: light, dark and phone, keys and search, no error, no request."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.report.page import write_report
from tests.harness.browser import Browser, find_browser
from tests.harness.fake_run import REAL, write_fake_run

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium here: the report was not looked at in a browser"),
]
READY = "document.documentElement.dataset.ready === 'yes'"
SHOWN = "document.querySelectorAll('#rows li[role=option]').length"
SELECTED = "document.querySelector('#rows [aria-selected=true]')?.id"


@pytest.fixture
def browser() -> Iterator[Browser]:
    binary = find_browser()
    assert binary
    with Browser(binary) as b:
        yield b


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_fake_run(tmp_path_factory.mktemp("runs") / "demo", iterations=2, videos=True))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_fake_run(tmp_path_factory.mktemp("runs") / "hostile", iterations=1, hostile=True, flawed=True))


def quiet(browser: Browser) -> None:
    """Nothing in the console, nothing asked of any network."""
    assert browser.errors == []
    assert [r for r in browser.requests if not r.startswith(("file://", "data:"))] == []
    assert sum(r.startswith("file://") for r in browser.requests) == 1


def brightness(png: bytes) -> float:
    with Image.open(io.BytesIO(png)) as im:
        return float(np.asarray(im.convert("L")).mean())


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
def test_every_width_and_both_schemes(browser: Browser, report: Path, width: int, dark: bool) -> None:
    browser.show(width, 900, dark=dark, mobile=width < 500)
    browser.open(report, ready=READY)
    assert browser.run("document.documentElement.scrollWidth") == width, "the page scrolls sideways"
    png = browser.picture()
    assert brightness(png) < 70 if dark else brightness(png) > 200
    with Image.open(io.BytesIO(png)) as im:
        assert len(im.convert("RGB").getcolors(1 << 20) or []) > 50, "an empty picture"
    assert browser.run("document.querySelectorAll('svg').length") > 20
    quiet(browser)


def test_keys_search_and_filters(browser: Browser, report: Path) -> None:
    browser.show()
    browser.open(report, ready=READY)
    assert browser.run(SHOWN) > 0
    assert browser.run("document.querySelector('#tabs [aria-pressed=true]').textContent").startswith("Changed")
    browser.press("a")
    assert "of 300" in browser.run("document.getElementById('count').textContent")
    for key, row in (("j", "row-1"), ("j", "row-2"), ("k", "row-1"), ("]", "row-60"), ("[", "row-0")):
        browser.press(key)
        assert browser.run(SELECTED) == row
    browser.press("w")
    wrong = int(browser.run("document.getElementById('count').textContent.split('of ')[1]"))
    assert 0 < wrong < 300
    browser.press("/")
    assert browser.run("document.activeElement.id") == "search"
    for c in "egoschema_0003":
        browser.press(c)
    browser.run("new Promise(r => setTimeout(r, 150))")
    assert 0 < browser.run(SHOWN) <= 4
    assert "egoschema_0003" in browser.run("document.getElementById('detail').textContent")
    browser.press("Escape")
    browser.run("document.querySelector('[data-browse=\"MVBench\"]').click()")
    assert browser.run("[...document.querySelectorAll('#rows .w')].every(e => e.textContent.startsWith('MVBench'))")
    browser.press("t")
    assert browser.run("document.documentElement.dataset.theme") == "light"
    quiet(browser)


def test_sorting_puts_the_longest_answer_first(browser: Browser, hostile: Path) -> None:
    browser.show()
    browser.open(hostile, ready=READY)
    browser.press("a")
    browser.run("(() => { const s = document.getElementById('sort'); s.value = 'long'; s.dispatchEvent(new Event('change')); })()")
    assert " characters]" in browser.run("document.getElementById('detail').textContent")


def test_the_address_names_the_question(browser: Browser, report: Path) -> None:
    browser.show()
    browser.open(report, ready=READY)
    browser.press("a")
    for _ in range(3):
        browser.press("j")
    assert browser.run("location.hash") == "#q3"
    browser.run("location.hash = '#q7'")
    browser.run("new Promise(r => setTimeout(r, 50))")
    assert browser.run(SELECTED) == "row-7"
    browser.run("location.hash = '#q99999'")
    browser.run("new Promise(r => setTimeout(r, 50))")
    assert browser.run(SELECTED) == "row-7"
    quiet(browser)


def test_frames_of_the_video_are_shown(browser: Browser, report: Path) -> None:
    browser.show()
    browser.open(report, ready=READY)
    browser.run("document.querySelector('#detail img').decode()")
    assert browser.run("document.querySelector('#detail img').naturalWidth") == 262
    quiet(browser)


def test_hostile_answers_do_nothing(browser: Browser, hostile: Path) -> None:
    browser.show()
    browser.open(hostile, ready=READY)
    browser.press("a")
    for _ in range(25):
        browser.press("j")
    assert browser.run("window.pwned") is None
    assert browser.run("document.querySelectorAll('#app script, #app iframe, #detail img[src=x]').length") == 0
    assert browser.run("document.documentElement.scrollWidth") == 1280
    quiet(browser)


def test_a_phone_opens_a_question_and_goes_back(browser: Browser, report: Path) -> None:
    browser.show(390, 844, mobile=True)
    browser.open(report, ready=READY)
    hidden = "getComputedStyle(document.getElementById('detail')).display === 'none'"
    assert browser.run(hidden)
    browser.run("document.querySelector('#rows li').click()")
    assert not browser.run(hidden)
    browser.run("document.querySelector('.back').click()")
    assert browser.run(hidden)
    quiet(browser)


def test_prints(browser: Browser, report: Path) -> None:
    browser.show(dark=True)
    browser.open(report, ready=READY)
    assert browser.pdf().startswith(b"%PDF")


@pytest.mark.slow
def test_forty_thousand_questions_open(browser: Browser, tmp_path: Path) -> None:
    path = write_report(write_fake_run(tmp_path / "full", scale="8b", iterations=1, sizes=REAL, gates=False))
    browser.show()
    browser.open(path, ready=READY)
    assert browser.run("document.getElementById('count').textContent").startswith("1–60 of")
    quiet(browser)
