"""The tutorials' commands that need no download, typed one after the other in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VERDICT = (0, 1, 3)
"""Exit codes of the gate that are a verdict."""


def commands(page: str, before: str) -> list[str]:
    """The commands of a page up to a sentence."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert before in text
    return re.findall(r"^    python -m (.*)$", text.partition(before)[0], flags=re.MULTILINE)


@pytest.mark.slow
def test_align_then_gate(tmp_path: Path) -> None:
    lines = [*commands("align.md", "With your own"), *commands("gate_your_checkpoint.md", "In a CI job")]
    assert len(lines) == 7
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    for line in lines:
        done = subprocess.run([sys.executable, "-m", *shlex.split(line)], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode in (VERDICT if " gate " in line else (0,)), (line, done.stdout, done.stderr)
    assert (tmp_path / "aligned/iter-2/model/config.json").is_file()
