"""What the main job leaves behind, and what the gate says of it: one small real run, with real evaluations beside it.

All through the command lines, each in a process of its own. At smoke size there are 34 to 60 questions a benchmark, so the gate can only
see losses of twenty points and more: the planted regression is a model whose sight is destroyed (noise of four times their spread on the
weights that join eye and language), which answers at about chance. The margins are the benchmarks' own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.catalog import CATALOG, PAPER
from benchmarks.micro.pretrain.recipe import BASE_DIR
from harness.gate.decision import ALL
from harness.records import read_evaluations
from harness.report.read import read_run
from tests.harness.made import read_gates
from tests.harness.tamper import EDITS, NAMED, rescore, rewrite, unseal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[3]
NOISE = 4.0
"""Standard deviation of the noise, in standard deviations of each weight tensor."""
FIVE_OPTIONS = ("nextqa", "egoschema", "longvideobench")


def command(cwd: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """python -m ARGS in `cwd`."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", *map(str, args)], capture_output=True, text=True, cwd=cwd, env=env, check=False)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The main job at smoke size, run once: the folder `smoke` in a folder of its own."""
    here = tmp_path_factory.mktemp("job")
    done = command(here, "reproduce", "paper", "--scale", "smoke", "--out", "smoke")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return here / "smoke"


def evaluate(job: Path, model: Path, out: str) -> Path:
    """Measure a model on the run's own data sets, as anyone would; returns the evaluation's folder."""
    folder = job.parent / out
    args = ["--out", str(folder), "--hf-home", str(job / "data/hf_home"), "--scale", "smoke"]
    done = command(job.parent, "harness", "evaluate", model, *args)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def again(job: Path) -> Path:
    """The base, measured a second time."""
    return evaluate(job, BASE_DIR, "again")


@pytest.fixture(scope="module")
def blind_model(job: Path) -> Path:
    """The base with noise on its projector's weights."""
    folder = Path(shutil.copytree(BASE_DIR, job.parent / "blind-model"))
    generator = torch.Generator().manual_seed(7)
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    for name, value in weights.items():
        if "multi_modal_projector" in name:
            noise = torch.randn(value.shape, generator=generator) * value.float().std()
            weights[name] = (value.float() + NOISE * noise).to(value.dtype)
    save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def blind(job: Path, blind_model: Path) -> Path:
    return evaluate(job, blind_model, "blind")


def test_report_leaderboard_and_gate_are_there_and_read_back(job: Path) -> None:
    page = (job / "report.html").read_text(encoding="utf-8")
    assert page.rstrip().endswith("</html>")
    run = read_run(job)
    assert [s.key for s in run.stages] == ["base", "iter-1", "iter-2"]
    assert run.problems == []
    assert all(set(s.evaluations) == set(PAPER) for s in run.stages)
    for stage in run.stages[1:]:
        gates = read_gates(job / stage.key / "gate.json")
        assert set(gates) == {"previous", "base"}
        assert {g.against: g.result for g in stage.gates} == gates
        for result in gates.values():
            assert result.integrity == [], "unreadable answers are a decision, not a reason not to compare"
            assert {d.benchmark for d in result.decisions if d.required} == {ALL}
            assert {d.benchmark for d in result.decisions if d.veto} == {*PAPER, ALL}
    board = (job / "tables/leaderboard.md").read_text(encoding="utf-8")
    assert all(label in board for label in ("base", "iter-1", "iter-2"))
    assert "not ranked" not in board
    made = json.loads(command(job.parent, "harness", "leaderboard", "smoke", "--rule", "strict", "--format", "json").stdout)
    (table,) = made["tables"]
    assert table["scale"] == "smoke"
    assert len(table["rows"]) >= 2


def test_the_same_model_twice_passes(job: Path, again: Path) -> None:
    for args in ((again, job / "base"), (job / "base", again)):
        done = command(job.parent, "harness", "gate", args[0], "--against", args[1], "--json")
        result = json.loads(done.stdout)
        assert (done.returncode, result["verdict"]) == (0, "pass"), done.stdout[-2000:]
        assert {d["estimate"] for d in result["decisions"]} == {0.0}


def test_a_planted_regression_fails(job: Path, blind: Path) -> None:
    gate = ("harness", "gate", blind, "--against", job / "base", "--json", "--junit", "gate.xml")
    done = command(job.parent, *gate)
    result = json.loads(done.stdout)
    assert (done.returncode, result["verdict"], result["integrity"]) == (1, "fail", []), result["reasons"]
    failed = [d for d in result["decisions"] if d["question"] == "no_regression" and d["verdict"] == "fail"]
    assert ALL in {d["benchmark"] for d in failed}
    margins = {**{n: CATALOG[n].margin.points for n in PAPER}, ALL: sum(CATALOG[n].margin.points for n in PAPER) / len(PAPER)}
    assert all(d["margin"] == margins[d["benchmark"]] and d["high"] < -d["margin"] for d in failed)
    assert any(c["lost"] for c in result["changed"].values())
    assert "<failure" in (job.parent / "gate.xml").read_text(encoding="utf-8")


@pytest.mark.parametrize("rescored", [False, True], ids=["score left", "score made to fit"])
@pytest.mark.parametrize("how", EDITS)
def test_tampered_records_are_exit_4_and_named(job: Path, again: Path, tmp_path: Path, how: str, rescored: bool) -> None:
    edited = Path(shutil.copytree(again, tmp_path / "edited"))
    rewrite(edited / "nextqa/questions.jsonl", EDITS[how])
    if rescored:
        rescore(edited / "nextqa/score.json")
    done = command(tmp_path, "harness", "gate", edited, "--against", job / "base", "--json")
    assert done.returncode == 4, done.stdout[-2000:]
    problems = json.loads(done.stdout)["integrity"]
    assert {p["benchmark"] for p in problems} == {"nextqa"}
    assert any("nextqa/questions.jsonl was edited" in p["message"] for p in problems)
    if not rescored:
        assert any(NAMED[how] in p["message"] for p in problems), problems


def test_a_run_from_before_the_checksum_is_exit_4_and_measured_again(job: Path, again: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(again, job.parent / "old"))
    unseal(old / "egoschema/score.json")
    gate = ("harness", "gate", old, "--against", job / "base")
    done = command(tmp_path, *gate)
    assert done.returncode == 4
    assert "evaluate again" in done.stdout
    others = {p: p.stat().st_mtime_ns for p in old.rglob("*.json*") if "egoschema" not in p.parts}
    evaluate(job, BASE_DIR, "old")
    assert command(tmp_path, *gate).returncode == 0
    assert {p: p.stat().st_mtime_ns for p in others} == others, "the other benchmarks were not asked again"


def test_early_stopping_agrees_with_the_full_set(job: Path, blind: Path, blind_model: Path) -> None:
    """The whole set's verdict is known: both models were asked every question."""
    args = ["--against", str(job / "base"), "--data", str(job / "data/hf_home"), "--out", "check", "--json"]
    args += ["--benchmarks", ",".join(FIVE_OPTIONS)]
    done = command(job.parent, "harness", "check", blind_model, *args)
    result = json.loads(done.stdout)
    full, base = read_evaluations(blind), read_evaluations(job / "base")
    truth = {}
    for name in FIVE_OPTIONS:
        loss = base[name].score.strict_pct - full[name].score.strict_pct
        truth[name] = "fail" if loss >= CATALOG[name].margin.points else "pass"
    margin = sum(CATALOG[n].margin.points for n in FIVE_OPTIONS) / len(FIVE_OPTIONS)
    mean = sum(base[n].score.strict_pct - full[n].score.strict_pct for n in FIVE_OPTIONS) / len(FIVE_OPTIONS)
    truth[ALL] = "fail" if mean >= margin else "pass"
    certain = {d["benchmark"]: d["verdict"] for d in result["gate"]["decisions"] if d["verdict"] != "inconclusive"}
    assert certain
    assert certain.items() <= truth.items()
    assert done.returncode == (1 if "fail" in truth.values() else 0) == 1
    assert 0 < result["share_pct"] < 100, "it stopped early"
    assert all(a["questions"] <= a["of"] for a in result["asked"])
