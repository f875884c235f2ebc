"""How long it takes to start: each command line's help, `import savi`, and the shipped model's first answer, beside Python alone and
importing the model's class from transformers. Every round runs each way once, so that a ratio's two times were taken side by side.
Processor seconds stand beside wall seconds, since on a busy machine only those say what the work was.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.micro.world.videos import build_videos
from reproduce.speed.gate import timed_python
from savi.base.shipped import SHIPPED

CASE = "start"
PYTHON = "Python alone"
IMPORTS = "importing the model's class from transformers"
HELP_TARGET_S = 1.0
_CLIP = "clips/0007.mp4"
WAYS: dict[str, list[str]] = {
    PYTHON: ["-c", "pass"],
    IMPORTS: [
        "-c",
        "from savi.base.torchvision import fix_torchvision; fix_torchvision(); from transformers import InternVLForConditionalGeneration",
    ],
    "import savi": ["-c", "import savi"],
    "videosavi --help": ["-c", "from reproduce.videosavi import main; main()", "--help"],
    **{f"{package} --help": ["-m", package, "--help"] for package in ("savi", "benchmarks", "harness", "reproduce")},
    "savi ask --model micro": ["-m", "savi", "ask", _CLIP, SHIPPED["micro"].question, "--model", "micro"],
}
"""What is run, by name: the arguments of Python."""


def run_start(rounds: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Time every way in a temporary folder; returns a row a way, with its seconds by round."""
    wall: dict[str, list[float]] = {name: [] for name in WAYS}
    processor: dict[str, list[float]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as tmp:
        here = Path(tmp)
        build_videos(here / "clips", 8, 1)
        for _ in range(rounds):
            for name, arguments in WAYS.items():
                took, worked = timed_python(arguments, here, allowed=(0,))
                wall[name].append(took)
                processor[name].append(worked)
    rows = [row(name, wall) | {"cpu_seconds": processor[name]} for name in WAYS]
    say(table(rows))
    return rows


def row(name: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """A way's seconds, and its median ratio to the import that any answer of the model needs."""
    took = seconds[name]
    ratio = statistics.median(ours / theirs for ours, theirs in zip(took, seconds[IMPORTS], strict=True))
    met = statistics.median(took) < HELP_TARGET_S if name.endswith("--help") else None
    return {"name": name, "seconds": took, "ratio": ratio, "target_s": None if met is None else HELP_TARGET_S, "met": met}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [f"| start-up | seconds [range] | processor seconds | ratio to {IMPORTS} | target |", "|---|---|---|---|---|"]
    for one in rows:
        took = one["seconds"]
        target = "–" if one["met"] is None else f"under {one['target_s']:g} s: {'met' if one['met'] else 'not met'}"
        worked = statistics.median(one["cpu_seconds"])
        wall = f"{statistics.median(took):.2f} [{min(took):.2f}, {max(took):.2f}]"
        lines.append(f"| {one['name']} | {wall} | {worked:.2f} | {one['ratio']:.2f} | {target} |")
    return "\n".join(lines)
