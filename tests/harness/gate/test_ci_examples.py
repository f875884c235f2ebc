"""The shipped workflow and pre-commit hook: YAML of the right form, and their commands run as they stand, each in a process of its own."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml

from harness.records import write_evaluation
from tests.harness.made import evaluation, flipped, read_gates, records
from tests.harness.tamper import EDITS, rewrite

ROOT = Path(__file__).resolve().parents[3]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def workflow() -> dict[Any, Any]:
    flow: dict[Any, Any] = yaml.safe_load((ROOT / "docs/ci/gate.yml").read_text())
    return flow


def steps() -> list[str]:
    """The workflow's `run:` lines."""
    return [s["run"] for s in workflow()["jobs"]["gate"]["steps"] if "run" in s]


def hooks() -> list[dict[str, Any]]:
    return [h for r in yaml.safe_load((ROOT / "docs/ci/pre-commit-config.yaml").read_text())["repos"] for h in r["hooks"]]


def shell(line: str, cwd: Path, *more: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A line as a shell would split it, variables put in, `python` being this one; no shell is run."""
    words = [w.replace("$GITHUB_STEP_SUMMARY", env.get("GITHUB_STEP_SUMMARY", "")) for w in shlex.split(line)]
    assert words[0] == "python"
    assert not any("$" in w for w in words), "a variable nobody sets"
    return subprocess.run([sys.executable, *words[1:], *more], capture_output=True, text=True, cwd=cwd, env={**ENV, **env}, check=False)


@dataclass(frozen=True)
class Place:
    """A checkout with a committed reference; `candidate` puts a run where a command looks for it."""

    path: Path
    candidate: Callable[[str, str], Path]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    rows = records(n=600, videos=150)
    kinds = {"same": evaluation(rows), "worse": evaluation(flipped(rows, loss=0.2), weights="w1")}

    def candidate(folder: str, kind: str) -> Path:
        out = tmp_path / folder / "base" / "eval"
        write_evaluation(out, kinds.get(kind, kinds["same"]))
        if kind == "edited":
            rewrite(out / "egoschema/questions.jsonl", EDITS["answer text that reads the same"])
        return out

    candidate("runs/trusted", "same")
    line = next(x for x in (ROOT / "docs/ci/gate.yml").read_text().splitlines() if "harness reference" in x)
    made = shell(line.lstrip("# ").replace("<name>", "trusted"), tmp_path)
    assert made.returncode == 0, made.stderr
    return Place(tmp_path, candidate)


@pytest.mark.parametrize(("kind", "code"), [("same", 0), ("worse", 1), ("edited", 4)])
def test_the_workflows_gate(place: Place, kind: str, code: int) -> None:
    (line,) = [x for x in steps() if "harness gate" in x]
    job = next(shlex.split(x) for x in steps() if "reproduce paper" in x)
    place.candidate(job[job.index("--out") + 1], kind)  # the gate reads what the step before it wrote
    done = shell(line, place.path, GITHUB_STEP_SUMMARY=str(place.path / "summary.md"), GITHUB_ACTIONS="true")
    assert done.returncode == code, done.stdout + done.stderr
    suite = ET.parse(place.path / "gate.xml").getroot()[0]
    assert (int(suite.get("failures", "0")) > 0, int(suite.get("errors", "0")) > 0) == (code == 1, code == 4)
    assert (place.path / "summary.md").read_text().startswith("## ")
    assert read_gates(place.path / "gate.json")["gate"].exit_code == code
    assert ("::error" in done.stderr) == (code != 0)


@pytest.mark.parametrize(("kind", "code"), [("same", 0), ("worse", 1)])
def test_the_hooks_gate(place: Place, kind: str, code: int) -> None:
    (hook,) = hooks()
    words = shlex.split(hook["entry"])
    place.candidate(words[words.index("gate") + 1], kind)
    done = shell(hook["entry"], place.path)
    assert done.returncode == code, done.stdout + done.stderr
    assert (int(ET.parse(place.path / "gate.xml").getroot()[0].get("failures", "0")) > 0) == (code == 1)


def test_a_gate_with_nothing_to_read_is_red_and_says_so(place: Place) -> None:
    (line,) = [x for x in steps() if "harness gate" in x]
    done = shell(line, place.path, GITHUB_STEP_SUMMARY=str(place.path / "summary.md"))
    assert done.returncode == 2
    assert "runs/ci" in done.stderr
    assert ET.parse(place.path / "gate.xml").getroot()[0].get("errors") == "1"


def test_the_workflows_experiment_is_one_the_command_line_knows(tmp_path: Path) -> None:
    (line,) = [x for x in steps() if "reproduce paper" in x]
    done = shell(line, tmp_path, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    assert not list(tmp_path.iterdir()), "a plan writes nothing"


def test_every_run_line_is_one_of_those_tested() -> None:
    assert [x.split()[:3] for x in steps()] == [["pip", "install", "-e"], ["python", "-m", "reproduce"], ["python", "-m", "harness"]]


def test_the_workflow_is_one_github_reads() -> None:
    flow = workflow()
    assert "pull_request" in flow[True], "YAML reads the key `on` as true"
    assert flow["permissions"] == {"contents": "read"}
    assert all(("uses" in s) != ("run" in s) for s in flow["jobs"]["gate"]["steps"])
    kept = next(s for s in flow["jobs"]["gate"]["steps"] if "upload-artifact" in s.get("uses", ""))
    assert kept["if"] == "always()"
    assert kept["with"]["path"].split() == ["gate.xml", "gate.json"]


def test_the_hook_is_one_pre_commit_reads() -> None:
    (hook,) = hooks()
    assert {"id", "name", "entry", "language"} <= hook.keys()
    assert hook["stages"] == ["pre-push"]
    assert hook["pass_filenames"] is False
