"""A disk that fills up while a model is trained, at ten sizes: one line that names the want of room, exit 5, nothing torn; with more room
the same command ends in the files of an uninterrupted run. Needs root (it mounts a tmpfs)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from savi.base.errors import ExitCode
from tests.campaign.test_kills import clips, content, hf_home, pairs, train  # noqa: F401  # fixtures

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(3600)]
ENOUGH = 400
"""MB that hold everything the command writes."""


def mount(*arguments: str) -> bool:
    return subprocess.run(["mount", "-t", "tmpfs", *arguments], capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or not mount("-o", f"size={ENOUGH}m", "tmpfs", str(folder)):
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def megabytes(folder: Path) -> float:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 2**20


@pytest.mark.parametrize("lora_r", [0, 4], ids=["full", "lora"])
def test_train(pairs: Path, lora_r: int, disk: Path, tmp_path: Path) -> None:  # noqa: F811
    job = train(pairs, lora_r)
    whole = tmp_path / "whole" / "out"
    whole.mkdir(parents=True)
    job.run(whole)
    wanted, needed = content(whole), megabytes(whole)
    full = []
    for tenth in range(1, 6):
        size = max(1, round(needed * tenth / 6 * 1024))
        subprocess.run(["mount", "-o", f"remount,size={size}k", str(disk)], check=True)
        out = disk / "out"
        out.mkdir(exist_ok=True)
        process = job.start(out)
        _, said = process.communicate()
        if process.returncode == 0:
            continue  # checkpoints that later ones replace make the whole larger than what is there at any one time
        full.append(size)
        assert process.returncode == ExitCode.MACHINE, said
        assert "Traceback" not in said
        assert "room" in said.strip().splitlines()[-1], said
        assert not (out / "model").exists(), "a model that is there is whole"
    assert full, "the disk was never full"
    subprocess.run(["mount", "-o", f"remount,size={ENOUGH}m", str(disk)], check=True)
    job.run(disk / "out")
    assert content(disk / "out") == wanted
    print(f"{job.name}: full at {len(full)} of 5 sizes ({', '.join(f'{s} kB' for s in full)}), then the same {len(wanted)} files")
