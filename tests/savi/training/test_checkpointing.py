"""What makes a step fast leaves its result as it was: checkpointing by free memory, adapters without casts, the fused optimiser."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from savi.engine.video_lm import VideoLM
from savi.loop.preferences import PreferencePair
from savi.training import checkpointing
from savi.training.checkpointing import activation_bytes, needs_checkpointing, step_tokens
from savi.training.examples import VideoStore, tokenise
from savi.training.settings import DPOSettings
from savi.training.trainer import train, trainable
from tests.savi.scripted import FRAMES, random_pairs, write_clips
from tests.savi.tiny import tiny_checkpoint, tiny_video_lm

QUICK = DPOSettings(learning_rate=1e-3, epochs=1, pairs_per_step=4, warmup_ratio=0.0, beta=0.5, gradient_checkpointing="auto")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[PreferencePair]:
    return random_pairs(write_clips(tmp_path_factory.mktemp("clips"), 3))


def state(lm: VideoLM) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in lm.model.state_dict().items()}


def test_auto_leaves_the_same_bytes_whatever_memory_says(
    pairs: list[PreferencePair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, layers_run = [], []
    for number, free in enumerate((0, 2**50)):
        monkeypatch.setattr(checkpointing, "available_bytes", lambda device, free=free: free)
        lm = tiny_video_lm(layers=2)
        runs = 0

        def count(*_: object) -> None:
            nonlocal runs
            runs += 1

        lm.family.text_model(lm.model).layers[0].mlp.register_forward_pre_hook(count)  # type: ignore[union-attr]
        train(lm, pairs, QUICK, tmp_path / str(number))
        found.append(state(lm))
        layers_run.append(runs)
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    assert layers_run[0] > layers_run[1], "with no memory the layers run a second time"


def test_auto_counts_tokens_weights_and_memory(pairs: list[PreferencePair], monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_video_lm(layers=2)
    examples, _ = tokenise(lm, pairs, QUICK)
    store = VideoStore(lm, FRAMES)
    store.load(sorted({example.video for example in examples}))
    tokens = step_tokens(examples, store, QUICK)
    longest = step_tokens(examples, store, QUICK.model_copy(update={"max_batch_tokens": 1}))
    assert max(store.lengths.values()) < longest <= tokens <= QUICK.max_batch_tokens
    model = trainable(lm, QUICK)
    trained = 16 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    wanted = activation_bytes(lm.text_config, tokens, 4) / 0.8 + trained
    for free, answer in ((1.01 * wanted, False), (0.99 * wanted, True)):
        monkeypatch.setattr(checkpointing, "available_bytes", lambda device, free=free: int(free))
        assert needs_checkpointing(lm, model, examples, store, QUICK) is answer
    for fixed in (True, False):
        assert needs_checkpointing(lm, model, examples, store, QUICK.model_copy(update={"gradient_checkpointing": fixed})) is fixed
    monkeypatch.setattr(checkpointing, "available_bytes", lambda device: 2**50)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert needs_checkpointing(lm, model, examples, store, QUICK), "processes that share a model must agree"


def test_the_activations_of_8b_are_near_what_was_measured() -> None:
    """126 GB a step without checkpointing on an H200, of which 16 weights and 2 adapters with their optimiser."""

    class EightB:
        hidden_size, intermediate_size, num_hidden_layers = 4096, 14336, 32

    assert activation_bytes(EightB, 8290 + 6 * 380, 2) / 1e9 == pytest.approx(126 - 18, rel=0.15)


def test_adapters_compute_in_bfloat16_without_casts(pairs: list[PreferencePair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their inputs arrive as they are, their weights stay float32, and the result has the bytes it had with peft's casts."""
    from peft.tuners.lora.layer import LoraLayer

    source = tiny_checkpoint(tmp_path / "base", layers=2, dtype=torch.bfloat16)
    settings = QUICK.model_copy(update={"lora_r": 4, "gradient_checkpointing": False})
    casts: list[bool] = []
    cast = LoraLayer._cast_input_dtype

    def seen(self: LoraLayer, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        out = cast(self, x, dtype)
        assert dtype == torch.float32, "masters"
        casts.append(out.dtype != x.dtype)
        return out  # type: ignore[no-any-return]

    monkeypatch.setattr(LoraLayer, "_cast_input_dtype", seen)
    found = []
    for way in ("as they are", "cast"):
        if way == "cast":
            monkeypatch.setattr("peft.helpers.disable_input_dtype_casting", lambda model, active=True: contextlib.nullcontext())
        casts.clear()
        lm = VideoLM.from_pretrained(source, device="cpu")
        assert lm.model.dtype == torch.bfloat16
        train(lm, pairs, settings, tmp_path / way.replace(" ", "-"))
        found.append(state(lm))
        assert casts
        assert all(casts) if way == "cast" else not any(casts)
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_the_optimiser_is_fused_and_flex_is_refused(tmp_path: Path) -> None:
    assert QUICK.trl_config(tmp_path, total_steps=1, use_cpu=True, bf16=False).optim == "adamw_torch_fused"
    with pytest.raises(ValidationError, match="no faster"):
        DPOSettings(branch_attention="flex")
