"""Each line that docs/release.md puts beside a command of the release, run at tiny size (the line of lmms-eval: test_evaluate_slow.py)."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import savi.__main__ as cli
from tests.savi.clips import grey_frames, write_clip
from tests.savi.internvl_chat import qwen2_config, write_checkpoint

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs/release.md").read_text(encoding="utf-8")
ASK = re.findall(r"^    (python -m savi ask .*)$", TEXT, flags=re.MULTILINE)


@pytest.mark.parametrize("line", ASK, ids=range(len(ASK)))
def test_lines_that_ask(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a checkpoint as it is published, and a clip of another shape than a tile."""
    monkeypatch.setenv("SAVI_CACHE", str(tmp_path / "cache"))
    write_checkpoint(tmp_path / "VideoSAVi", qwen2_config(max_position_embeddings=8192))
    clip = write_clip(tmp_path / "clip.mp4", grey_frames(12, width=96, height=40))
    places = {"VIDEO": str(clip), "FILE": str(tmp_path / "answer.json"), "yogkul2000/VideoSAVi": str(tmp_path / "VideoSAVi")}
    words = [places.get(word, word) for word in shlex.split(line)]
    assert set(places) - {"FILE"} <= set(shlex.split(line))
    result = CliRunner().invoke(cli.app, [*words[3:], "--json"])
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout[result.stdout.index("{") :])
    assert (value["max_tiles"], len(value["frames"]["indices"])) == (12, 8)
    assert value["answers"][0]["question"] == "What is happening in this video?"
    assert len(value["answers"][0]["follow_ups"]) == line.count("--follow-up")
    if "FILE" in line:
        assert json.loads((tmp_path / "answer.json").read_text()) == value
        assert value["settings"]["max_new_tokens"] == 1024
        assert value["settings"]["temperature"] == (0.7 if "--temperature" in line else 0)


@pytest.mark.slow
def test_the_extras_of_the_release_are_known_to_pip(tmp_path: Path) -> None:
    assert '    pip install -e ".[train,eval]"\n' in TEXT
    offline = ["--dry-run", "--no-build-isolation", "--no-index"]
    command = [sys.executable, "-m", "pip", "install", *offline, "-e", ".[train,eval,nothing]"]
    copied = tmp_path / "project"  # pip writes its metadata beside the sources
    copied.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (copied / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(command, cwd=copied, capture_output=True, text=True, check=False)
    if "No module named pip" in done.stderr or "setuptools" in done.stderr:
        pytest.skip("pip and setuptools are not installed here")
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "extra 'nothing'" in said, "a missing extra is a warning"
    assert "extra 'train'" not in said
    assert "extra 'eval'" not in said
