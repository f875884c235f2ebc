"""The viewer in a real headless Chromium: index, report, video, comparison, and a run that goes on. Nothing but this machine is asked."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.view.server import Viewer
from tests.harness.browser import READY, Browser, find_browser
from tests.harness.fake_run import write_fake_run
from tests.harness.view.test_server import served

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium here: the viewer was not looked at in a browser"),
]


@pytest.fixture
def browser() -> Iterator[Browser]:
    binary = find_browser()
    assert binary
    with Browser(binary) as b:
        b.show(1366, 900)
        yield b


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("view") / "runs"
    write_fake_run(runs / "one", iterations=2, sizes={"egoschema": 24, "nextqa": 16}, videos=True)
    write_fake_run(runs / "two", iterations=1, sizes={"egoschema": 24, "nextqa": 16}, seed=1, gates=False)
    return runs


@pytest.fixture
def server(made: Path) -> Iterator[Viewer]:
    with served(made) as s:
        yield s


def quiet(browser: Browser, server: Viewer) -> None:
    """Nothing in the console; every request went to the viewer, with its token."""
    assert browser.errors == []
    assert [r for r in browser.requests if not r.startswith((server.address, "data:"))] == []


@pytest.mark.parametrize("width", [1366, 390])
def test_index_then_report_then_video(browser: Browser, server: Viewer, width: int) -> None:
    browser.show(width, 844, mobile=width < 500)
    browser.open(server.address, ready=READY)
    assert browser.run("document.documentElement.scrollWidth") == width, "the page scrolls sideways"
    browser.run("[...document.querySelectorAll('#runs a')].find(a => a.textContent === 'one').click()")
    browser.wait(f"location.pathname.endsWith('/run/one') && {READY}")
    assert browser.run("document.documentElement.scrollWidth") == width
    browser.wait("document.querySelector('#q-detail video')?.readyState >= 1")
    browser.run("document.querySelector('#q-detail video').currentTime = 1.5")
    browser.wait("document.querySelector('#q-detail video').currentTime === 1.5 && !document.querySelector('#q-detail video').seeking")
    quiet(browser, server)


def test_two_stages_of_two_runs(browser: Browser, server: Viewer) -> None:
    browser.open(server.address, ready=READY)
    choose = "(n, v) => { const s = document.querySelector(`select[name=${n}]`); s.value = v; }"
    browser.run(f"({choose})('a', 'two/base'); ({choose})('b', 'one/iter-2')")
    browser.run("document.querySelector('#compare button').click()")
    browser.wait(f"location.pathname.endsWith('/compare') && {READY}")
    assert browser.run("document.getElementById('q-from').selectedOptions[0].textContent") == "Base of two"
    assert browser.run("document.getElementById('q-to').selectedOptions[0].textContent") == "Iteration 2 of one"
    assert browser.run("document.querySelectorAll('#q-detail .answer').length") == 2
    assert browser.run("document.documentElement.scrollWidth") == 1366
    quiet(browser, server)


def test_a_run_that_goes_on_says_so_and_keeps_the_place(browser: Browser, made: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made / "one", tmp_path / "runs" / "live"))
    later = shutil.move(run / "iter-2", tmp_path / "iter-2")
    with served(run.parent) as server:
        browser.open(f"{server.address}run/live", ready=READY, at="#nextqa/nextqa_0001/2?show=all")
        detail = "document.getElementById('q-detail').textContent"
        assert "nextqa_0001 · question 2 on it" in browser.run(detail)
        assert browser.run("document.getElementById('news').hidden")
        shutil.move(later, run / "iter-2")
        browser.wait("!document.getElementById('news').hidden")
        browser.run("document.getElementById('news').click()")
        browser.wait(f"{READY} && document.getElementById('q-to').value === 'iter-2'")
        assert "nextqa_0001 · question 2 on it" in browser.run(detail)
        quiet(browser, server)
