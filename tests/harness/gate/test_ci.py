"""CI outputs, the command line and its exit codes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import typer
from typer.testing import CliRunner, Result

from harness.gate import cli as gate_cli
from harness.gate.decision import GateResult
from harness.gate.early import cli as check_cli
from harness.gate.files import load_against, load_run, run_name, save_reference, write_gates
from harness.gate.gate import gate_runs
from harness.gate.output import ci
from harness.gate.settings import GateSettings
from harness.gate.simulation import cli as simulation_cli
from harness.records import Evaluation, RecordError, write_evaluation
from tests.harness.made import evaluation, flipped, read_gates, records
from tests.harness.tables.folders import write_stock
from tests.harness.tamper import EDITS, NAMED, rescore, rewrite, unseal

HOSTILE = "<script>alert(1)</script> | `x` \x1b[31mred\x1b[0m \x00 \u202eevil\n::error::forged ]]> & %0A"

ROOT = Path(__file__).resolve().parents[3]
app = typer.Typer()
for module in (gate_cli, check_cli, simulation_cli):
    module.register(app)


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)


def save(folder: Path, *evaluations: Evaluation) -> Path:
    for e in evaluations:
        write_evaluation(folder, e)
    return folder


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Runs: `base`, `same` (the same model), `worse`, `close` (no verdict possible) and `better`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    a = records(n=1500, videos=300)
    made = {
        "base": evaluation(a),
        "same": evaluation(a),
        "worse": evaluation(flipped(a, loss=0.12, gain=0.02), weights="w1"),
        "close": evaluation(flipped(a, loss=0.08, gain=0.06), weights="w2"),
        "better": evaluation(flipped(a, loss=0.01, gain=0.09), weights="w3"),
    }
    return {k: save(tmp_path / "runs" / k / "base" / "eval", e).parents[1] for k, e in made.items()}


@pytest.mark.parametrize(("candidate", "code"), [("same", 0), ("better", 0), ("worse", 1), ("close", 3)])
def test_exit_codes_and_files_of_a_gate(folders: dict[str, Path], tmp_path: Path, candidate: str, code: int) -> None:
    junit, summary, out = tmp_path / "x" / "gate.xml", tmp_path / "s.md", tmp_path / "gate.json"
    r = run("gate", folders[candidate], "--against", folders["base"], "--junit", junit, "--summary", summary, "--out", out)
    assert r.exit_code == code, r.output
    suite = ET.parse(junit).getroot()[0]
    assert int(suite.get("tests", "0")) == len(suite.findall("testcase")) == 3
    assert (int(suite.get("failures", "0")) > 0) == (code != 0)
    assert summary.read_text().startswith("## ")
    assert read_gates(out)["gate"].exit_code == code
    assert "MDE" in r.output


@pytest.mark.parametrize("more", [[], ["--json"]])
@pytest.mark.parametrize(("candidate", "code"), [("same", 0), ("worse", 1)])
def test_a_closed_pipe_leaves_the_verdict(folders: dict[str, Path], candidate: str, code: int, more: list[str]) -> None:
    """Before, `harness gate A --against A | grep -q x` ended with 1, which means "fail"."""
    read, write = os.pipe()
    os.close(read)
    args = [sys.executable, "-m", "harness", "gate", str(folders[candidate]), "--against", str(folders["base"]), *more]
    done = subprocess.run(args, stdout=write, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (code, "")


def test_diff_shows_the_questions_gained_and_lost(folders: dict[str, Path]) -> None:
    r = run("diff", folders["worse"], folders["base"], "--show", "3")
    assert r.exit_code == 0
    lines = r.stdout.splitlines()
    assert lines[0] == "egoschema: 180 questions lost, 30 questions gained"
    assert lines[1].startswith("  lost egoschema_subset/")
    assert "right: " in lines[3]
    assert "and 207 more" in lines[-1]
    found = json.loads(run("diff", folders["worse"], folders["base"], "--json").stdout)["egoschema"]
    gate = json.loads(run("gate", folders["worse"], "--against", folders["base"], "--json").stdout)
    assert [c["question"] for c in found if c["kind"] == "lost"] == gate["changed"]["egoschema"]["lost"]
    assert all(c["before"]["strict"] > c["after"]["strict"] for c in found if c["kind"] == "lost")
    assert run("diff", folders["same"], folders["base"]).stdout.strip() == "egoschema: nothing changed"
    assert run("diff", folders["same"], "nowhere").exit_code == 2
    assert run("diff", folders["same"], folders["base"], "--benchmarks", "nextqa").exit_code == 2


def test_junit_and_summary_name_the_questions_lost(folders: dict[str, Path], tmp_path: Path) -> None:
    junit, summary = tmp_path / "gate.xml", tmp_path / "summary.md"
    run("gate", folders["worse"], "--against", folders["base"], "--junit", junit, "--summary", summary)
    lost = json.loads(run("gate", folders["worse"], "--against", folders["base"], "--json").stdout)["changed"]["egoschema"]["lost"]
    text = ET.parse(junit).getroot()[0].findtext("testcase/system-out") or ""
    assert f"lost {lost[0]}" in text
    assert "and 80 more" in text
    assert "180 questions lost" in summary.read_text()


def test_json_is_all_of_stdout(folders: dict[str, Path]) -> None:
    r = run("gate", folders["worse"], "--against", folders["base"], "--json")
    assert GateResult.from_json(json.loads(r.stdout)).exit_code == r.exit_code == 1


def test_github_annotations(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    r = run("gate", folders["worse"], "--against", folders["base"], "--json")
    assert "::error title=gate fail%3A egoschema::" in r.stderr
    json.loads(r.stdout)


def test_margin_alpha_benchmarks_and_requirement(folders: dict[str, Path]) -> None:
    assert run("gate", folders["close"], "--against", folders["base"], "--margin", "6").exit_code == 0
    assert run("gate", folders["same"], "--against", folders["base"], "--require-improvement").exit_code == 3
    assert run("gate", folders["same"], "--against", folders["base"], "--benchmarks", "egoschema").exit_code == 0
    assert run("gate", folders["same"], "--against", folders["base"], "--benchmarks", "nextqa").exit_code == 4, "asked for, and not there"


@pytest.mark.parametrize(
    "args", [["--benchmarks", "nosuch"], ["--alpha", "2"], ["--alpha", "nan"], ["--margin", "-1"], ["--nosuch"], ["--against", "nowhere"]]
)
def test_usage_errors_are_exit_2_and_go_to_stderr(folders: dict[str, Path], args: list[str]) -> None:
    r = run("gate", folders["same"], "--against", folders["base"], *args)
    assert r.exit_code == 2
    assert r.stderr
    assert not r.stdout
    assert "Traceback" not in r.output


def test_nothing_there_is_usage_and_leaves_a_red_junit(folders: dict[str, Path], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for what in (empty, tmp_path / "missing"):
        junit = tmp_path / "g.xml"
        r = run("gate", what, "--against", folders["base"], "--junit", junit)
        assert r.exit_code == 2
        assert str(what.name) in r.stderr
        assert ET.parse(junit).getroot()[0].get("errors") == "1"


@pytest.mark.parametrize("benchmark", ["egoschema", "tempcompass", "mvbench", "nextqa"])
def test_stock_lmms_eval_folders_are_candidate_and_reference(folders: dict[str, Path], tmp_path: Path, benchmark: str) -> None:
    """Before, exit 2: only our own evaluations could be compared."""
    right = [int(i % 3 > 0) for i in range(300)]
    base = write_stock(tmp_path / "base", right, benchmark=benchmark)
    worse = write_stock(tmp_path / "worse", [r * int(i % 4 > 0) for i, r in enumerate(right)], benchmark=benchmark)
    better = write_stock(tmp_path / "better", [max(r, int(i % 6 == 0)) for i, r in enumerate(right)], benchmark=benchmark)
    for candidate, code in ((worse, 1), (better, 0)):
        r = run("gate", candidate, "--against", base)
        assert r.exit_code == code, r.output
        assert "cannot be checked" in r.stdout
        assert ("count as independent" in " ".join(r.stdout.split())) == (benchmark in ("mvbench", "nextqa"))
    ref = tmp_path / "ref.json.gz"
    assert run("reference", base, ref).exit_code == 0
    assert run("gate", worse, "--against", ref).exit_code == 1
    assert run("gate", base, "--against", folders["base"]).exit_code == 4, "other question ids than ours"
    assert "questions lost" in run("diff", worse, base).stdout


def test_stock_folders_that_cannot_be_compared_say_why(folders: dict[str, Path], tmp_path: Path) -> None:
    base = write_stock(tmp_path / "base", [1, 0, 1] * 50)
    scores_only = write_stock(tmp_path / "scores", [1, 0, 1] * 50, samples=False)
    assert "--log_samples" in run("gate", scores_only, "--against", base).stderr
    assert run("gate", scores_only, "--against", base).exit_code == 4
    write_stock(tmp_path / "two" / "a", [1, 0], model="a")
    write_stock(tmp_path / "two" / "b", [1, 0], model="b")
    assert "several models" in run("gate", tmp_path / "two", "--against", base).stderr
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "20250101_results.json").write_text("{}")
    assert run("gate", broken, "--against", base).exit_code == 4


def spoil(folder: Path, name: str, old: str, new: str) -> None:
    path = next(folder.rglob(name))
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


BROKEN = {
    "not JSON": ("questions.jsonl", "{", "("),
    "NaN": ("questions.jsonl", '"strict": 1.0', '"strict": NaN'),
    "NaN score": ("score.json", '"strict_pct": ', '"strict_pct": NaN, "x": '),
    "infinite": ("score.json", '"upstream_pct": ', '"upstream_pct": Infinity, "x": '),
    "unknown field": ("questions.jsonl", '"benchmark"', '"benchmrk"'),
    "another tool's version": ("score.json", '"schema_version": 1', '"schema_version": 99'),
    "unknown status": ("questions.jsonl", '"status": "ok"', '"status": "fine"'),
    "credit above one": ("questions.jsonl", '"strict": 1.0', '"strict": 2.0'),
    "one answer": ("questions.jsonl", '"strict": 1.0', '"strict": 0.0'),
}


@pytest.mark.parametrize("how", BROKEN)
def test_files_that_cannot_be_trusted_are_exit_4(folders: dict[str, Path], how: str) -> None:
    spoil(folders["same"], *BROKEN[how])
    for args in ((folders["same"], folders["base"]), (folders["base"], folders["same"])):
        r = run("gate", args[0], "--against", args[1])
        assert r.exit_code == 4, (how, r.output)
        assert "Traceback" not in r.output


@pytest.mark.parametrize("how", EDITS)
@pytest.mark.parametrize("mended", [False, True], ids=["score left", "score made to fit"])
def test_an_edited_record_is_exit_4_and_named(folders: dict[str, Path], how: str, mended: bool) -> None:
    questions = next(folders["same"].rglob("questions.jsonl"))
    rewrite(questions, lambda rows: None)
    assert run("gate", folders["same"], "--against", folders["base"]).exit_code == 0, "writing the same again is no edit"
    rewrite(questions, EDITS[how])
    if mended:
        rescore(questions.parent / "score.json")
    for args in ((folders["same"], folders["base"]), (folders["base"], folders["same"])):
        r = run("gate", args[0], "--against", args[1], "--json")
        assert r.exit_code == 4, (how, r.output)
        messages = [p["message"] for p in json.loads(r.stdout)["integrity"]]
        assert any("egoschema/questions.jsonl was edited" in m and "evaluate again" in m for m in messages)
        if not mended:
            assert any(NAMED[how] in m for m in messages), messages
    assert run("reference", folders["same"], "ref.json").exit_code == 4
    assert not Path("ref.json").exists()


def test_a_score_without_checksum_is_exit_4_whatever_took_it(folders: dict[str, Path]) -> None:
    unseal(next(folders["base"].rglob("score.json")))
    r = run("gate", folders["same"], "--against", folders["base"])
    assert r.exit_code == 4
    assert "records_sha256" in r.output


@pytest.mark.parametrize("name", ["ref.json", "ref.json.gz"])
def test_an_edited_reference_file_is_exit_4(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    evaluations = load_run(folders["base"])
    e = evaluations["egoschema"]
    e.records[4] = replace(e.records[4], answer=e.records[4].answer + ".")
    save_reference(tmp_path / name, evaluations, name="base")
    r = run("gate", folders["same"], "--against", tmp_path / name)
    assert r.exit_code == 4
    assert "questions.jsonl was edited" in r.output


def test_the_checksum_is_that_of_the_file(folders: dict[str, Path]) -> None:
    questions = next(folders["base"].rglob("questions.jsonl"))
    stated = json.loads((questions.parent / "score.json").read_text())["records_sha256"]
    assert stated == hashlib.sha256(questions.read_bytes()).hexdigest()


def test_a_missing_records_file_is_exit_4(folders: dict[str, Path]) -> None:
    next(folders["same"].rglob("questions.jsonl")).unlink()
    r = run("gate", folders["same"], "--against", folders["base"])
    assert r.exit_code == 4
    assert "questions.jsonl" in r.stderr


def test_bytes_that_are_no_text_are_exit_4(folders: dict[str, Path]) -> None:
    next(folders["same"].rglob("questions.jsonl")).write_bytes(b"\xff\xfe\x00")
    assert run("gate", folders["same"], "--against", folders["base"]).exit_code == 4


def test_micro_scores_never_meet_the_paper(folders: dict[str, Path]) -> None:
    r = run("gate", folders["same"], "--against", "paper")
    assert r.exit_code == 2
    assert "no published rows" in r.stderr


def test_paper_scale_is_compared_with_the_papers_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    a = records("egoschema", n=500, videos=500, accuracy=0.52)
    save(tmp_path / "r" / "base" / "eval", evaluation(a, scale="8b"))
    save(tmp_path / "r" / "iter-1" / "eval", evaluation(flipped(a, loss=0.03, gain=0.095), weights="w1", scale="8b"))
    for path, row in (("r", "VideoSAVi"), ("r/base", "InternVL2.5")):
        result = json.loads(run("gate", path, "--against", "paper", "--benchmarks", "egoschema", "--json").stdout)
        assert result["reference"] == f"paper: {row}"
        asked = {d["question"] for d in result["decisions"]} - {"format"}
        assert asked == ({"published_score", "published_gain"} if path == "r" else {"published_score"})
    assert run("gate", "r", "--against", "paper").exit_code == 4, "five of the paper's benchmarks are missing"
    assert run("gate", "r", "--against", "paper", "--row", "GPT-5").exit_code == 2
    Path("p.json").write_text(json.dumps({"kind": "published", "source": "a report", "scores": {"egoschema": 90.0}}))
    assert run("gate", "r", "--against", "p.json").exit_code == 1
    Path("p.json").write_text(json.dumps({"kind": "published", "source": "a report", "scores": {"egoschema": "high"}}))
    assert run("gate", "r", "--against", "p.json").exit_code == 4


@pytest.mark.parametrize("name", ["ref.json", "ref.json.gz"])
def test_reference_files_stand_for_their_run(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    ref = tmp_path / name
    assert run("reference", folders["base"], ref).exit_code == 0
    assert load_run(ref) == load_run(folders["base"])
    assert run("gate", folders["worse"], "--against", ref).exit_code == 1
    before = ref.read_bytes()
    assert run("reference", folders["base"], ref).exit_code == 0
    assert ref.read_bytes() == before
    ref.write_bytes(before[: len(before) // 2])
    assert run("gate", folders["worse"], "--against", ref).exit_code == 4
    assert run("reference", tmp_path / "nowhere", ref).exit_code == 2


def test_run_names_and_gate_files(tmp_path: Path, folders: dict[str, Path]) -> None:
    assert run_name(tmp_path / "runs/x/iter-2/eval") == run_name(tmp_path / "runs/x/base") == run_name(tmp_path / "runs/x") == "x"
    result = gate_runs(load_run(folders["worse"]), load_run(folders["base"]))
    write_gates(tmp_path / "gate.json", {"previous": result, "base": result})
    assert read_gates(tmp_path / "gate.json") == {"previous": result, "base": result}
    with pytest.raises(RecordError):
        load_against(str(tmp_path / "gate.json"), scale="micro")


def hostile() -> GateResult:
    a = records("egoschema", n=100, videos=20)
    good, bad = evaluation(a), evaluation(flipped(a, loss=0.3))
    r = gate_runs({"egoschema": bad}, {"egoschema": good}, GateSettings(margin=2), candidate_name=HOSTILE, reference_name=HOSTILE)
    nasty = [replace(d, note=HOSTILE, benchmark=HOSTILE) for d in r.decisions]
    from harness.integrity import IntegrityProblem

    return replace(r, decisions=nasty, integrity=[IntegrityProblem(HOSTILE, "both", "prompts", HOSTILE * 5000)], exceptions=[HOSTILE])


def test_hostile_text_stays_text_everywhere() -> None:
    r = hostile()
    xml = ci.junit(r)
    assert ET.fromstring(xml)[0].get("errors") == "1"
    md = ci.summary(r)
    assert "<script" not in md
    assert len(md) < 60_000
    rows = [line for line in md.splitlines() if line.startswith("|")]
    assert all(not line.startswith("::") for line in md.splitlines())
    assert len(rows) == 2 + 1 + 2 + len(r.decisions)
    commands = ci.workflow_commands(r)
    assert all("\n" not in c and "\r" not in c and c.startswith("::") for c in commands)
    for text in (xml, md, *commands):
        assert not any(c in text for c in "\x1b\x00\u202e")
    assert GateResult.from_json(r.to_json()) == r


def test_an_inconclusive_gate_is_no_green_suite() -> None:
    a = records(n=50, videos=10)
    r = gate_runs({"egoschema": evaluation(flipped(a, loss=0.1, gain=0.1), weights="w1")}, {"egoschema": evaluation(a)})
    assert r.exit_code == 3
    suite = ET.fromstring(ci.junit(r))[0]
    assert (suite.get("failures"), suite.get("skipped")) == ("1", "2")


def test_nothing_decided_is_an_error_in_junit() -> None:
    assert ET.fromstring(ci.junit(GateResult([], [], "inconclusive", 3, [])))[0].get("errors") == "1"


def test_power_and_simulate_commands() -> None:
    r = run("power", "--benchmarks", "egoschema", "--discordance", "10", "--json")
    (row,) = json.loads(r.stdout)
    assert row["mde"] == pytest.approx(3.5, abs=0.05)
    assert row["mde_unpaired"] > 2 * row["mde"] * 0.9
    assert row["n_needed"] > 500
    assert "egoschema" in run("power", "--effect", "1").stdout
    for bad in (["--benchmarks", "nosuch"], ["--effect", "-1"], ["--alpha", "0.9"]):
        assert run("power", *bad).exit_code == 2
    quick = run("simulate", "--sims", "20", "--saving-sims", "10", "--benchmarks", "egoschema", "--json")
    assert quick.exit_code in (0, 1)
    assert json.loads(quick.stdout)["rates"]
    assert run("simulate", "--benchmarks", "nosuch").exit_code == 2


def test_check_needs_data_and_a_baseline(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HOME", raising=False)
    assert run("check", "model", "--against", folders["base"]).exit_code == 2
    assert run("check", "model", "--against", "nowhere", "--data", folders["base"]).exit_code == 2
