"""Processes that meet: a folder that not all of them see, an error in one of them, a slow one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.savi.launched import ENV, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SCRIPT = """
import os, sys, time
from pathlib import Path
from savi.base import processes as module
from savi.base.cli import errors, run_app
from savi.base.processes import joined
from savi.base.watch import working_on
case, folder, rank = sys.argv[1], Path(sys.argv[2]), int(os.environ["RANK"])
module.SEE_S = 1.0
with errors():
    with joined(folder / str(rank) if case == "apart" else folder) as processes:
        working_on("video clip.mp4 (test)")
        if case == "error" and rank == 1:
            raise OSError(28, "No space left on device", "part.jsonl")
        if case == "slow" and rank == 1:
            until = time.monotonic() + 12  # three times the silence that is allowed, without a word from this thread
            while time.monotonic() < until:
                sum(range(10000))
        processes.wait()
sys.stdout.write(f"done {rank}\\n")  # at once, so that two lines never mix
"""


def launch(case: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    (folder / "shared").mkdir()
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), case,
         str(folder / "shared")],
        capture_output=True, text=True, env={**ENV, **env}, cwd=ROOT, timeout=200, check=False,
    )  # fmt: skip


def test_a_folder_that_not_all_see_is_refused(tmp_path: Path) -> None:
    done = launch("apart", tmp_path)
    assert done.returncode != 0
    assert "does not see what process" in done.stderr
    assert "the folder must be on a file system that all processes share" in done.stderr
    assert "done" not in done.stdout


def test_an_error_in_one_ends_the_others_with_its_reason(tmp_path: Path) -> None:
    done = launch("error", tmp_path)
    assert done.returncode != 0
    assert "part.jsonl: no room left" in done.stderr
    assert "error: process 1 on " in done.stderr
    assert " has ended: " in done.stderr
    assert "done" not in done.stdout


def test_a_slow_process_is_waited_for(tmp_path: Path) -> None:
    done = launch("slow", tmp_path, SAVI_SILENCE_S="4")
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(done.stdout.split()) == ["0", "1", "done", "done"]
    assert not list((tmp_path / "shared").iterdir())
