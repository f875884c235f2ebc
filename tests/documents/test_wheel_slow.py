"""The wheel: it holds every file that the packages need, and works where there is no checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from savi.base.shipped import SHIPPED
from tests.documents.blocks import ROOT

PACKAGES = ("savi", "benchmarks", "harness", "reproduce")


def run(command: list[object], folder: Path, seconds: float = 900) -> str:
    """What a command prints, run in a folder without anything of the checkout on its path."""
    hidden = ("PYTHONPATH", "SAVI_MODEL", "HF_HOME")
    environment = {**{k: v for k, v in os.environ.items() if k not in hidden}, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, (command, done.stdout[-3000:], done.stderr[-3000:])
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git would commit."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], ROOT)
    for name in listed.split("\0"):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    run([sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", folder, folder / "source"], folder)
    (made,) = folder.glob("*.whl")
    return made


@pytest.mark.slow
def test_it_has_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        inside = {name for name in file.namelist() if ".dist-info/" not in name}
    listed = set(
        run(
            [
                "git",
                "ls-files",
                "--cached",
                "--others",
                "--exclude-standard",
                *PACKAGES,
                "results/paper",
                "results/study/*.svg",
                "results/study/summary.json",
            ],
            ROOT,
        ).split()
    )
    assert inside == {name for name in listed if (ROOT / name).is_file() and not name.endswith("results/paper/README.md")}
    assert wheel.stat().st_size < 20e6


@pytest.mark.slow
def test_it_works_where_there_is_no_checkout(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, which finds only the other libraries in this one's."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    python, command = environment / "bin/python", environment / "bin/videosavi"
    run([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel], tmp_path)
    site = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], tmp_path).strip())
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")  # a folder in a .pth is searched, its own .pth are not read
    where = run([python, "-c", "import savi, benchmarks, harness, reproduce; print(savi.__file__, harness.__file__)"], tmp_path)
    assert all(Path(path).is_relative_to(site) for path in where.split())
    run([command, "benchmarks", "micro", "--build-videos", "clips", "--num-videos", 8], tmp_path)
    asked = [SHIPPED["micro"].question, SHIPPED["micro"].criticise]
    said = run([command, "ask", "clips/0007.mp4", *asked, "--model", "micro"], tmp_path).splitlines()
    assert said[1:2] + said[-1:] == ["A", "red comes f1 white comes f3 so red C wrong"]
    run([command, "reproduce", "paper", "--scale", "smoke", "--out", "smoke"], tmp_path)
    assert (tmp_path / "smoke/report.html").stat().st_size > 100_000
    assert "GRIM" in run([command, "reproduce", "audit"], tmp_path)
