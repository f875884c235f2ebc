"""`harness diff`: the questions that changed, with links that lead to them, and a page of any two evaluations."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.__main__ import app
from harness.gate.evidence.changes import changes
from harness.gate.files import save_reference
from harness.records import read_evaluations, read_records
from harness.report.page import write_report
from harness.report.sides import report_addresses, stage_place
from tests.harness.browser import READY, Browser, find_browser
from tests.harness.fake_run import make_records, write_fake_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_fake_run(tmp_path_factory.mktemp("runs") / "one", iterations=2, sizes={"egoschema": 40, "tempcompass": 24}, videos=True)
    write_report(run)
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "one"))


def diff(*args: object) -> str:
    found = CliRunner().invoke(app, ["diff", *map(str, args)])
    assert found.exit_code == 0, found.output
    return found.stdout


def test_changes_link_into_the_runs_report(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    found = json.loads(diff("one/iter-2", "one/base", "--json"))
    links = [c["link"] for changed in found.values() for c in changed]
    assert len(links) > 10
    assert all(re.fullmatch(r"one/report\.html#(egoschema|tempcompass)/\w+/\d\?from=base&to=iter-2", x) for x in links)
    assert len(set(links)) == len(links)
    text = diff("one", "one/base/eval", "--show", "2", "--benchmarks", "egoschema")
    assert text.count("    one/report.html#egoschema/") == 2
    assert "from=base&to=iter-1" in diff("one/iter-1", "one/base")


def test_without_a_common_report_there_are_no_links(run: Path, tmp_path: Path) -> None:
    assert report_addresses(run / "iter-1", run / "base")
    other = write_fake_run(tmp_path / "two", iterations=1, sizes={"egoschema": 40}, seed=3, gates=False)
    assert report_addresses(run / "iter-1", other / "base") == {}
    (run / "report.html").unlink()
    assert report_addresses(run / "iter-1", run / "base") == {}
    assert "html#" not in diff(run / "iter-1", run / "base")


@pytest.mark.parametrize(
    ("path", "stage"),
    [
        ("", "iter-2"),
        ("iter-1", "iter-1"),
        ("iter-1/eval", "iter-1"),
        ("base", "base"),
        ("base/eval", "base"),
        ("hf_home", None),
        ("x", None),
    ],
)
def test_which_stage_a_path_names(made: Path, path: str, stage: str | None) -> None:
    assert stage_place(made / path) == (None if stage is None else (made.resolve(), stage))


def test_a_page_of_two_runs_and_of_a_reference_file(run: Path, tmp_path: Path) -> None:
    other = write_fake_run(tmp_path / "two", iterations=1, sizes={"egoschema": 40}, seed=3, gates=False)
    text = diff(run / "iter-2", other / "iter-1", "--html", tmp_path / "d.html", "--show", "1")
    page = (tmp_path / "d.html").read_text()
    assert "Reference two/iter-1" in page
    assert "Candidate one/iter-2" in page
    assert f"page: {tmp_path / 'd.html'}" in text
    assert f"{tmp_path / 'd.html'}#egoschema/" in text
    save_reference(tmp_path / "base.json.gz", read_evaluations(other / "base"), name="two")
    diff(run / "iter-2", tmp_path / "base.json.gz", "--html", tmp_path / "e.html")
    assert "Reference base.json.gz" in (tmp_path / "e.html").read_text()
    bad = CliRunner().invoke(app, ["diff", str(run), str(other), "--html", str(tmp_path / "f.html"), "--data", str(tmp_path / "nowhere")])
    assert bad.exit_code == 2
    assert not (tmp_path / "f.html").exists()


def test_questions_of_one_side_are_counted(run: Path, tmp_path: Path) -> None:
    from harness.records import write_evaluation

    found = read_evaluations(run / "base")["egoschema"]
    write_evaluation(tmp_path / "part", replace(found, records=found.records[:30]))
    assert "10 questions asked on one side only" in diff(run / "base", tmp_path / "part")


def test_a_question_asked_twice_is_compared_with_its_own_like() -> None:
    """Both records of one id used to be compared with the last of the other side."""
    a, b = make_records("egoschema", 2, gain=0, seed=0)
    twice = [replace(a, doc_id=0, answer="A", strict=1.0), replace(a, doc_id=1, answer="B", strict=0.0), replace(b, doc_id=2)]
    assert changes(twice, twice) == []
    assert changes(twice[::-1], twice) == []


def test_gate_json_and_junit_name_what_diff_links(run: Path, tmp_path: Path) -> None:
    gate = CliRunner().invoke(
        app, ["gate", str(run / "iter-2"), "--against", str(run / "base"), "--json", "--junit", str(tmp_path / "g.xml")]
    )
    named, linked = json.loads(gate.stdout)["changed"], json.loads(diff(run / "iter-2", run / "base", "--json"))
    junit = (tmp_path / "g.xml").read_text()
    for benchmark, found in linked.items():
        for kind in ("gained", "lost"):
            assert named[benchmark][kind] == [c["question"] for c in found if c["kind"] == kind]
            assert all(f"{kind} {x}" in junit for x in named[benchmark][kind])


@pytest.mark.browser
@pytest.mark.skipif(find_browser() is None, reason="no Chromium here: the links were not followed in a browser")
def test_a_link_of_diff_opens_its_question(run: Path, tmp_path: Path) -> None:
    binary = find_browser()
    assert binary
    write_report(run)
    found = {c["link"]: c for changed in json.loads(diff(run / "iter-1", run / "base", "--json")).values() for c in changed}
    page = json.loads(diff(run / "iter-1", run / "base", "--json", "--html", tmp_path / "d.html"))
    found |= {c["link"]: c for changed in page.values() for c in changed}
    for link, change in [*found.items()][:: max(1, len(found) // 6)]:
        path, _, at = link.partition("#")
        with Browser(binary) as browser:
            browser.show(1366, 900)
            browser.open(Path(path), ready=READY, at=f"#{at}")
            shown = browser.run("[...document.querySelectorAll('#q-detail .answer .text')].map(e => e.textContent)")
            assert shown == [change["before"]["answer"], change["after"]["answer"]]
            assert browser.run("document.querySelector('#q-detail .prompt').textContent") == change["before"]["prompt"]
            assert browser.errors == []


def test_records_are_read_as_before(run: Path) -> None:
    assert read_evaluations(run)["egoschema"].records == read_records(run / "iter-2" / "eval" / "egoschema" / "questions.jsonl")
