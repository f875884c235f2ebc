"""Commands as users run them: nothing reaches stderr but this project's own sentences, whatever libraries would say there."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.micro.world.videos import build_videos
from tests.savi.internvl_chat import qwen2_config, write_checkpoint

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
OURS = ("prompts: micro, as micro does not know", "dropped ", "(cut off after ")
"""How this project's own lines begin."""
COMMANDS = (
    "savi ask clips/0000.mp4 'which object comes first ? A white B blue C red D green' --model micro --num-frames 4",
    "savi pairs clips --model micro --num-frames 8 --questions-per-kind 3 --out pairs.jsonl",
    "savi train pairs.jsonl --model micro --out whole --learning-rate 1e-4",
    "savi train pairs.jsonl --model micro --out adapters --lora-r 4 --gradient-checkpointing --report-to tensorboard",
    "savi export pairs.jsonl --out trl.jsonl --format trl",
    "savi train trl.jsonl --model micro --out sft --method sft",
    "savi convert ./published native",
    "savi ask clips/0000.mp4 what --model native --num-frames 2 --max-new-tokens 2",
    "savi push native us/model --dry-run",
)


def test_no_library_speaks_on_stderr(tmp_path: Path) -> None:
    build_videos(tmp_path / "clips", 6, seed=3)
    write_checkpoint(tmp_path / "published", qwen2_config())
    env = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    spoken = {}
    for line in COMMANDS:
        command = [sys.executable, "-m", *shlex.split(line)]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600)
        assert done.returncode == 0, (line, done.stderr[-2000:])
        if others := [said for said in done.stderr.splitlines() if not said.startswith(OURS)]:
            spoken[line] = others
    assert spoken == {}
