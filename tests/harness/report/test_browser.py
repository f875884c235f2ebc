"""The report in a real headless Chromium: light, dark and phone, keys and search, no error, no request."""

from __future__ import annotations

import io
import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.records import read_evaluations
from harness.report.page import write_report
from tests.harness.browser import READY, Browser, find_browser
from tests.harness.fake_run import REAL, write_fake_run

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium here: the report was not looked at in a browser"),
]
SHOWN = "document.querySelectorAll('#q-rows li[role=option]').length"
SELECTED = "document.querySelector('#q-rows [aria-selected=true]')?.id"


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


def quiet(browser: Browser, page: Path) -> None:
    """Nothing in the console, nothing asked of any network, no file opened but the page and the run's own videos."""
    assert browser.errors == []
    assert [r for r in browser.requests if not r.startswith(("file://", "data:"))] == []
    files = {r.partition("#")[0] for r in browser.requests if r.startswith("file://")}
    folder = page.resolve().parent.as_uri()
    assert {f for f in files if not (f.startswith(folder) and f.endswith(".mp4"))} == {page.resolve().as_uri()}


def brightness(png: bytes) -> float:
    with Image.open(io.BytesIO(png)) as im:
        return float(np.asarray(im.convert("L")).mean())


@pytest.mark.parametrize(("width", "dark"), [(1366, False), (1366, True), (390, False), (390, True)])
def test_every_width_and_both_schemes(browser: Browser, report: Path, width: int, dark: bool) -> None:
    browser.show(width, 900, dark=dark, mobile=width < 500)
    browser.open(report, ready=READY)
    assert browser.run("document.documentElement.scrollWidth") == width, "the page scrolls sideways"
    png = browser.picture()
    assert brightness(png) < 70 if dark else brightness(png) > 200
    with Image.open(io.BytesIO(png)) as im:
        assert len(im.convert("RGB").getcolors(1 << 20) or []) > 50, "an empty picture"
    assert browser.run("document.querySelectorAll('svg').length") > 20
    quiet(browser, report)


def test_keys_search_and_filters(browser: Browser, report: Path) -> None:
    browser.show()
    browser.open(report, ready=READY)
    assert browser.run(SHOWN) > 0
    assert browser.run("document.querySelector('#q-tabs [aria-pressed=true]').textContent").startswith("Changed")
    browser.press("a")
    assert "of 300" in browser.run("document.getElementById('q-count').textContent")
    for key, row in (("j", "q-row-1"), ("j", "q-row-2"), ("k", "q-row-1"), ("]", "q-row-60"), ("[", "q-row-0")):
        browser.press(key)
        assert browser.run(SELECTED) == row
    browser.press("w")
    wrong = int(browser.run("document.getElementById('q-count').textContent.split('of ')[1]"))
    assert 0 < wrong < 300
    browser.press("/")
    assert browser.run("document.activeElement.id") == "q-search"
    for c in "egoschema_0003":
        browser.press(c)
    browser.run("new Promise(r => setTimeout(r, 150))")
    assert 0 < browser.run(SHOWN) <= 4
    assert "egoschema_0003" in browser.run("document.getElementById('q-detail').textContent")
    browser.press("Escape")
    browser.run("document.querySelector('[data-browse=mvbench]').click()")
    assert browser.run("[...document.querySelectorAll('#q-rows .w')].every(e => e.textContent.startsWith('MVBench'))")
    browser.press("t")
    assert browser.run("document.documentElement.dataset.theme") == "light"
    quiet(browser, report)


def test_sorting_puts_the_longest_answer_first(browser: Browser, hostile: Path) -> None:
    browser.show()
    browser.open(hostile, ready=READY)
    browser.press("a")
    browser.run("(() => { const s = document.getElementById('q-sort'); s.value = 'long'; s.dispatchEvent(new Event('change')); })()")
    assert " characters]" in browser.run("document.getElementById('q-detail').textContent")


def test_the_address_names_question_stages_and_filters(browser: Browser, report: Path) -> None:
    browser.show()
    browser.open(report, ready=READY)
    assert browser.run("location.hash") == "", "the address is the reader's until he chooses"
    browser.press("w")
    for _ in range(3):
        browser.press("j")
    browser.run(choose("q-from", "iter-1"))
    browser.run(choose("q-in", "nextqa"))
    browser.press("j")
    link = browser.run("location.hash")
    question, _, query = link.removeprefix("#").partition("?")
    assert re.fullmatch(r"nextqa/nextqa_\d+/\d", question)
    assert dict(x.split("=") for x in query.split("&")) == {"from": "iter-1", "in": "nextqa", "show": "wrong"}
    seen = browser.run("document.getElementById('q-detail').textContent")
    assert "Iteration 1" in seen
    assert "Iteration 2" in seen

    with Browser(browser.binary) as other:
        other.show()
        other.open(report, ready=READY, at=link)
        assert other.run("document.getElementById('q-detail').textContent") == seen
        assert other.run("document.getElementById('q-from').value") == "iter-1"
        assert other.run("document.getElementById('q-in').value") == "nextqa"
        assert other.run("document.querySelector('#q-tabs [aria-pressed=true]').textContent").startswith("Wrong")
        quiet(other, report)
    quiet(browser, report)


def test_a_short_link_shows_its_question_whatever_the_filters(browser: Browser, report: Path) -> None:
    browser.show()
    browser.open(report, ready=READY)
    for row in range(3):
        asked = f"#egoschema/egoschema_000{row}/2"
        browser.run(f"location.hash = '{asked}'")
        browser.wait(f"document.getElementById('q-detail').textContent.includes('egoschema_000{row} · question 2 on it')")
        assert browser.run(SELECTED) is not None
    before = browser.run("document.getElementById('q-detail').textContent")
    for wrong in ("#egoschema/nowhere/1", "#egoschema/%/1", "#egoschema/egoschema_0000/99", "#scores", "#pairs/iter-9/x"):
        browser.run(f"location.hash = '{wrong}'")
        browser.run("new Promise(r => setTimeout(r, 60))")
    assert browser.run("document.getElementById('q-detail').textContent") == before
    quiet(browser, report)


def choose(select: str, value: str) -> str:
    return f"(() => {{ const s = document.getElementById('{select}'); s.value = '{value}'; s.dispatchEvent(new Event('change')); }})()"


def test_any_two_stages_side_by_side(browser: Browser, report: Path) -> None:
    browser.show()
    browser.open(report, ready=READY)
    run = report.parent
    base, one, two = ({r.question_id: r for r in read_evaluations(run / s)["egoschema"].records} for s in ("base", "iter-1", "iter-2"))
    browser.run(choose("q-in", "egoschema"))
    for (first, a), (second, b) in itertools.permutations([("base", base), ("iter-1", one), ("iter-2", two)], 2):
        browser.run(choose("q-from", first))
        browser.run(choose("q-to", second))
        counts = "[...document.querySelectorAll('#q-tabs button')].map(b => [b.firstChild.data, Number(b.lastChild.textContent)])"
        shown = dict(browser.run(counts))
        assert {k: shown[k] for k in ("Got better", "Got worse")} == {
            "Got better": sum(b[q].strict > a[q].strict for q in a),
            "Got worse": sum(b[q].strict < a[q].strict for q in a),
        }
    browser.press("x")
    assert browser.run("[document.getElementById('q-from').value, document.getElementById('q-to').value]") == ["iter-1", "iter-2"]
    browser.run(choose("q-from", "iter-2"))
    assert browser.run("document.querySelectorAll('#q-detail .answer').length") == 1
    quiet(browser, report)


def test_a_benchmark_in_the_gate_leads_to_its_changed_questions(browser: Browser, report: Path) -> None:
    browser.show()
    browser.open(report, ready=READY)
    links = browser.run("[...document.querySelectorAll('#gate a[href*=nextqa]')].map(a => a.getAttribute('href'))")
    assert {re.sub("&in=.*", "", x) for x in links} == {
        "#questions?from=base&to=iter-2",
        "#questions?from=iter-1&to=iter-2",
        "#questions?from=base&to=iter-1",
    }
    browser.run("document.querySelector('#gate a[href*=\"from=iter-1\"][href*=nextqa]').click()")
    browser.wait("document.getElementById('q-from').value === 'iter-1' && document.getElementById('q-in').value === 'nextqa'")
    assert browser.run("document.querySelector('#q-tabs [aria-pressed=true]').textContent").startswith("Changed")
    quiet(browser, report)


def test_pairs_are_browsed_filtered_and_linked(browser: Browser, report: Path) -> None:
    browser.show()
    browser.open(report, ready=READY)
    count = "document.getElementById('p-count').textContent"
    assert browser.run(count) == "1–60 of 920"
    browser.run("document.getElementById('p-next').click()")
    assert browser.run(count) == "61–120 of 920"
    browser.run(choose("p-stage", "iter-2"))
    browser.run(choose("p-reason", "unreadable critique"))
    assert browser.run(count) == "1–41 of 41"
    assert browser.run("location.hash").startswith("#pairs/iter-2/")
    browser.run("location.hash = '#pairs/iter-1/p7'")
    browser.wait("document.querySelector('#p-detail .answers')?.textContent.includes('Chosen')")
    assert "red goes from x2 y3" in browser.run("document.getElementById('p-detail').textContent")
    browser.press("j")
    assert browser.run("location.hash") == "#pairs/iter-1/p8", "keys belong to the list used last"
    quiet(browser, report)


def test_the_video_plays_where_its_file_is_at_hand(browser: Browser, report: Path, tmp_path: Path) -> None:
    browser.show()
    browser.open(report, ready=READY)
    browser.wait("document.querySelector('#q-detail video')?.readyState >= 1")
    assert browser.run("document.querySelector('#q-detail video').videoWidth") == 64
    browser.press("v")
    browser.wait("document.querySelector('#q-detail video').currentTime > 0")
    quiet(browser, report)
    alone = Path(shutil.copy(report, tmp_path / "alone.html"))
    browser.open(alone, ready=READY)
    browser.wait("document.querySelector('#q-detail video') === null")
    assert "cannot be played" in browser.run("document.querySelector('#q-detail .media').textContent")
    browser.wait("document.querySelector('#q-detail img').naturalWidth === 262")


def test_frames_of_the_video_are_shown(browser: Browser, report: Path) -> None:
    browser.show()
    browser.open(report, ready=READY)
    browser.run("document.querySelector('#q-detail img').decode()")
    assert browser.run("document.querySelector('#q-detail img').naturalWidth") == 262
    quiet(browser, report)


def test_hostile_answers_do_nothing(browser: Browser, hostile: Path) -> None:
    browser.show()
    browser.open(hostile, ready=READY)
    browser.press("a")
    for _ in range(25):
        browser.press("j")
    assert browser.run("window.pwned") is None
    assert browser.run("document.querySelectorAll('#q-app script, #q-app iframe, #q-detail img[src=x]').length") == 0
    assert browser.run("document.documentElement.scrollWidth") == 1280
    quiet(browser, hostile)


def test_a_phone_opens_a_question_and_goes_back(browser: Browser, report: Path) -> None:
    browser.show(390, 844, mobile=True)
    browser.open(report, ready=READY)
    hidden = "getComputedStyle(document.getElementById('q-detail')).display === 'none'"
    assert browser.run(hidden)
    browser.run("document.querySelector('#q-rows li').click()")
    assert not browser.run(hidden)
    browser.run("document.querySelector('.back').click()")
    assert browser.run(hidden)
    quiet(browser, report)


def test_prints(browser: Browser, report: Path) -> None:
    browser.show(dark=True)
    browser.open(report, ready=READY)
    assert browser.pdf().startswith(b"%PDF")


@pytest.mark.slow
def test_forty_thousand_questions_open(browser: Browser, tmp_path: Path) -> None:
    path = write_report(write_fake_run(tmp_path / "full", scale="8b", iterations=1, sizes=REAL, gates=False))
    browser.show()
    browser.open(path, ready=READY)
    assert browser.run("document.getElementById('q-count').textContent").startswith("1–60 of")
    quiet(browser, path)
