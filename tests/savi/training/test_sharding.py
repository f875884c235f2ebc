"""Sharded training, as far as one process can tell: what is spread, what is written, what is refused. Two processes: tests/invariants."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import DistributedType

from savi.engine.video_lm import VideoLM
from savi.loop.preferences import PreferencePair
from savi.training.checkpoints import last_checkpoint, seal
from savi.training.packing import pack, packed_logps
from savi.training.settings import SPEED_ONLY, DPOSettings
from savi.training.sharding import Plain, ShardingError, frozen_parameters, merged, set_up, sharding_of, trainer_options
from savi.training.trainer import train, trainable
from savi.training.tree_attention import use_tree_attention
from tests.invariants.packed import make_rows
from tests.savi.scripted import random_pairs, write_clips
from tests.savi.tiny import tiny_family_lm, tiny_video_lm

FSDP = DPOSettings(sharding="fsdp2")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[PreferencePair]:
    return random_pairs(write_clips(tmp_path_factory.mktemp("clips"), 1), per_video=1)


def trainer(**state: Any) -> Any:
    """As much of a Trainer as `set_up` looks at."""
    made = SimpleNamespace(**{"distributed_type": DistributedType.NO, "fsdp_plugin": None, "deepspeed_plugin": None, **state})
    return SimpleNamespace(accelerator=SimpleNamespace(state=made), args=SimpleNamespace(fsdp_plugin_args=None))


def plugin(**change: Any) -> Any:
    plain = {"fsdp_version": 2, "cpu_ram_efficient_loading": False, "activation_checkpointing": False}
    return SimpleNamespace(**{**plain, "transformer_cls_names_to_wrap": None, "ignored_modules": None, **change})


@pytest.mark.parametrize("kind", ["fsdp2", "deepspeed"])
def test_one_process_is_not_sharded(kind: str, pairs: list[PreferencePair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ShardingError, match=rf"{kind}.*torchrun"):
        train(tiny_video_lm(layers=1), pairs, DPOSettings.model_validate({"sharding": kind}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_settings() -> None:
    assert {"sharding"} < SPEED_ONLY < set(DPOSettings.model_fields)
    with pytest.raises(ValueError, match="engine 'packed'"):
        DPOSettings(sharding="fsdp2", engine="plain")


def test_deepspeed_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_video_lm(layers=1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ShardingError, match="not installed; sharding 'fsdp2' needs none"):
        trainer_options(DPOSettings(sharding="deepspeed"), lm.model, lm.family)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert trainer_options(DPOSettings(sharding="deepspeed"), lm.model, lm.family)["deepspeed"]["zero_optimization"] == {"stage": 2}
    assert trainer_options(DPOSettings(), lm.model, lm.family) == {}


def test_options_that_cannot_be_had_are_refused() -> None:
    lm = tiny_video_lm(layers=1)
    for state, message in (
        ({"deepspeed_plugin": SimpleNamespace(zero_stage=3)}, "stage 3 shards the vision tower"),
        ({"fsdp_plugin": plugin(fsdp_version=1)}, "version 1 is not supported"),
        ({"fsdp_plugin": plugin(cpu_ram_efficient_loading=True)}, "without weights"),
        ({"fsdp_plugin": plugin(activation_checkpointing=True)}, "gradient_checkpointing instead"),
    ):
        with pytest.raises(ShardingError, match=message):
            set_up(trainer(**state), lm.model, lm.family)
    assert set_up(trainer(deepspeed_plugin=SimpleNamespace(zero_stage=2)), lm.model, lm.family) == "deepspeed"
    assert set_up(trainer(), lm.model, lm.family) == "none"


@pytest.mark.parametrize("family", ["internvl-qwen2", "qwen3_vl", "llava_onevision"])
@pytest.mark.parametrize("lora", [0, 2])
def test_what_stays_whole(family: str, lora: int) -> None:
    """All that is outside of the language model, its head and their adapters; parameters that belong to no submodule too."""
    lm = tiny_family_lm(family)
    model = trainable(lm, DPOSettings(lora_r=lora))
    ours = plugin()
    assert set_up(trainer(fsdp_plugin=ours), model, lm.family) == "fsdp2"
    whole = {id(parameter) for part in ours.ignored_modules for parameter in part.parameters()}
    assert whole == {id(parameter) for parameter in frozen_parameters(model, lm.family)}
    names = {name for name, parameter in model.named_parameters() if id(parameter) not in whole}
    assert names == {name for name, _ in model.named_parameters() if "language_model." in name or "lm_head." in name}
    assert not any(parameter.requires_grad for parameter in frozen_parameters(model, lm.family))
    assert len(ours.transformer_cls_names_to_wrap) == 1
    assert ours.transformer_cls_names_to_wrap[0].endswith("DecoderLayer")


def test_adapters_are_merged_as_peft_does() -> None:
    lm = tiny_video_lm(layers=1)
    model: Any = trainable(lm, DPOSettings(lora_r=2, lora_alpha=6))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    found = merged(lm.model.state_dict(), 6 / 2)
    wanted = model.merge_and_unload().state_dict()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_a_plain_shell_writes_the_names_of_the_model(tmp_path: Path) -> None:
    """Also where files have other names than memory, and where two names share a tensor."""
    for family in ("llava_onevision", "internvl-qwen2"):
        lm = tiny_family_lm(family)
        if family == "internvl-qwen2":
            lm.model.config.tie_word_embeddings = lm.model.config.text_config.tie_word_embeddings = True
            lm.model.lm_head.weight = lm.model.get_input_embeddings().weight
        plain = Plain.of(lm.model)
        assert bool(plain.ties) == (family == "internvl-qwen2")
        state = {name: value.clone() for name, value in lm.model.state_dict().items() if name not in plain.ties}
        state |= {name: state[other] for name, other in plain.ties.items()}
        lm.save_pretrained(tmp_path / family / "whole")
        lm.model = plain.shell(lm.model)
        assert all(parameter.is_meta for parameter in lm.model.parameters())
        lm.save_pretrained(tmp_path / family / "shell", state=state)
        whole, shell = ({p.name: p.read_bytes() for p in (tmp_path / family / kind).iterdir()} for kind in ("whole", "shell"))
        assert whole == shell
        VideoLM.from_pretrained(tmp_path / family / "shell", device="cpu")


def test_copies_of_a_tree_count_for_it() -> None:
    """FSDP2's mixed precision copies dataclasses on their way to the layers; the check that the mask was applied must see through it."""
    from torch.distributed.utils import _apply_to_tensors

    lm = tiny_video_lm(layers=1)
    batch = pack(make_rows(lm, (2,)), lm.family, dtype=torch.float32)
    copy = _apply_to_tensors(lambda tensor: tensor.clone(), batch.tree)
    assert copy is not batch.tree
    with use_tree_attention(lm.model), torch.no_grad():
        wanted = packed_logps(lm.model, batch, lm.family)
        lm.model.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, "tree": _apply_to_tensors(lambda tensor: tensor.clone(), kwargs["tree"])}),
            with_kwargs=True,
        )
        torch.testing.assert_close(packed_logps(lm.model, batch, lm.family), wanted)


def test_checkpoints_know_how_they_were_sharded(tmp_path: Path) -> None:
    for name, kind in (("pytorch_model_fsdp_0", "fsdp2"), ("global_step4", "deepspeed"), ("other", "none")):
        checkpoint = tmp_path / kind / "checkpoint-4"
        (checkpoint / name).mkdir(parents=True)
        assert sharding_of(checkpoint) == kind
        torn = tmp_path / kind / "checkpoint-6"
        torn.mkdir()
        seal(checkpoint, "plan", {})
        other = "none" if kind == "fsdp2" else "fsdp2"
        with pytest.raises(ShardingError, match=rf"'{kind}', this one has '{other}'"):
            last_checkpoint(tmp_path / kind, "plan", other)
        assert last_checkpoint(tmp_path / kind, "plan", kind) == checkpoint
        assert not torn.exists(), "what is not sealed is removed"
    assert last_checkpoint(tmp_path, "plan", "fsdp2") is None
