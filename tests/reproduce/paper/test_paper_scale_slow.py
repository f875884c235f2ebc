"""The code path of the paper's scales from start to end: a checkpoint as it is published, the user's own mp4 files, data sets at HF_HOME.

What is small: the model (its words follow a table, so that its questions are readable; which of them, what it read before decides, so that
answer, critique and revision differ), and the data sets, whose places twins take.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.catalog import PAPER
from benchmarks.micro.twins.twins import build_twins
from benchmarks.micro.world.videos import build_videos
from savi.base.files import read_jsonl
from tests.savi.converted import rewrite
from tests.savi.internvl_chat import qwen2_config, write_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[3]
WORDS = ("Ġthe", "red", "is", "the", "re", "th", "a", "o")
SETTINGS = ["machine.device=cpu", "loop.videos_per_iteration=5", "loop.answer_tokens=64", "training.pairs_per_step=12"]


def write_talker(folder: Path) -> None:
    """A published layout whose next token depends, nearly, on the last one alone: words, a question mark, the end."""
    write_checkpoint(folder, qwen2_config(max_position_embeddings=8192), shards=2)
    ids = json.loads((folder / "vocab.json").read_text()) | json.loads((folder / "added_tokens.json").read_text())
    follows = {"Ċ": WORDS, **dict.fromkeys(WORDS, (*WORDS, "?")), "?": ("<|im_end|>",)}

    def change(weights: dict[str, torch.Tensor]) -> None:
        embed, head = weights["language_model.model.embed_tokens.weight"], weights["language_model.lm_head.weight"]
        head.zero_()
        for place, (last, words) in enumerate(follows.items()):
            embed[ids[last]] = 0
            embed[ids[last], place] = 10
            for word in words:
                head[ids[word], place] = 2.1 if word == "?" else 2.0  # of its norm, 32 ** 0.5: e ** 11 against 1
        weights["language_model.model.norm.weight"].fill_(1)
        for key, weight in weights.items():
            if key.startswith("language_model.") and re.search(r"o_proj|down_proj", key):
                weight.mul_(0.3)
        said = head.abs().sum(1, keepdim=True) > 0
        head.add_(0.15 * torch.randn(head.shape, generator=torch.Generator().manual_seed(0)) * said)

    rewrite(folder, change)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lab's machine: published weights, prepared data sets, and a folder of videos with a known one and a broken one in it."""
    folder = tmp_path_factory.mktemp("lab")
    write_talker(folder / "InternVL2_5-0B")
    build_twins(folder / "hf", seed=1, size="smoke")
    build_videos(folder / "mine", 10, seed=3)
    shutil.copy(sorted((folder / "hf/nextqa/NExTVideo").iterdir())[0], folder / "mine/known.mp4")
    (folder / "mine/broken.mp4").write_bytes((folder / "mine/0000.mp4").read_bytes()[:900])
    return folder


def paper(lab: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "reproduce", "paper", "--scale", "1b", "--base", "InternVL2_5-0B", "--videos", "mine", "--exclude"]
    command += ["--iterations", "2", "--out", "run", "--offline", *(word for setting in SETTINGS for word in ("--set", setting)), *more]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(lab / "hf"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=lab, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def done(lab: Path) -> subprocess.CompletedProcess[str]:
    return paper(lab)


def test_every_stage_is_done(lab: Path, done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = lab / "run"
    assert "6 synthetic twins in the place of the data sets" in done.stdout
    assert "1 of 12 training videos are benchmark videos" in done.stdout
    stages = [line.split("] ")[1].split(":")[0] for line in done.stdout.splitlines() if line.startswith("[")]
    each = ["videos", "propose", "train", "evaluate", "gate"]
    assert stages == [
        "prepare",
        "overlap",
        "base/model",
        "base/evaluate",
        *(f"iter-{t}/{name}" for t in (1, 2) for name in each),
        "tables",
        "report",
    ]
    dealt = [(run / f"data/videos/iter-{t}.txt").read_text().split() for t in (1, 2)]
    assert [len(names) for names in dealt] == [5, 5]
    assert not set(dealt[0]) & set(dealt[1])
    assert "known.mp4" not in {*dealt[0], *dealt[1]}
    for t in (0, 1, 2):
        assert sorted(p.parent.name for p in (run / ("base" if t == 0 else f"iter-{t}") / "eval").glob("*/score.json")) == sorted(PAPER)
    for t in (1, 2):
        pairs = list(read_jsonl(run / f"iter-{t}/pairs.jsonl"))
        assert len(pairs) > 10
        assert all(pair["chosen"] != pair["rejected"] and pair["question"].endswith("?") for pair in pairs)
        assert set(json.loads((run / f"iter-{t}/gate.json").read_text())) == {"previous", "base"}, "never against published numbers"
    assert (run / "report.html").stat().st_size > 10_000


def test_each_iteration_trains_the_model_before(lab: Path, done: subprocess.CompletedProcess[str]) -> None:
    models = [lab / "run" / name for name in ("data/base-model", "iter-1/model", "iter-2/model")]
    weights = [
        load_file(folder / "model.safetensors") if (folder / "model.safetensors").exists() else _sharded(folder) for folder in models
    ]
    assert [set(w) for w in weights[1:]] == [set(weights[0])] * 2
    for before, after in itertools.pairwise(weights):
        changed = {key for key in before if not torch.equal(before[key].float(), after[key].float())}
        assert any("language_model" in key and "q_proj" in key for key in changed)
        assert not any("vision" in key for key in changed)
    logs = [[row for row in read_jsonl(lab / f"run/iter-{t}/train/log.jsonl") if "loss" in row] for t in (1, 2)]
    assert all(log and log[0]["loss"] == pytest.approx(0.693, abs=0.05) for log in logs), "DPO begins at ln 2"


def _sharded(folder: Path) -> dict[str, torch.Tensor]:
    return {key: tensor for path in sorted(folder.glob("*.safetensors")) for key, tensor in load_file(path).items()}


def test_a_broken_video_is_a_row_and_no_end(lab: Path, done: subprocess.CompletedProcess[str]) -> None:
    names = {name for t in (1, 2) for name in (lab / f"run/data/videos/iter-{t}.txt").read_text().split()}
    failed = list(read_jsonl(lab / "run/failures.jsonl"))
    assert [Path(row["what"]).name for row in failed] == (["broken.mp4"] if "broken.mp4" in names else [])


def test_no_published_number_stands_beside_twins(lab: Path, done: subprocess.CompletedProcess[str]) -> None:
    for name in ("results.md", "upstream.md", "leaderboard.md"):
        text = (lab / "run/tables" / name).read_text(encoding="utf-8")
        assert "iteration 2" in text or "iter-2" in text
        assert "paper:" not in text
        assert "STAR" not in text
    assert "synthetic" in (lab / "run/tables/results.md").read_text(encoding="utf-8")


def test_run_again_it_is_left_as_it_is(lab: Path, done: subprocess.CompletedProcess[str]) -> None:
    before = {p: p.read_bytes() for p in (lab / "run").rglob("*") if p.is_file() and not p.name.startswith(".")}
    again = paper(lab)
    assert again.returncode == 0, again.stderr
    assert "[1/" not in again.stdout, "no stage is begun"
    assert [p.name for p in before if p.read_bytes() != before[p]] == []
