"""`savi pairs`, `train` and `align` as real processes: stopped at work, and two in one place. By torchrun: test_several_slow.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.micro.pretrain.recipe import BASE_DIR
from benchmarks.micro.world.videos import build_videos
from tests.savi.started import STOPS, check_two_at_once, start, stopped

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3]), "OMP_NUM_THREADS": "1", "SAVI_MODEL": str(BASE_DIR)}
MICRO = ("--prompts", "micro", "--questions-per-kind", 2)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    build_videos(folder, 24, seed=7)
    return folder


@pytest.fixture(scope="module")
def pairs(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "pairs.jsonl"
    with start(["savi", "pairs", videos, "--out", out, *MICRO], ENV) as process:
        assert process.wait() == 0
    assert out.stat().st_size
    return out


@pytest.mark.parametrize(("number", "code", "word"), STOPS)
def test_pairs_stopped_go_on_to_the_same_bytes(
    videos: Path, pairs: Path, tmp_path: Path, number: signal.Signals, code: int, word: str
) -> None:
    out = tmp_path / "pairs.jsonl"
    command = ["savi", "pairs", videos, "--out", out, *MICRO]
    found, line = stopped(command, ENV, number, lambda: out.exists() and out.stat().st_size > 0)
    assert (found, line) == (code, f"error: {word}; what is finished is kept; run the same command to go on")
    assert out.stat().st_size < pairs.stat().st_size
    with start(command, ENV) as again:
        assert again.wait() == 0
    assert out.read_bytes() == pairs.read_bytes()


@pytest.mark.parametrize("name", ["pairs", "train", "align"])
def test_the_second_in_one_place_is_told_who_is_at_work(name: str, videos: Path, pairs: Path, tmp_path: Path) -> None:
    commands: dict[str, list[object]] = {
        "pairs": [videos, "--out", tmp_path / "pairs.jsonl", *MICRO],
        "train": [pairs, "--out", tmp_path, "--learning-rate", 1e-4],
        "align": [videos, "--out", tmp_path, "--iterations", 1, "--learning-rate", 1e-4, *MICRO],
    }
    check_two_at_once(["savi", name, *commands[name]], ENV, tmp_path)


@pytest.mark.parametrize("package", ["savi ask", "harness gate", "reproduce tables", "benchmarks doctor"])
def test_a_command_that_shares_no_work_is_refused_by_name(package: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *package.split()], capture_output=True, text=True, env={**ENV, "WORLD_SIZE": "2", "RANK": "1"}, check=False
    )
    assert done.returncode == 2
    assert done.stderr == f"error: {package} runs in one process, and WORLD_SIZE is 2: start it without torchrun or accelerate launch\n"
