"""SIGKILL at random moments, again and again: whatever the moment, running the same command to its end leaves the files of an
uninterrupted run. Twelve kills for each of five commands, moments seeded, so 60 in all (`tox -e campaign`)."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.micro.pretrain.recipe import BASE_DIR
from benchmarks.micro.twins.twins import build_twins
from benchmarks.micro.world.videos import build_videos

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(3600)]

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("KILLS_A_COMMAND", "12"))
BUDGET = 40
"""Starts of a command at most: early kills that find nothing to interrupt count too."""
TIMES = {"wall_s", "seconds", "train_runtime"}
OF_THE_MOMENT = {"timings.json", "run.json", "report.html", "crash.txt"}
"""Files that hold times or say when and where they were made."""
STAMPS = ("stages", "stamp", ".lock", "optimizer", "training_args", "rng_state", "scheduler")


@dataclass(frozen=True)
class Job:
    """A command that goes on where it was stopped. `arguments(out)`; `files(out)`: what it is judged by."""

    name: str
    arguments: Callable[[Path], list[str]]
    env: dict[str, str]

    def start(self, out: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", *self.arguments(out)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **self.env},
            cwd=out.parent,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, out: Path) -> float:
        """Run to the end; its seconds."""
        began = time.monotonic()
        process = self.start(out)
        _, errors = process.communicate()
        assert process.returncode == 0, errors[-2000:]
        return time.monotonic() - began


def without_times(value: object) -> object:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES and not str(k).endswith("_s")}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def content(folder: Path) -> dict[str, object]:
    """Every file by its relative path: text as it is, JSON without times."""
    found: dict[str, object] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.name in OF_THE_MOMENT or any(part in name for part in STAMPS) or "checkpoint-" in name or path.name.startswith("."):
            continue
        if path.suffix in (".json", ".jsonl"):
            lines = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text(encoding="utf-8")]
            found[name] = [without_times(json.loads(line)) for line in lines]
        else:
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    build_videos(folder, 40, seed=31)
    return folder


@pytest.fixture(scope="module")
def hf_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("twins")
    build_twins(folder, size="smoke", seed=31)
    return folder


def propose(clips: Path) -> Job:
    def arguments(out: Path) -> list[str]:
        return [
            "savi", "pairs", str(clips), "--out", str(out / "pairs.jsonl"), "--model", str(BASE_DIR), "--prompts", "micro",
            "--questions-per-kind", "2",
        ]  # fmt: skip

    return Job("pairs", arguments, {})


@pytest.fixture(scope="module")
def pairs(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pairs")
    propose(clips).run(out)
    return out / "pairs.jsonl"


def train(pairs: Path, lora_r: int) -> Job:
    def arguments(out: Path) -> list[str]:
        return [
            "savi", "train", str(pairs), "--out", str(out), "--model", str(BASE_DIR), "--learning-rate", "1e-4", "--save-steps", "2",
            "--lora-r", str(lora_r), "--pairs-per-step", "4", "--epochs", "2",
        ]  # fmt: skip

    return Job(f"train-{lora_r}", arguments, {})


def evaluate(hf_home: Path) -> Job:
    def arguments(out: Path) -> list[str]:
        return ["harness", "evaluate", str(BASE_DIR), "--out", str(out), "--hf-home", str(hf_home), "--batch", "4"]

    return Job("evaluate", arguments, {"HF_HOME": str(hf_home), "HF_HUB_OFFLINE": "1"})


def paper() -> Job:
    def arguments(out: Path) -> list[str]:
        return [
            "reproduce", "paper", "--scale", "smoke", "--iterations", "1", "--benchmarks", "egoschema", "--benchmarks", "nextqa",
            "--limit", "8", "--out", str(out),
        ]  # fmt: skip

    return Job("smoke", arguments, {})


def campaign(job: Job, tmp_path: Path) -> None:
    """Kill `job` KILLS times, then let it end, and compare. A run that ended before all kills were spent is compared and begun anew."""
    whole = tmp_path / "whole" / "out"
    whole.parent.mkdir()
    whole.mkdir()
    seconds = job.run(whole)
    wanted = content(whole)
    assert wanted
    moments = random.Random(f"{job.name}/kills")
    kills = starts = round_number = 0
    while kills < KILLS:
        round_number += 1
        out = tmp_path / f"killed-{round_number}" / "out"
        out.mkdir(parents=True)
        while kills < KILLS:
            starts += 1
            assert starts <= BUDGET, "the command ends before it is killed"
            process = job.start(out)
            try:
                process.wait(timeout=seconds * moments.uniform(0.15, 1.0))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
            _, errors = process.communicate()
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL, errors[-2000:]
        job.run(out)
        found = content(out)
        assert sorted(found) == sorted(wanted)
        assert [name for name in wanted if found[name] != wanted[name]] == []
    print(f"{job.name}: {kills} kills in {starts} starts, {round_number} rounds, {len(wanted)} files equal")


def test_pairs(clips: Path, tmp_path: Path) -> None:
    campaign(propose(clips), tmp_path)


@pytest.mark.parametrize("lora_r", [0, 4], ids=["full", "lora"])
def test_train(pairs: Path, lora_r: int, tmp_path: Path) -> None:
    campaign(train(pairs, lora_r), tmp_path)


def test_evaluate(hf_home: Path, tmp_path: Path) -> None:
    campaign(evaluate(hf_home), tmp_path)


def test_smoke(tmp_path: Path) -> None:
    campaign(paper(), tmp_path)
