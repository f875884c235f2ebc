"""Two processes train as one: the same steps, the same losses, the same weights up to the order of sums."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from savi.dpo import DPOSettings
from savi.preferences import read_pairs, write_pairs
from tests.savi.loop import random_pairs, write_clips
from tests.savi.tiny import tiny_checkpoint

ROOT = Path(__file__).parents[2]

TRAIN = """
import os, sys
from pathlib import Path
sys.path.insert(0, os.getcwd())
from savi.dpo import DPOSettings
from savi.preferences import read_pairs
from savi.trainer import train_dpo
from savi.video_lm import VideoLM
base, pairs, out, settings = sys.argv[1:]
result = train_dpo(VideoLM.from_pretrained(Path(base), device="cpu"), read_pairs(pairs), DPOSettings.model_validate_json(settings), out)
print("done", result.steps)
"""


def train(folder: Path, processes: int, out: Path, settings: DPOSettings) -> None:
    script = folder / "train.py"
    script.write_text(TRAIN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc-per-node={processes}",
        "--master-addr=127.0.0.1",
        f"--master-port={port}",
    ]
    arguments = [str(script), str(folder / "base"), str(folder / "pairs.jsonl"), str(out), settings.model_dump_json()]
    done = subprocess.run([*launch, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"rpo_alpha": 0.3},
        {"lora_r": 2},
        {"method": "sft", "max_batch_tokens": 1},  # several micro-batches a step, not equally many on both
    ],
    ids=["full", "lora", "sft-micro-batches"],
)
def test_two_processes_are_one(change: dict[str, object], tmp_path: Path) -> None:
    """Five videos in steps of three leave one process with less, or nothing, in some steps."""
    tiny_checkpoint(tmp_path / "base", layers=1, dtype=torch.float32)
    write_pairs(tmp_path / "pairs.jsonl", random_pairs(write_clips(tmp_path / "clips", 5), per_video=1))
    assert len(read_pairs(tmp_path / "pairs.jsonl")) == 5
    settings = DPOSettings(learning_rate=1e-3, epochs=2, pairs_per_step=2, logging_steps=1, warmup_ratio=0.0, **change)  # type: ignore[arg-type]
    logs, weights = [], []
    for processes in (1, 2):
        out = tmp_path / f"out{processes}"
        train(tmp_path, processes, out, settings)
        logs.append([json.loads(line) for line in (out / "train" / "log.jsonl").read_text().splitlines()])
        weights.append(load_file(out / "model" / "model.safetensors"))
    assert len(logs[0]) == len(logs[1]) == 6
    for one, other in zip(*logs, strict=True):
        assert one == pytest.approx(other, rel=2e-3, abs=1e-4)
    base = load_file(tmp_path / "base" / "model.safetensors")
    assert max(float((weights[0][name] - base[name]).abs().max()) for name in base) > 1e-3, "it was trained"
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=5e-5, msg=name)
