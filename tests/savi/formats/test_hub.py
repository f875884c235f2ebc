"""Pairs of a data set on the hub, against a stand-in over loopback: the rows, and only the videos that they name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from savi.formats.table import read_any_pairs, write_any_pairs
from tests.benchmarks.data.hub import Hub
from tests.savi.cli.test_cli import ROOT
from tests.savi.loop.test_preferences import make


def command(hub: Hub, home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    line = [sys.executable, "-m", "savi", "export", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, env=environment, cwd=home, check=False, timeout=240)


def test_a_hub_id_is_read_with_its_videos(tmp_path: Path) -> None:
    repository, home = tmp_path / "repository", tmp_path / "home"
    home.mkdir()
    pairs = [make(repository, number) for number in range(2)]
    for number in range(4):
        (repository / "videos").mkdir(parents=True, exist_ok=True)
        (repository / "videos" / f"{number}.mp4").write_bytes(b"clip" * (number + 1))
    write_any_pairs(repository / "train.jsonl", pairs, "trl", relative=True)
    with Hub({"us/pairs": repository}) as hub:
        done = command(hub, home, "us/pairs", "--out", home / "out.jsonl", "--format", "savi")
        assert done.returncode == 0, done.stderr[-2000:]
        assert "looking up the data set us/pairs" in done.stderr
        sent = {name for name in hub.sent if name.endswith(".mp4")}
        assert sent == {"videos/0.mp4", "videos/1.mp4"}, "no video that no row names"
        made = read_any_pairs(home / "out.jsonl")
        assert [(pair.pair_id, pair.prompt, pair.chosen) for pair in made] == [(pair.pair_id, pair.prompt, pair.chosen) for pair in pairs]
        assert [Path(pair.video).read_bytes() for pair in made] == [b"clip", b"clipclip"]
        absent = command(hub, home, "us/other", "--out", home / "other.jsonl")
        assert absent.returncode == 5 and "the hub has no such dataset" in absent.stderr
        assert "Traceback" not in absent.stderr
