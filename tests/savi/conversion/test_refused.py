"""Sources that cannot be converted are refused, by name, before anything is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from savi.base.errors import FileFormatError
from savi.base.hub import is_internvl_chat
from savi.conversion.checkpoint import CheckpointError, convert
from tests.savi.converted import LAYER, edit_config, load_native, names_in, rewrite


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ps_version": "v1"}, "pixel shuffle v2 only"),
        ({"select_layer": -2}, "select_layer -2"),
        ({"force_image_size": 448}, "force_image_size 448 differs"),
        ({"use_llm_lora": 8}, "merge them into the weights"),
        (
            {"llm_config__architectures": ["MambaForCausalLM"]},
            "MambaForCausalLM is not supported.*InternLM2ForCausalLM, Qwen2ForCausalLM, Llama",
        ),
        ({"llm_config__hidden_size": None}, "llm_config.hidden_size: Field required"),
        ({"llm_config__rope_scaling": {"type": "yarn", "factor": 4}}, "llm_config: rope type .yarn. is not supported"),
        (
            {"llm_config__rope_scaling": {"type": "dynamic", "rope_type": "linear", "factor": 2}},
            r"rope_scaling.type is dynamic but rope_scaling.rope_type is linear: which is right",
        ),
        (
            {"llm_config__rope_parameters": {"rope_theta": 10000.0}},
            r"rope_theta is 1000000 but rope_parameters.rope_theta is 10000.0: which is right",
        ),
        (
            {"llm_config__rope_parameters": {"rope_type": "dynamic", "factor": 4.0}},
            r"rope_scaling.factor is 2.0 but rope_parameters.factor is 4.0",
        ),
        ({"llm_config__rope_scaling": {"type": "dynamic"}}, "rope type 'dynamic' needs factor"),
        ({"llm_config__rope_scaling": {"type": "dynamic", "factor": "2"}}, "must be a number of at least 1"),
        ({"llm_config__rope_scaling": {"type": "linear", "factor": 2, "beta_fast": 3}}, "rope_scaling.beta_fast is not known"),
        ({"llm_config__rope_theta": -1}, "rope_theta is -1; it must be a positive number"),
        ({"llm_config__rope_theta": float("inf")}, "rope_theta is inf; it must be a positive number"),
        ({"llm_config__rope_theta": 10**400}, "it must be a positive number"),
        ({"llm_config__rope_scaling": {"type": "dynamic", "factor": float("inf")}}, "factor is inf; it must be a number of at least 1"),
        ({"llm_config__rope_scaling": {"type": "dynamic", "factor": True}}, "factor is True; it must be a number of at least 1"),
        ({"llm_config__rope_scaling": [2]}, "rope_scaling is no object"),
        ({"llm_config__num_key_value_heads": 3}, "do not divide"),
        ({"llm_config__intermediate_size": 64}, "of another shape.*config.json says"),
        ({"llm_config__num_hidden_layers": 3}, "9 missing .first: model.language_model.layers.2"),
        ({"llm_config__num_hidden_layers": 1}, "9 unexpected .first: model.language_model.layers.1"),
        ({"llm_config__vocab_size": 100}, "id 100|has id .* but the model has 100 embeddings"),
        ({"model_type": "internvl"}, "that is native already"),
        ({"model_type": "llava"}, "not 'internvl_chat'"),
        ({"template": None}, "template: Field required"),
    ],
)
def test_configs_that_do_not_fit_are_refused_before_anything_is_written(
    source: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    edit_config(source, **change)
    with pytest.raises(CheckpointError, match=message) as caught:
        convert(source, tmp_path / "native")
    assert str(source) in str(caught.value)
    assert names_in(tmp_path) == ["source"]


def test_a_config_nested_without_end_is_refused(source: Path, tmp_path: Path) -> None:
    (source / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"config.json: cannot be read as JSON .nested too deep"):
        convert(source, tmp_path / "native")
    with pytest.raises(FileFormatError, match=r"config.json: not JSON .nested too deep"):
        is_internvl_chat(source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("mlp1.3.bias"), "1 missing .first: model.multi_modal_projector.linear_2.bias"),
        (lambda w: w.update({"mlp1.7.bias": torch.zeros(3)}), "no rule for tensor mlp1.7.bias"),
        (lambda w: w.update({"language_model.base_model.lora_A.weight": torch.zeros(3)}), "merge the LoRA"),
        (lambda w: w.update({"mlp1.3.bias": torch.zeros(5)}), r"another shape .*linear_2.bias is \(5,\), config.json says \(32,\)"),
        (
            lambda w: w.update({"language_model.model.layers.0.attention.wqkv.weight": torch.zeros(63, 32)}),
            "does not fit config.json's heads",
        ),
        (lambda w: w.update({"mlp1.3.bias": torch.zeros(32, dtype=torch.int8)}), "type I8 are not supported.*not quantized"),
        (lambda w: w.pop("language_model.output.weight"), "1 missing .first: lm_head.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused(source: Path, tmp_path: Path, change: Callable, message: str) -> None:
    rewrite(source, change)
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "native")
    assert names_in(tmp_path) == ["source"]


def test_a_derived_buffer_is_not_weights(source: Path, tmp_path: Path) -> None:
    rewrite(source, lambda w: w.update({f"{LAYER}.attention.rotary_emb.inv_freq": torch.zeros(4)}))
    load_native(convert(source, tmp_path / "native"))


def test_files_that_are_missing_or_broken(source: Path, tmp_path: Path) -> None:
    second = source / "model-00002-of-00003.safetensors"
    whole = second.read_bytes()
    second.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"00002.*broken or cut off at.*download it again"):
        convert(source, tmp_path / "native")
    second.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        convert(source, tmp_path / "native")
    second.unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors of 3 weight files missing"):
        convert(source, tmp_path / "native")
    for path in source.glob("model*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        convert(source, tmp_path / "native")
    (source / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        convert(source, tmp_path / "native")
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        convert(tmp_path, tmp_path / "native")
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        convert(tmp_path / "absent", tmp_path / "native")


def test_a_tensor_in_two_files(source: Path, tmp_path: Path) -> None:
    first = source / "model-00001-of-00003.safetensors"
    tensors = load_file(first)
    second = load_file(source / "model-00002-of-00003.safetensors")
    key = next(iter(second))
    save_file(tensors | {key: second[key]}, first)
    with pytest.raises(CheckpointError, match="is in two files"):
        convert(source, tmp_path / "native")


def test_a_full_disk_is_told_first(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match=r"GB needed and 0\.0 GB free"):
        convert(source, tmp_path / "native")
    assert not (tmp_path / "native").exists()
