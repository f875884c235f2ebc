"""Commands started by torchrun, with gloo on a CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENV = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
    "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
}
for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
    ENV.pop(name, None)


def torchrun(count: int, *arguments: object, env: Mapping[str, str] = ENV) -> subprocess.Popen[str]:
    """`torchrun --nproc-per-node COUNT -m ...`, started."""
    launch = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m"]
    return subprocess.Popen(
        [*launch, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(env), cwd=ROOT,
        start_new_session=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str], code: int | None = 0) -> tuple[str, str]:
    """stdout and stderr of a launch that ended with this code (None: any but 0)."""
    out, errors = process.communicate(timeout=600)
    assert (process.returncode != 0) if code is None else (process.returncode == code), errors[-4000:]
    return out, errors


def beats(folder: Path) -> dict[int, dict[str, object]]:
    """What the processes at work in a folder say of themselves, by number."""
    found: dict[int, dict[str, object]] = {}
    for path in folder.glob(".beat-*"):
        if path.name.rpartition("-")[2].isdecimal():
            try:
                found[int(path.name.rpartition("-")[2])] = json.loads(path.read_text())
            except (OSError, ValueError):
                continue
    return found


def hit(
    process: subprocess.Popen[str],
    folder: Path,
    number: signal.Signals,
    ready: Callable[[dict[int, dict[str, object]]], bool],
    rank: int = 1,
) -> tuple[float, str, dict[str, object]]:
    """Send a signal to one process of a launch as soon as `ready(beats)`; seconds until the launch was over, its stderr, and what the
    process had said last."""
    until = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < until and not (ready(found := beats(folder)) and rank in found):
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()[1][-4000:]
    os.kill(int(str(found[rank]["pid"])), number)
    began = time.monotonic()
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    return time.monotonic() - began, errors, found[rank]


def files(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The bytes of some files."""
    return {name: (folder / name).read_bytes() for name in names}
