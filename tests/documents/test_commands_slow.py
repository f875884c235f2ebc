"""The command lines of README and docs/, typed page by page in one empty folder, with the shipped model in place of larger ones."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents.blocks import PAGES, ROOT, Block, blocks, is_synopsis
from tests.documents.ledger import reason

ORDER = ("docs/index.md", "docs/align.md", "docs/gate_your_checkpoint.md", "docs/read_the_report.md", "README.md", "docs/extending.md")
"""Pages that make what later ones use; the others come after them."""
PLACES = {"VIDEOS": "clips", "DIR": "clips", "MODEL": "micro", "NAME": "egoschema", "runs/micro": "runs/smoke"}
"""What stands for the reader's own, by word."""
ENDS = {"harness gate": (0, 1, 3), "harness doctor": (0, 5), "benchmarks doctor": (5,), "benchmarks overlap": (5,)}
"""Commands that may end, or end on this machine without data sets, with another exit code than 0."""


def lines() -> list[tuple[str, str]]:
    """(page, command line) of all that is run, in order."""
    found = [block for page in PAGES for block in blocks(page)]
    found.sort(key=lambda block: ORDER.index(block.page) if block.page in ORDER else len(ORDER))
    found = [block for block in found if not any(map(is_synopsis, block.commands))]
    return [(block.page, line) for block in found for line in block.commands if reason(line) is None]


def test_what_is_run_is_python() -> None:
    assert len(lines()) > 20
    assert all(line.startswith("python -m ") for _, line in lines())
    assert all(any(f" {command} " in f"{line} " for _, line in lines()) for command in ENDS)


@pytest.mark.slow
def test_every_command_line(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "COLUMNS": "120"}
    for page, line in lines():
        words = [PLACES.get(word, word) for word in shlex.split(line)[1:]]
        if page == "docs/extending.md" and "--out" in words:
            shutil.rmtree(tmp_path / words[words.index("--out") + 1], ignore_errors=True)  # the page stands by itself
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
        allowed = ENDS.get(f"{words[1]} {words[2]}", (0,))
        assert done.returncode in allowed, (page, line, done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    _listing(_block("docs/align.md", "aligned/iter-1"), tmp_path / "aligned", but={"failures.jsonl"})
    _listing(_block("README.md", "runs/micro/run.json"), tmp_path / "runs/smoke")
    code = _block("README.md", "import savi").text.replace("models/InternVL2_5-1B", "micro").replace("clip.mp4", "clips/0007.mp4")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _block(page: str, first: str) -> Block:
    return next(block for block in blocks(ROOT / page) if block.first.startswith(first))


def _listing(block: Block, folder: Path, but: frozenset[str] | set[str] = frozenset()) -> None:
    """Every file and folder that a listing names is there."""
    there = {path.name for path in folder.rglob("*")}
    text = re.sub(r"\b(runs/micro|aligned)/", "", block.text)
    named = set(re.findall(r"[\w-]+(?:\.jsonl?\b|\.html|/)", text))
    assert len(named) >= 4
    assert {name.rstrip("/") for name in named} - there - but == set()
