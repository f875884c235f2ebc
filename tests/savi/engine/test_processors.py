"""Saved folders are anybody's: transformers' `AutoProcessor` opens them and prepares the same input, and TRL's own trainer trains them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from savi.conversion.checkpoint import convert
from savi.engine.video_lm import VideoLM
from savi.formats.table import write_any_pairs
from savi.training.settings import DPOSettings
from savi.training.trainer import train
from tests.savi.internvl_chat import internlm2_config, qwen2_config, write_checkpoint
from tests.savi.scripted import random_pairs, write_clips
from tests.savi.tiny import tiny_frames


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted InternVL, trained a step and saved."""
    folder = tmp_path_factory.mktemp("saved")
    write_checkpoint(folder / "source", qwen2_config(max_position_embeddings=4096))
    lm = VideoLM.from_pretrained(convert(folder / "source", folder / "native"), device="cpu")
    pairs = random_pairs(write_clips(folder, 1))
    return train(lm, pairs, DPOSettings(num_frames=2, learning_rate=1e-3), folder / "run").checkpoint


def processor_of(folder: Path) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(folder, local_files_only=True)


@pytest.mark.parametrize("config", [internlm2_config, qwen2_config])
def test_the_processor_prepares_what_we_do(config: Any, tmp_path: Path) -> None:
    """The same ids, and pixels equal up to the rounding of its resizing (frames of the tower's own size: exactly)."""
    write_checkpoint(tmp_path / "source", config())
    lm = VideoLM.from_pretrained(convert(tmp_path / "source", tmp_path / "native"), device="cpu")
    lm.save_pretrained(tmp_path / "saved")
    processor = processor_of(tmp_path / "saved")
    frames = tiny_frames(0, 4, size=16)
    content = [{"type": "video"}, {"type": "text", "text": "what is left"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)
    made = processor(text=[text], videos=[frames], return_tensors="pt", do_sample_frames=False, add_special_tokens=False)
    assert made["input_ids"][0].tolist() == [*lm.prefix_ids(frames).tolist(), *lm.prompt_ids("what is left")]
    ours = lm.family.prepare(frames, lm.features(frames).timing).pixels
    assert torch.allclose(made["pixel_values"].float(), ours.float(), atol=1e-4)


def test_trls_own_trainer_trains_a_saved_folder(saved: Path, tmp_path: Path) -> None:
    """On pictures: TRL's trainer takes no videos yet. One step, the loss of equal models, and weights that change."""
    from datasets import Dataset
    from PIL import Image
    from transformers import AutoModelForImageTextToText
    from trl import DPOConfig, DPOTrainer

    rows = [
        {
            "images": [Image.fromarray(tiny_frames(i, 1, size=16)[0])],
            "prompt": [{"role": "user", "content": "what is left"}],
            "chosen": [{"role": "assistant", "content": "the red cup"}],
            "rejected": [{"role": "assistant", "content": "yes"}],
        }
        for i in range(2)
    ]
    model = AutoModelForImageTextToText.from_pretrained(saved, local_files_only=True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    config = DPOConfig(
        str(tmp_path / "trl"), use_cpu=True, report_to=[], max_steps=1, per_device_train_batch_size=2, max_length=None, learning_rate=1e-3,
        bf16=False, gradient_checkpointing=False, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = DPOTrainer(model, args=config, train_dataset=Dataset.from_list(rows), processing_class=processor_of(saved))
    assert trainer.train().training_loss == pytest.approx(np.log(2), abs=1e-3)
    assert any(not torch.equal(before[key], value) for key, value in trainer.model.state_dict().items())


def test_files_have_the_mode_of_a_new_file(tmp_path: Path) -> None:
    """Of a converted, a saved and a trained model, of pairs and of cards, under any umask."""
    clips = write_clips(tmp_path / "clips", 1)
    for mask in (0o022, 0o007):
        old = os.umask(mask)
        try:
            folder = tmp_path / oct(mask)
            write_checkpoint(folder / "source", qwen2_config(max_position_embeddings=4096))
            lm = VideoLM.from_pretrained(convert(folder / "source", folder / "native"), device="cpu")
            lm.save_pretrained(folder / "saved")
            train(lm, random_pairs(clips), DPOSettings(num_frames=2), folder / "run")
            write_any_pairs(folder / "run" / "pairs.json", random_pairs(clips), "llama-factory")
        finally:
            os.umask(old)
        made = [path for name in ("native", "saved", "run") for path in (folder / name).rglob("*") if path.is_file()]
        modes = {oct(path.stat().st_mode & 0o777) for path in made if not path.name.startswith(".")}
        assert modes == {oct(0o666 & ~mask)}, {path.name: oct(path.stat().st_mode) for path in made}
