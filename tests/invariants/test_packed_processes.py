"""Two processes train as one, whole (DDP) or sharded (FSDP2, DeepSpeed): the same steps, losses and weights up to the order of sums."""

from __future__ import annotations

import importlib.util
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from savi.loop.preferences import read_pairs, write_pairs
from savi.training.settings import DPOSettings
from tests.savi.scripted import random_pairs, write_clips
from tests.savi.tiny import tiny_checkpoint

ROOT = Path(__file__).parents[2]
PARAMETERS = 27
"""Of the tiny language model with its head: one layer has 12, three are outside of the layers, and there are two layers."""

TRAIN = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, os.getcwd())
from torch.distributed.tensor import DTensor
from savi.training.settings import DPOSettings
from savi.loop.preferences import read_pairs
from savi.training.trainer import train
from savi.engine.video_lm import VideoLM
base, pairs, out, settings, kill_at = sys.argv[1:]
lm = VideoLM.from_pretrained(Path(base), device="cpu")
def progress(done, total):
    print(done, "sharded", sum(isinstance(p, DTensor) for p in lm.model.parameters()), flush=True)
    if done == int(kill_at):
        os.kill(os.getpid(), signal.SIGKILL)
result = train(lm, read_pairs(pairs), DPOSettings.model_validate_json(settings), out, progress=progress)
assert not any(isinstance(p, DTensor) or p.requires_grad for p in lm.model.parameters()), "a plain model is left in memory"
print("done", result.steps, flush=True)
"""

CHANGES: dict[str, dict[str, Any]] = {
    "full": {"rpo_alpha": 0.3},
    "lora": {"lora_r": 2},
    "sft-micro-batches": {"method": "sft", "max_batch_tokens": 1, "pairs_per_step": 3},  # several a step, fewer on the second process
}


def settings_of(change: str, **more: Any) -> DPOSettings:
    plain = {"learning_rate": 1e-3, "epochs": 2, "pairs_per_step": 2, "logging_steps": 1, "warmup_ratio": 0.0}
    return DPOSettings.model_validate({**plain, **CHANGES[change], **more})


def launch(folder: Path, processes: int, out: Path, settings: DPOSettings, kill_at: int = 0) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    run += ["--master-addr=127.0.0.1", f"--master-port={port}", str(folder / "train.py")]
    arguments = [str(folder / "base"), str(folder / "pairs.jsonl"), str(out), settings.model_dump_json(), str(kill_at)]
    return subprocess.run([*run, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)


def train(folder: Path, processes: int, out: Path, settings: DPOSettings) -> str:
    done = launch(folder, processes, out, settings)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def log_of(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "train" / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, pairs of five videos and, as they are asked for, runs of one process."""
    folder = tmp_path_factory.mktemp("processes")
    tiny_checkpoint(folder / "base", layers=2, dtype=torch.float32)
    write_pairs(folder / "pairs.jsonl", random_pairs(write_clips(folder / "clips", 5), per_video=1))
    assert len(read_pairs(folder / "pairs.jsonl")) == 5
    (folder / "train.py").write_text(TRAIN)
    return folder


def of_one_process(folder: Path, change: str) -> Path:
    out = folder / f"one-{change}"
    if not out.exists():
        train(folder, 1, out, settings_of(change))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fsdp2", "deepspeed"])
@pytest.mark.parametrize("change", list(CHANGES))
def test_two_processes_are_one(change: str, sharding: str, folder: Path) -> None:
    """Five videos in steps of two or three leave one process with less, or nothing, in some steps. Gradient checkpointing, on where the
    model is sharded and off in the single process, changes nothing either."""
    if sharding == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    one, two = of_one_process(folder, change), folder / f"{sharding}-{change}"
    told = train(folder, 2, two, settings_of(change, sharding=sharding, gradient_checkpointing=sharding != "none"))
    sharded = {int(line.split()[-1]) for line in told.splitlines() if "sharded" in line}
    adapters = 2 * 7 * 2 if change == "lora" else 0
    assert sharded == ({PARAMETERS + adapters} if sharding == "fsdp2" else {0}), "the language model and nothing else"
    logs = log_of(one), log_of(two)
    assert len(logs[0]) == len(logs[1]) >= 4
    for ours, theirs in zip(*logs, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-4, abs=1e-5)
    weights, others = (load_file(out / "model" / "model.safetensors") for out in (one, two))
    base = load_file(folder / "base" / "model.safetensors")
    assert max(float((weights[name] - base[name]).abs().max()) for name in base) > 1e-3, "it was trained"
    assert weights.keys() == others.keys() == base.keys()
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=1e-3, atol=5e-5, msg=name)
    files = [{path.name: path.read_bytes() for path in (out / "model").iterdir() if path.suffix != ".safetensors"} for out in (one, two)]
    assert files[0] == files[1]


@pytest.mark.slow
@pytest.mark.timeout(1200)  # four launches of two processes
@pytest.mark.parametrize(("change", "sharding"), [("full", "none"), ("sft-micro-batches", "none"), ("lora", "fsdp2"), ("full", "fsdp2")])
def test_two_processes_go_on_after_a_kill(change: str, sharding: str, folder: Path) -> None:
    """From their last checkpoint to the same bytes, the log too (a row spans the kill); with another sharding it is refused."""
    straight, killed = (folder / f"{name}-{change}-{sharding}" for name in ("straight", "killed"))
    settings = settings_of(change, sharding=sharding, epochs=3, save_steps=2, logging_steps=3)
    train(folder, 2, straight, settings)
    died = launch(folder, 2, killed, settings, kill_at=5)
    assert died.returncode != 0
    assert f"Signal {signal.SIGKILL.value}" in died.stderr
    assert (killed / "train" / "checkpoint-4" / "stamp.json").is_file()
    if sharding == "fsdp2":
        refused = launch(folder, 1, killed, settings.model_copy(update={"sharding": "none"}))
        assert "was left by a run with sharding 'fsdp2', this one has 'none'" in refused.stderr
    told = train(folder, 2, killed, settings)
    assert next(line.split()[0] for line in told.splitlines() if "sharded" in line) == "5"
    assert log_of(killed) == log_of(straight)
    one, other = (load_file(out / "model" / "model.safetensors") for out in (killed, straight))
    assert all(torch.equal(one[name], value) for name, value in other.items())
