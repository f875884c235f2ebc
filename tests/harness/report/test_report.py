"""The report as a file: complete, honest about what is missing, and never more than text."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from harness.gate.files import paper_reference
from harness.records import read_evaluations, read_records, write_records
from harness.report.browse.media import link_from
from harness.report.browse.questions import questions_payload
from harness.report.cli import register
from harness.report.data import ReportError
from harness.report.page import render, write_report
from harness.report.read import read_published, read_run
from reproduce.published import published_pair
from tests.harness.fake_run import REAL, write_fake_run

SECTIONS = (
    *("summary", "questions", "scores", "gain", "gate", "subtasks", "changes", "pairs", "training"),
    *("study", "failures", "cost", "provenance"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_run(tmp_path_factory.mktemp("runs") / "demo", iterations=2)


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "demo"))


def unpacked(page: str) -> dict[str, Any]:
    """The question browser's data as the page's script would unpack it."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    box = json.loads(found[1])
    data: dict[str, Any] = box["data"] if box["encoding"] == "json" else json.loads(zlib.decompress(base64.b64decode(box["data"])))
    return data


def without_data(page: str) -> str:
    return re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.S)


def test_all_sections_and_the_mean_computed_apart(run: Path) -> None:
    page = write_report(run).read_text()
    assert tuple(re.findall(r'<(?:section|header class="head") id="(\w+)"', page)) == SECTIONS
    assert "<details open><summary>Settings" not in page
    assert "Not there" not in page
    base, last = (read_evaluations(run / s) for s in ("base", "iter-2"))
    means = [sum(e.score.strict_pct for e in x.values()) / 6 for x in (base, last)]
    assert f"{means[0]:.1f}&nbsp;% to {means[1]:.1f}&nbsp;%" in page
    assert f"a change of +{means[1] - means[0]:.1f} points" in page


def test_rows_hold_every_stages_answer_and_why(run: Path) -> None:
    data = unpacked(write_report(run).read_text())
    base, last = (read_evaluations(run / s)["egoschema"].records for s in ("base", "iter-2"))
    strings, col, answers = data["strings"], data["columns"], data["answers"]
    assert [s[0] for s in data["stages"]] == ["base", "iter-1", "iter-2"]
    rows = [i for i in range(data["n"]) if data["benches"][col["bench"][i]] == ["egoschema", "EgoSchema"]]
    middle = read_evaluations(run / "iter-1")["egoschema"].records
    assert len(rows) == len(base)
    for i, *found in zip(rows, base, middle, last, strict=True):
        assert strings[col["prompt"][i]] == found[0].prompt
        for stage, r in zip(answers, found, strict=True):
            assert strings[stage["text"][i]] == r.answer
            assert stage["credit"][i] == round(100 * r.strict)
            assert r.target in strings[stage["why"][i]]


@pytest.mark.parametrize(
    "gone",
    [
        "run.json",
        "timings.json",
        "failures.jsonl",
        "iter-2/gate.json",
        "iter-1/pairs.jsonl",
        "iter-2/train",
        "iter-2/eval",
        "base",
        "base/eval/mvbench",
    ],
)
def test_a_missing_part_is_said_not_fatal(run: Path, gone: str) -> None:
    path = run / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "</html>" in write_report(run).read_text()


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"scale": "micro"}')
    page = write_report(tmp_path).read_text()
    for words in (
        "no finished evaluation",
        "gate.json in no iteration",
        "pairs.jsonl in no iteration",
        "train/log.jsonl",
        "failures.jsonl",
    ):
        assert f"Not there: {words}" in page


def test_base_alone(run: Path) -> None:
    for d in run.glob("iter-*"):
        shutil.rmtree(d)
    page = write_report(run).read_text()
    assert "Nothing was measured after it" in page
    assert len(unpacked(page)["stages"]) == len(unpacked(page)["answers"]) == 1


def test_no_run_is_an_error_with_the_place(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="no run here"):
        write_report(tmp_path)
    with pytest.raises(ReportError, match="no such folder"):
        write_report(tmp_path / "nowhere")


def test_damaged_files_are_left_out_and_said(run: Path) -> None:
    questions = run / "iter-2" / "eval" / "nextqa" / "questions.jsonl"
    questions.write_text(questions.read_text()[:-40])
    (run / "iter-1" / "gate.json").write_text('{"base": ')
    (run / "iter-1" / "train" / "log.jsonl").write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": 0.5}\n[1]\nnot json\n')
    (run / "timings.json").write_text("7")
    (run / "iter-2" / "pairs.jsonl").write_bytes(b'\xff\xfe\n{"kind": 3, "question": null}\n')
    page = html.unescape(write_report(run).read_text())
    for words in (
        "nextqa left out",
        "gate.json in iter-1/ cannot be read",
        "log.jsonl: 2 unreadable lines",
        "timings.json: not a mapping of stages",
        "pairs.jsonl: 1 unreadable",
    ):
        assert words in page, words
    assert "The mean leaves out NExT-QA" in page


def test_a_verdict_changed_by_hand_is_not_shown(run: Path) -> None:
    path = run / "iter-2" / "gate.json"
    found = json.loads(path.read_text())
    found["base"]["verdict"] = "fail" if found["base"]["verdict"] == "pass" else "pass"
    path.write_text(json.dumps(found))
    page = html.unescape(write_report(run).read_text())
    assert "gate.json in iter-2/, against base, is left out" in page
    assert "Iteration 2 against the base model" not in page
    assert "Iteration 2 against the iteration before" in page


def test_fewer_questions_are_left_out_and_said(run: Path) -> None:
    path = run / "iter-2" / "eval" / "egoschema" / "questions.jsonl"
    write_records(path, read_records(path)[:-3])
    page = html.unescape(write_report(run).read_text())
    assert "egoschema has 37 records, its score says n = 40" in page
    assert "3 questions were asked in only one of the two stages" in page


def test_an_edited_answer_is_said(run: Path) -> None:
    path = run / "iter-2" / "eval" / "egoschema" / "questions.jsonl"
    records = read_records(path)
    write_records(path, [replace(records[0], answer=records[0].answer + "."), *records[1:]])
    assert "iter-2: egoschema/questions.jsonl was edited after it was scored" in html.unescape(write_report(run).read_text())


def test_paper_numbers_only_at_paper_scales(run: Path, tmp_path: Path) -> None:
    small = write_report(run).read_text()
    assert 'class="diamond"' not in without_data(small)
    assert "Not a reproduction of the paper" in small
    big = write_report(write_fake_run(tmp_path / "big", scale="8b", iterations=1)).read_text()
    assert 'class="diamond"' in big
    assert "Paper’s gain" in big
    assert "Not a reproduction" not in big
    published = read_published("8b")
    assert published and published.aligned["mvbench"] == 74.0
    assert read_published("micro") is None


@pytest.mark.parametrize("scale", ["8b", "4b", "2b", "1b"])
def test_report_gate_and_tables_read_the_same_published_rows(scale: str) -> None:
    published = read_published(scale)
    assert published is not None
    assert published_pair(scale) == (published.base, published.aligned or None)
    assert paper_reference(scale, base=True).published == published.base
    if published.aligned:
        reference = paper_reference(scale)
        assert (reference.published, reference.published_base) == (published.aligned, published.base)


def test_absent_paper_tables_are_said(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "r", scale="8b", iterations=1, gates=False)
    page = html.unescape(write_report(run, published_folder=tmp_path / "none").read_text())
    assert "nothing is compared with the paper" in page


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "<img src=x onerror=alert(1)>", iterations=1, hostile=True)
    path = write_report(run)
    page = path.read_text()
    assert path.stat().st_size < 2_000_000
    own = re.sub(r'<img src="data:image/svg\+xml;base64,[\w+/=]+" alt="[^"]+">', "", without_data(page))  # without the study's figures
    tags = re.findall(r"<(script|img|iframe|object|embed|link|base|form)\b[^>]*>", own)
    assert tags == ["link", "script"]
    assert "&lt;img src=x onerror=alert(1)&gt;" in without_data(page)
    for bad in "\x00\x1b\u202e\u2066\u2028":
        assert bad not in page
    answers = " ".join(unpacked(page)["strings"])
    assert "⟨NUL⟩" in answers
    assert "⟨RLO⟩" in answers
    assert " characters]" in answers


def test_the_study_of_the_same_scale_is_shown_beside_the_run(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    effect = {"n": 10, "points": 1.0, "low": 0.5, "high": 1.5}
    for scale, shown in (("another", False), (read_run(run).scale, True)):
        claims = [{"id": "gain", "effect": effect, "verdict": "holds"}]
        (folder / "summary.json").write_text(json.dumps({"scale": scale, "gains": {"dpo": [effect]}, "claims": claims}))
        (folder / "curves.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
        page = render(read_run(run, study_folder=folder), link=link_from(tmp_path / "page.html"))
        assert ("the study over 10 base models: +1.0 points [+0.5, +1.5] after 1 iteration: a gain" in page) == shown
        assert ('<section id="study">' in page) == (page.count("data:image/svg+xml;base64,") == 1) == shown


def test_policy_allows_only_what_is_in_the_file(run: Path) -> None:
    page = write_report(run).read_text()
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1])  # type: ignore[index]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        text = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.S)[1]  # type: ignore[index]
        assert f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    outside = without_data(page)
    assert not re.search(r"https?://|@import|url\(|\sstyle=|\son\w+=", outside)


def test_question_data_shrinks_to_its_budget(run: Path) -> None:
    data = read_run(run)
    whole, cut = questions_payload(data, {})
    assert cut is None
    small, cut = questions_payload(data, {}, max_chars=len(whole) // 2)
    assert cut is not None
    assert len(small) < len(whole)
    assert questions_payload(data, {}, max_chars=10)[1] == (0, 0)


def test_same_run_same_page(run: Path, tmp_path: Path) -> None:
    assert write_report(run).read_bytes() == write_report(run, tmp_path / "x" / "again.html").read_bytes()


def test_command(run: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    register(app)
    app.command("other")(lambda: None)
    ok = CliRunner().invoke(app, ["report", str(run), "--out", str(tmp_path / "r.html"), "--json"])
    assert ok.exit_code == 0
    assert json.loads(ok.stdout) == {"report": str(tmp_path / "r.html"), "bytes": (tmp_path / "r.html").stat().st_size}
    bad = CliRunner().invoke(app, ["report", str(tmp_path / "nowhere")])
    assert bad.exit_code == 2
    assert "no such folder" in bad.output
    assert CliRunner().invoke(app, ["report", str(run), "--data", str(tmp_path / "nowhere")]).exit_code == 2
    assert CliRunner().invoke(app, ["report", str(run), "--out", "/proc/none/r.html"]).exit_code == 5


@pytest.mark.slow
def test_forty_thousand_questions_fit_in_one_file(tmp_path: Path) -> None:
    """How long it takes is for `python -m reproduce speed --case report`."""
    path = write_report(write_fake_run(tmp_path / "full", scale="8b", iterations=2, sizes=REAL, gates=False))
    assert unpacked(path.read_text())["n"] == sum(REAL.values())
    assert path.stat().st_size < 15_000_000
