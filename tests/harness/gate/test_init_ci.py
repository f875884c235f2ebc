"""The CI job for one's own checkpoint: valid YAML for both providers, and its own lines run as they stand."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml

from benchmarks.catalog import CATALOG
from harness.gate.files import load_run, save_reference
from harness.records import write_evaluation
from harness.scoring import describe, question_id
from tests.harness.made import evaluation, flipped, records
from tests.harness.tables.folders import write_stock

ROOT = Path(__file__).resolve().parents[3]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def harness(cwd: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "harness", *args], capture_output=True, text=True, cwd=cwd, env=ENV, check=False)


def line(cwd: Path, text: str) -> subprocess.CompletedProcess[str]:
    """A line of the job as a shell would split it, `python` being this one; no shell is run."""
    words = shlex.split(text)
    assert words[0] == "python"
    return subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, cwd=cwd, env=ENV, check=False)


def steps(repository: Path) -> dict[str, str]:
    flow: dict[Any, Any] = yaml.safe_load((repository / ".github/workflows/gate.yml").read_text())
    assert "pull_request" in flow["on"]
    assert flow["permissions"] == {"contents": "read", "pull-requests": "write"}
    found = flow["jobs"]["gate"]["steps"]
    assert all(("uses" in s) != ("run" in s) for s in found)
    return {s["name"]: s["run"] for s in found if "run" in s}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Somebody's repository with a committed reference and a model folder."""
    save_reference(tmp_path / "reference.json.gz", {"egoschema": evaluation(records(n=600, videos=150), scale="mine")}, name="trusted")
    (tmp_path / "my model").mkdir()
    return tmp_path


@pytest.mark.parametrize(("kind", "code"), [("same", 0), ("better", 0), ("worse", 1)])
def test_the_jobs_gate_is_green_or_red(repository: Path, kind: str, code: int) -> None:
    made = harness(repository, "init-ci", "reference.json.gz", "--model", "my model")
    assert made.returncode == 0, made.stderr
    change = {"same": {}, "better": {"gain": 0.15}, "worse": {"loss": 0.2}}[kind]
    rows = flipped(records(n=600, videos=150), **change)
    write_evaluation(repository / "gate-run/iter-1/eval", evaluation(rows, weights="w0" if kind == "same" else "w1", scale="mine"))
    done = line(repository, steps(repository)["Gate"])
    assert done.returncode == code, done.stdout + done.stderr
    assert "| benchmark | question |" in (repository / "gate-summary.md").read_text()
    assert json.loads((repository / "gate-run/iter-1/gate.json").read_text())["gate"]["exit_code"] == code
    for part in steps(repository)["Report"].replace(" --data gate-data", "").split(" && "):
        done = line(repository, part)
        assert done.returncode == 0, done.stderr
    report = (repository / "gate-report.html").read_text()
    assert all(stage in report for stage in ("base", "iteration 1", "EgoSchema"))


def test_what_the_reference_was_made_with_stays_equal(repository: Path) -> None:
    """Before, the shipped workflow installed without constraints, and a newer release made it red by itself."""
    harness(repository, "init-ci", "reference.json.gz", "--model", "my model")
    made = steps(repository)
    assert list(made)[:5] == ["Install", "Fetch the benchmarks", "Evaluate", "Gate", "Report"]
    assert "-c gate-constraints.txt" in made["Install"]
    assert "lmms_eval==0.7.3\n" in (repository / "gate-constraints.txt").read_text()
    assert "'my model'" in made["Evaluate"]
    assert "--num-frames 8 --seed 0" in made["Evaluate"]
    assert made["Comment the table on the pull request"].startswith('gh pr comment "$PULL_REQUEST" --body-file gate-summary.md')


def test_real_sets_are_fetched_and_a_hub_id_too(tmp_path: Path) -> None:
    save_reference(tmp_path / "r.json", {"egoschema": evaluation(records(n=60, videos=60), scale="8b")}, name="r")
    assert harness(tmp_path, "init-ci", "r.json", "--model", "org/model").returncode == 0
    made = steps(tmp_path)
    assert made["Fetch the benchmarks"] == "python -m benchmarks prepare egoschema --data gate-data --download"
    assert made["Fetch the model"] == "hf download org/model --local-dir gate-model"


def test_gitlab_runs_the_same_lines(repository: Path) -> None:
    harness(repository, "init-ci", "reference.json.gz", "--model", "my model")
    made = steps(repository)
    assert harness(repository, "init-ci", "reference.json.gz", "--model", "my model", "--provider", "gitlab").returncode == 0
    job = yaml.safe_load((repository / "gate.gitlab-ci.yml").read_text())["gate"]
    assert job["script"] == list(made.values())[:4]
    assert job["after_script"][0] == made["Report"]
    assert job["artifacts"]["reports"] == {"junit": "gate.xml"}


def test_stock_results_are_gated_without_evaluating(tmp_path: Path) -> None:
    right = [int(i % 3 > 0) for i in range(300)]
    base = write_stock(tmp_path / "base", right)
    write_stock(tmp_path / "results", [r * int(i % 4 > 0) for i, r in enumerate(right)])
    save_reference(tmp_path / "r.json", load_run(base), name="base")
    assert harness(tmp_path, "init-ci", "r.json", "--results", "results").returncode == 0
    assert list(steps(tmp_path))[:3] == ["Install", "Gate", "Report"]
    assert line(tmp_path, steps(tmp_path)["Gate"]).returncode == 1
    for part in steps(tmp_path)["Report"].split(" && "):
        done = line(tmp_path, part)
        assert done.returncode == 0, done.stderr
    assert harness(tmp_path, "init-ci", "r.json", "--model", "x").returncode == 2, "a reference of another kind"


def test_nothing_is_replaced_in_silence(repository: Path) -> None:
    args = ("init-ci", "reference.json.gz", "--model", "my model")
    assert harness(repository, *args).returncode == harness(repository, *args).returncode == 0
    (repository / ".github/workflows/gate.yml").write_text("mine: 1\n")
    done = harness(repository, *args)
    assert done.returncode == 2
    assert "--replace" in done.stderr
    assert (repository / ".github/workflows/gate.yml").read_text() == "mine: 1\n"
    assert harness(repository, *args, "--replace").returncode == 0
    assert harness(repository, "init-ci", "reference.json.gz").returncode == 2
    assert harness(repository, "init-ci", "nowhere.json", "--model", "x").returncode == 2


def blind(model: Path, out: Path) -> Path:
    """The model with its projector all but destroyed (zeros would be refused as a broken file): it answers without having seen anything."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, out)
    weights = load_file(out / "model.safetensors")
    changed = {name: 1e-4 * w if "multi_modal_projector" in name else w for name, w in weights.items()}
    save_file(changed, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_job_on_a_real_model(tmp_path: Path) -> None:
    """Every line but the installation: a model against itself is green, one that no longer sees is red, one that sees again is green."""
    from benchmarks.micro.pretrain.recipe import BASE_DIR

    models = {"sees": Path(shutil.copytree(BASE_DIR, tmp_path / "models/sees")), "blind": blind(BASE_DIR, tmp_path / "models/blind")}
    assert line(tmp_path, "python -m benchmarks micro --build-twins gate-data --size smoke").returncode == 0
    for name, model in models.items():
        first = line(tmp_path, f"python -m harness evaluate {model} --data gate-data --out trusted/{name}/eval --scale smoke")
        assert first.returncode == 0, first.stderr
    for reference, candidate, code in (("sees", "sees", 0), ("sees", "blind", 1), ("blind", "sees", 0)):
        repository = tmp_path / f"{reference}-{candidate}"
        shutil.copytree(models[candidate], repository / "model")
        (repository / "gate-data").symlink_to(tmp_path / "gate-data")  # as the job's cache brings it
        assert harness(tmp_path, "reference", f"trusted/{reference}", str(repository / "reference.json.gz")).returncode == 0
        assert harness(repository, "init-ci", "reference.json.gz", "--model", "model").returncode == 0
        made = steps(repository)
        assert "--size smoke --seed 1" in made["Make the synthetic benchmarks"]
        for name in ("Make the synthetic benchmarks", "Evaluate"):
            done = line(repository, made[name])
            assert done.returncode == 0, done.stderr
        done = line(repository, made["Gate"])
        assert done.returncode == code, done.stdout + done.stderr
        comment = (repository / "gate-summary.md").read_text()
        assert "| all |" in comment
        suite = ET.parse(repository / "gate.xml").getroot()[0]
        assert (int(suite.get("failures", "0")) > 0) == (code == 1)
        for part in made["Report"].split(" && "):
            done = line(repository, part)
            assert done.returncode == 0, done.stderr
        assert "iteration 1" in (repository / "gate-report.html").read_text()


def test_synthetic_references_say_their_size_and_the_seed_is_checked(tmp_path: Path) -> None:
    """A job on other twins than the reference's could never be compared."""
    b = CATALOG["egoschema"]
    doc = b.twin(7, b.twin_task("smoke")).rows[b.configs[0]]
    asked = [question_id(b.tasks[0], describe(b, b.tasks[0], d)) for d in doc]
    rows = [replace(r, question_id=q) for r, q in zip(records(n=len(asked), videos=len(asked)), asked, strict=True)]
    save_reference(tmp_path / "r.json", {"egoschema": evaluation(rows, scale="smoke")}, name="r")
    refused = harness(tmp_path, "init-ci", "r.json", "--model", "m")
    assert refused.returncode == 2
    assert "--twins-seed" in refused.stderr
    assert harness(tmp_path, "init-ci", "r.json", "--model", "m", "--twins-seed", "7").returncode == 0
    assert steps(tmp_path)["Make the synthetic benchmarks"] == "python -m benchmarks micro --build-twins gate-data --size smoke --seed 7"
    save_reference(tmp_path / "odd.json", {"egoschema": evaluation(rows[1:], scale="smoke")}, name="r")
    refused = harness(tmp_path, "init-ci", "odd.json", "--model", "m")
    assert refused.returncode == 2
    assert "egoschema 33" in refused.stderr
