"""Models of other families are trained from start to end: DPO begins at ln 2, weights change, and what is written is loaded again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from savi.base.files import read_jsonl
from savi.engine.video_lm import VideoLM
from savi.training.settings import DPOSettings
from savi.training.trainer import train
from tests.savi.scripted import random_pairs, write_clips
from tests.savi.tiny import tiny_family_lm


@pytest.mark.parametrize("family", ["video_llama_3", "llava_next_video"])
@pytest.mark.parametrize("lora_r", [0, 4])
def test_train_and_load_again(family: str, lora_r: int, tmp_path: Path) -> None:
    lm = tiny_family_lm(family)
    before = {key: weight.clone() for key, weight in lm.model.state_dict().items()}
    pairs = random_pairs(write_clips(tmp_path / "clips", 2), per_video=2)
    settings = DPOSettings(lora_r=lora_r, learning_rate=1e-3, epochs=2, pairs_per_step=4, logging_steps=1, num_frames=4)
    result = train(lm, pairs, settings, tmp_path / "out")
    assert (result.steps, result.pairs_used) == (2, 4)
    losses = [row["loss"] for row in read_jsonl(tmp_path / "out/train/log.jsonl") if "loss" in row]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert losses[-1] < losses[0]
    again = VideoLM.from_pretrained(tmp_path / "out/model", device="cpu")
    after = again.model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert any("language_model" in key and "q_proj" in key for key in changed)
    assert not any("vision" in key or "projector" in key for key in changed)
