"""The main job by two processes of one machine, and by torchrun: the files of one process, whatever becomes of the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.campaign.test_kills import content
from tests.savi.launched import ENV, ROOT, ended, hit, torchrun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SMALL = ("--scale", "smoke", "--iterations", 2, "--benchmarks", "egoschema,nextqa", "--set", "loop.chunk_videos=5")


def command(out: Path, *more: object) -> list[str]:
    return ["reproduce", "paper", *map(str, (*SMALL, "--out", out, *more))]


def run(out: Path, *more: object) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *command(out, *more)], capture_output=True, text=True, env=ENV, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one") / "run"
    assert "2 processes" not in run(out, "--processes", 1)
    return out


def test_a_second_process_changes_no_byte(one: Path, tmp_path: Path) -> None:
    said = run(tmp_path / "run", "--processes", 2)
    assert "2 processes of one thread share the work" in said
    assert content(tmp_path / "run") == content(one)


def children(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_second_process_that_dies_or_hangs_costs_time_alone(number: signal.Signals, one: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    env = {**ENV, "SAVI_SILENCE_S": "5"}
    arguments = [sys.executable, "-W", "ignore", "-m", *command(out, "--processes", 2)]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env, cwd=ROOT) as process:
        until = time.monotonic() + 300
        while not list(out.glob("iter-1/pairs.part-*.jsonl")) and time.monotonic() < until:
            time.sleep(0.01)
        second = [pid for pid in children(process.pid) if b"reproduce" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(second) == 1
        os.kill(second[0], number)
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-3000:]
    assert not Path(f"/proc/{second[0]}").exists(), "it does not outlive the first one"
    assert content(out) == content(one)


@pytest.mark.parametrize(("stage", "then"), [("propose", 2), ("evaluate", 3), ("train", 1)])
def test_torchrun(stage: str, then: int, one: Path, tmp_path: Path) -> None:
    """A rank is killed in a stage, and as many as there were before, more or fewer go on; weights up to rounding, so pairs of the first
    iteration and the base's answers are the same bytes."""
    out = tmp_path / "run"
    with torchrun(2, *command(out)) as process:
        seconds, errors, last = hit(process, out, signal.SIGKILL, lambda found: f"({stage})" in str(found.get(1, {}).get("at")))
    assert seconds < 60
    assert f"process 1 ({last['pid']} on " in errors
    assert f"({stage})" in errors
    with torchrun(then, *command(out)) as process:
        ended(process)
    mine, theirs = content(out), content(one)
    assert mine.keys() == theirs.keys()
    same = [name for name in mine if mine[name] == theirs[name]]
    assert {"iter-1/pairs.jsonl", "iter-1/dropped.jsonl", "iter-1/pairs.journal.jsonl", "base/eval/nextqa/questions.jsonl"} <= set(same)
    ours, others = (load_file(folder / "iter-1/model/model.safetensors") for folder in (out, one))
    for name, value in others.items():  # float16: the smallest difference may round to a step of it
        torch.testing.assert_close(ours[name].float(), value.float(), rtol=2**-10, atol=5e-6)
