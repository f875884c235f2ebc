"""The recording of the first commands in the README, docs/first_minutes.svg: `tox -e recording`.

Each command is really run; its lines appear in the picture when they appeared, pauses shortened, and all stay at the end. A viewer without
CSS animation shows the end. A module of the tests, as nobody else needs it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from savi.base.files import write_text_atomic
from savi.base.shipped import SHIPPED
from tests.documents.blocks import ROOT

COMMANDS = (
    "python -m benchmarks micro --build-videos clips --num-videos 8",
    f'python -m savi ask clips/0007.mp4 "{SHIPPED["micro"].question}" "{SHIPPED["micro"].criticise}" --model micro',
    "python -m reproduce paper --scale smoke",
)
WIDTH = 120
PAUSE_S = 0.8
"""The longest that the picture waits for a line."""
OUT = ROOT / "docs/first_minutes.svg"
_NAME = "recording"


@dataclass(frozen=True)
class Line:
    """A line of the terminal, and how many seconds after the start it was there."""

    text: str
    at_s: float
    typed: bool = False


def record(commands: tuple[str, ...], folder: Path) -> list[Line]:
    """Run the commands in a folder and return what a terminal shows.

    Raises:
        RuntimeError: one of them did not end with exit code 0.
    """
    as_in_a_terminal = {"PYTHONUNBUFFERED": "1", "COLUMNS": str(WIDTH), "NO_COLOR": "1"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **as_in_a_terminal}
    lines, start = [], time.perf_counter()
    for command in commands:
        lines.append(Line(command, time.perf_counter() - start, typed=True))
        shell = re.sub(r"^python ", f"{sys.executable} ", command)
        with subprocess.Popen(
            ["bash", "-c", shell],
            cwd=folder,
            env=environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as running:
            assert running.stdout is not None
            lines += [Line(line.rstrip("\n"), time.perf_counter() - start) for line in running.stdout]
        if running.returncode:
            raise RuntimeError(f"{command}: exit code {running.returncode}: {lines[-1].text}")
        lines.append(Line("", time.perf_counter() - start))
    return lines


def draw(lines: list[Line], title: str) -> str:
    """The lines as an animated SVG that asks for no font and no other file."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True, color_system="truecolor", highlight=False)
        shown: list[float] = []
        for line, at in zip(lines, _shortened([line.at_s for line in lines]), strict=True):
            text = Text.assemble(("$ ", "bold green"), (line.text, "bold")) if line.typed else Text(line.text)
            shown += [at] * len(text.wrap(console, WIDTH))
            console.print(text, soft_wrap=False)
        svg = console.export_svg(title=title, unique_id=_NAME)
    svg = re.sub(r"@font-face \{.*?\}\n?", "", svg, flags=re.DOTALL)
    style = "@keyframes show{from{visibility:hidden}}@media(prefers-reduced-motion:reduce){text{animation:none!important}}"
    svg = svg.replace("<style>", f"<style>{style}", 1)
    return re.sub(
        rf'clip-path="url\(#{_NAME}-line-(\d+)\)"',
        lambda found: (
            f'{found[0]} style="animation:show 1ms {shown[int(found[1])]:.1f}s backwards"' if int(found[1]) < len(shown) else found[0]
        ),
        svg,
    )


def _shortened(times: list[float]) -> list[float]:
    out, before = [0.5], times[0]
    for now in times[1:]:
        out.append(out[-1] + min(now - before, PAUSE_S))
        before = now
    return out


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        began = time.perf_counter()
        made = record(COMMANDS, Path(place))
        picture = draw(made, f"the first {time.perf_counter() - began:.0f} seconds")
    write_text_atomic(OUT, picture)
    print(f"{OUT}: {len(picture.encode()):,} bytes")
