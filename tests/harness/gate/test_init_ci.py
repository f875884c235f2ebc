"""The CI job for one's own checkpoint: valid YAML for both providers, and its own lines run as they stand."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.gate.files import load_run, save_reference
from harness.records import write_evaluation
from tests.harness.made import evaluation, flipped, records
from tests.harness.tables.test_leaderboard import write_stock

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
    save_reference(tmp_path / "reference.json.gz", {"egoschema": evaluation(records(n=600, videos=150))}, name="trusted")
    (tmp_path / "my model").mkdir()
    return tmp_path


@pytest.mark.parametrize(("kind", "code"), [("same", 0), ("better", 0), ("worse", 1)])
def test_the_jobs_gate_is_green_or_red(repository: Path, kind: str, code: int) -> None:
    made = harness(repository, "init-ci", "reference.json.gz", "--model", "my model")
    assert made.returncode == 0, made.stderr
    change = {"same": {}, "better": {"gain": 0.15}, "worse": {"loss": 0.2}}[kind]
    candidate = evaluation(flipped(records(n=600, videos=150), **change), weights="w0" if kind == "same" else "w1")
    write_evaluation(repository / "gate-run/eval", candidate)
    done = line(repository, steps(repository)["Gate"])
    assert done.returncode == code, done.stdout + done.stderr
    assert "| benchmark | question |" in (repository / "gate-summary.md").read_text()
    assert json.loads((repository / "gate.json").read_text())["gate"]["exit_code"] == code


def test_what_the_reference_was_made_with_stays_equal(repository: Path) -> None:
    """Before, the shipped workflow installed without constraints, and a newer release made it red by itself."""
    harness(repository, "init-ci", "reference.json.gz", "--model", "my model")
    made = steps(repository)
    assert list(made)[:4] == ["Install", "Make the synthetic benchmarks", "Evaluate", "Gate"]
    assert "-c gate-constraints.txt" in made["Install"]
    assert "lmms_eval==0.7.3\n" in (repository / "gate-constraints.txt").read_text()
    assert "'my model'" in made["Evaluate"]
    assert "--num-frames 8 --seed 0" in made["Evaluate"]
    assert made["Comment the table on the pull request"].startswith('gh pr comment "$PULL_REQUEST" --body-file gate-summary.md')


def test_real_sets_are_fetched_and_a_hub_id_too(tmp_path: Path) -> None:
    save_reference(tmp_path / "r.json", {"egoschema": evaluation(records(n=60, videos=60), scale="8b")}, name="r")
    assert harness(tmp_path, "init-ci", "r.json", "--model", "org/model").returncode == 0
    made = steps(tmp_path)
    assert made["Fetch the benchmarks"] == "python -m benchmarks prepare egoschema --hf-home gate-data --download"
    assert made["Fetch the model"] == "hf download org/model --local-dir gate-model"


def test_gitlab_runs_the_same_lines(repository: Path) -> None:
    harness(repository, "init-ci", "reference.json.gz", "--model", "my model")
    made = steps(repository)
    assert harness(repository, "init-ci", "reference.json.gz", "--model", "my model", "--provider", "gitlab").returncode == 0
    job = yaml.safe_load((repository / "gate.gitlab-ci.yml").read_text())["gate"]
    assert job["script"] == list(made.values())[:4]
    assert job["artifacts"]["reports"] == {"junit": "gate.xml"}


def test_stock_results_are_gated_without_evaluating(tmp_path: Path) -> None:
    right = [int(i % 3 > 0) for i in range(300)]
    base = write_stock(tmp_path / "base", right)
    write_stock(tmp_path / "results", [r * int(i % 4 > 0) for i, r in enumerate(right)])
    save_reference(tmp_path / "r.json", load_run(base), name="base")
    assert harness(tmp_path, "init-ci", "r.json", "--results", "results").returncode == 0
    assert list(steps(tmp_path))[:2] == ["Install", "Gate"]
    assert line(tmp_path, steps(tmp_path)["Gate"]).returncode == 1
    assert harness(tmp_path, "init-ci", "r.json", "--model", "x").returncode == 2, "a reference of another kind"


def test_nothing_is_replaced_in_silence(repository: Path) -> None:
    args = ("init-ci", "reference.json.gz", "--model", "my model")
    assert harness(repository, *args).returncode == harness(repository, *args).returncode == 0
    (repository / ".github/workflows/gate.yml").write_text("mine: 1\n")
    done = harness(repository, *args)
    assert done.returncode == 2
    assert "--force" in done.stderr
    assert (repository / ".github/workflows/gate.yml").read_text() == "mine: 1\n"
    assert harness(repository, *args, "--force").returncode == 0
    assert harness(repository, "init-ci", "reference.json.gz").returncode == 2
    assert harness(repository, "init-ci", "nowhere.json", "--model", "x").returncode == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_job_on_a_real_model(tmp_path: Path) -> None:
    """Every line but the installation: the shipped base against itself is green, the same with its projector destroyed is red."""
    import torch
    from safetensors.torch import load_file, save_file

    from benchmarks.micro.pretrain.recipe import BASE_DIR

    model = Path(shutil.copytree(BASE_DIR, tmp_path / "model"))
    assert line(tmp_path, "python -m benchmarks micro --build-twins gate-data --size smoke").returncode == 0
    first = line(tmp_path, "python -m harness evaluate model --hf-home gate-data --out trusted/eval --scale smoke")
    assert first.returncode == 0, first.stderr
    assert harness(tmp_path, "reference", "trusted", "reference.json.gz").returncode == 0
    assert harness(tmp_path, "init-ci", "reference.json.gz", "--model", "model", "--size", "smoke").returncode == 0
    made = steps(tmp_path)
    for kind, code in (("same", 0), ("broken", 1)):
        if kind == "broken":
            weights = load_file(model / "model.safetensors")
            for name, value in weights.items():
                if "multi_modal_projector" in name:
                    weights[name] = torch.zeros_like(value)
            save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
            shutil.rmtree(tmp_path / "gate-run")  # a CI job starts with an empty checkout
        for name in ("Make the synthetic benchmarks", "Evaluate"):
            done = line(tmp_path, made[name])
            assert done.returncode == 0, done.stderr
        done = line(tmp_path, made["Gate"])
        assert done.returncode == code, done.stdout + done.stderr
