"""`savi push` against a stand-in of the hub over loopback: what is sent, what is not, and that the token stays where it is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from savi.conversion.checkpoint import weights_fingerprint
from savi.formats.table import read_any_pairs
from savi.loop.preferences import write_pairs
from savi.publish.pairs_card import pairs_card_path, write_pairs_card
from tests.savi.cli.test_cli import ROOT, failed, run
from tests.savi.publish.receiver import Receiver
from tests.savi.scripted import random_pairs, write_clips
from tests.savi.tiny import tiny_checkpoint

TOKEN = "hf_secretsecretsecret"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Receiver]:
    with Receiver(tmp_path / "hub", TOKEN) as receiver:
        yield receiver  # type: ignore[misc]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")
    (folder / "conversion.json").write_text("{}")
    (folder / ".lock").touch()
    return folder


def push(hub: Receiver | None, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: the hub's client reads its environment once."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": "/nonexistent",
        "HF_TOKEN": TOKEN,
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
        **more,
    }
    if hub is not None:
        environment["HF_ENDPOINT"] = hub.url
    line = [sys.executable, "-m", "savi", "push", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, cwd=ROOT, check=False, timeout=240)
    assert "Traceback" not in done.stderr, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return done


def test_a_model(model: Path, hub: Receiver) -> None:
    done = push(hub, model, "us/tiny")
    assert done.returncode == 0, done.stderr
    assert hub.url in done.stdout
    sent = hub.root / "models" / "us" / "tiny"
    assert sorted(path.name for path in sent.iterdir()) == sorted(
        ["README.md", *(path.name for path in model.iterdir() if path.name not in ("conversion.json", ".lock"))]
    )
    assert hub.created["us/tiny"]["visibility"] == "private"
    assert len(hub.commits) == 1
    assert weights_fingerprint(sent) == weights_fingerprint(model)
    assert not (model / "README.md").exists(), "a push does not write into the folder"


def test_pairs_and_their_videos(hub: Receiver, tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "secret" / "clips", 2)
    pairs = random_pairs(clips)
    path = write_pairs(tmp_path / "secret" / "pairs.jsonl", pairs)
    write_pairs_card(pairs_card_path(path), pairs, file=path.name, settings={"num_frames": (8, "set")})
    done = push(hub, path, "us/pairs", "--with-videos", "--public")
    assert done.returncode == 0, done.stderr
    sent = hub.root / "datasets" / "us" / "pairs"
    assert hub.created["us/pairs"]["visibility"] == "public"
    again = read_any_pairs(sent / "train.jsonl")
    assert [replace(pair, video=Path(pair.video).name) for pair in again] == [replace(pair, video=Path(pair.video).name) for pair in pairs]
    assert {Path(pair.video).read_bytes() for pair in again} == {Path(pair.video).read_bytes() for pair in pairs}
    card = (sent / "README.md").read_text()
    assert "data_files: train.jsonl" in card and "| num_frames | 8 | set |" in card
    for file in (sent / "train.jsonl", sent / "README.md"):
        assert "secret" not in file.read_text(), "no path of this machine"


def test_a_dry_run_sends_nothing(model: Path, tmp_path: Path) -> None:
    result = run("push", model, "us/tiny", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "model.safetensors" in result.stdout and "README.md" in result.stdout and "conversion.json" not in result.stdout
    assert f"{(model / 'model.safetensors').stat().st_size:,}" in result.stdout
    assert "private model repository us/tiny; nothing was sent" in result.stdout
    path = write_pairs(tmp_path / "pairs.jsonl", random_pairs(write_clips(tmp_path, 2)))
    assert "train.jsonl" in run("push", path, "us/pairs", "--dry-run").stdout


def test_what_can_be_wrong(model: Path, hub: Receiver, tmp_path: Path) -> None:
    assert "write owner/name" in failed(run("push", model, "tiny"), 2)
    assert "no config.json" in failed(run("push", tmp_path, "us/tiny"), 2)
    assert "HF_HUB_OFFLINE is set" in failed(run("push", model, "us/tiny", HF_HUB_OFFLINE="1"), 5)
    without = push(hub, model, "us/tiny", HF_TOKEN="")
    assert without.returncode == 5 and "hf auth login" in without.stderr
    wrong = push(hub, model, "us/tiny", HF_TOKEN=TOKEN[:-1] + "x")
    assert wrong.returncode == 5 and "401" in wrong.stderr and "hf_secret" not in wrong.stderr
    hub.public.add("us/open")
    public = push(hub, model, "us/open")
    assert public.returncode == 2 and "say --public" in public.stderr
    hub.refuse = 403
    refused = push(hub, model, "us/tiny")
    assert refused.returncode == 5 and "the hub did not take it" in refused.stderr
    assert not hub.commits
    pairs = write_pairs(tmp_path / "pairs.jsonl", [replace(random_pairs(write_clips(tmp_path, 1))[0], video=str(tmp_path / "gone.mp4"))])
    assert "no such video" in failed(run("push", pairs, "us/pairs", "--with-videos", "--dry-run"), 2)
