"""Rotary settings, system messages and token lists, in each of the forms in which versions of transformers wrote them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from savi.conversion.checkpoint import convert
from savi.conversion.rope import rope_parameters
from tests.savi.converted import edit_config, load_native, load_tokenizer
from tests.savi.internvl_chat import phi3_config, qwen2_config, reference_logits, write_checkpoint


@pytest.mark.parametrize(
    "change",
    [
        {"rope_theta": 500000.0},
        {"rope_theta": None, "rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        {"rope_theta": 500000, "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}},
        {"rope_theta": 500000.0, "rope_scaling": {"type": "default", "rope_type": "default"}},
    ],
)
def test_theta_is_read_wherever_it_stands(tmp_path: Path, change: dict[str, Any]) -> None:
    config = qwen2_config()
    weights = write_checkpoint(tmp_path / "source", config)
    edit_config(tmp_path / "source", **{f"llm_config__{key}": value for key, value in change.items()})
    ids = torch.arange(20, 50)
    with torch.no_grad():
        got = load_native(convert(tmp_path / "source", tmp_path / "native"))(input_ids=ids[None]).logits[0]
    right = config | {"llm_config": config["llm_config"] | {"rope_theta": 500000.0, "rope_scaling": None}}
    torch.testing.assert_close(got, reference_logits(right, weights, ids, None, -1), atol=5e-5, rtol=1e-4)
    guessed = config | {"llm_config": right["llm_config"] | {"rope_theta": 10000.0}}
    assert (reference_logits(guessed, weights, ids, None, -1) - got).abs().max() > 0.1, "the comparison sees another theta"


def test_kinds_of_rope_by_both_names() -> None:
    for key in ("type", "rope_type"):
        for place in ("rope_scaling", "rope_parameters"):
            said = {"rope_theta": 1e6, place: {key: "dynamic", "factor": 2.0}}
            assert rope_parameters(said, "InternLM2ForCausalLM") == {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0}
    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert rope_parameters({"rope_theta": 5e5, "rope_scaling": llama3}, "LlamaForCausalLM") == llama3 | {"rope_theta": 5e5}
    assert rope_parameters({}, "Qwen2ForCausalLM") == {"rope_type": "default", "rope_theta": 10000.0}


@pytest.mark.parametrize("message", ["You answer in one word.", ""])
def test_the_configs_system_message_replaces_the_templates(tmp_path: Path, message: str) -> None:
    write_checkpoint(tmp_path / "source", qwen2_config())
    edit_config(tmp_path / "source", system_message=message)
    tokenizer = load_tokenizer(convert(tmp_path / "source", tmp_path / "native"))
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text == f"<|im_start|>system\n{message}<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"


def test_no_system_message_in_the_config_is_the_templates(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source", qwen2_config())
    edit_config(tmp_path / "source", system_message="x")
    edit_config(tmp_path / "source", system_message=None)
    tokenizer = load_tokenizer(convert(tmp_path / "source", tmp_path / "native"))
    assert "书生" in tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)


@pytest.mark.parametrize("where", ["added_tokens.json", "tokenizer.json"])
def test_a_qwen_tokenizer_without_added_tokens_decoder(tmp_path: Path, where: str) -> None:
    source = tmp_path / "source"
    write_checkpoint(source, qwen2_config())
    expected = load_tokenizer(convert(source, tmp_path / "expected"))
    if where == "tokenizer.json":  # as transformers 5 writes it: everything in one file
        (source / "tokenizer.json").write_bytes((tmp_path / "expected" / "tokenizer.json").read_bytes())
        for name in ("added_tokens.json", "vocab.json", "merges.txt"):
            (source / name).unlink()
    settings = json.loads((source / "tokenizer_config.json").read_text())
    del settings["added_tokens_decoder"]
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    got = load_tokenizer(convert(source, tmp_path / "native"))
    text = "<|im_start|>user\n<img><IMG_CONTEXT></img> the red cup<|im_end|>\n"
    assert got(text)["input_ids"] == expected(text)["input_ids"]
    assert got.get_vocab() == expected.get_vocab()


def test_a_llama_tokens_blanks(tmp_path: Path) -> None:
    """Phi-3's tags swallow the line end after them, and text after a tag gets no blank of its own (`legacy` false)."""
    source = tmp_path / "source"
    write_checkpoint(source, phi3_config())
    settings = json.loads((source / "tokenizer_config.json").read_text())
    for entry in settings["added_tokens_decoder"].values():
        entry["rstrip"] = entry["content"] in ("<|user|>", "<|end|>")
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    swallowed = load_tokenizer(convert(source, tmp_path / "a"))
    assert (
        swallowed("<|user|>\nred", add_special_tokens=False)["input_ids"] == swallowed("<|user|>red", add_special_tokens=False)["input_ids"]
    )
    red = swallowed.convert_ids_to_tokens(swallowed("<|user|>\nred", add_special_tokens=False)["input_ids"])
    assert red[:2] == ["<|user|>", red[1].replace("▁", "")]
    (source / "tokenizer_config.json").write_text(json.dumps(settings | {"legacy": True}))
    legacy = load_tokenizer(convert(source, tmp_path / "b"))
    assert legacy.convert_ids_to_tokens(legacy("<|user|>red", add_special_tokens=False)["input_ids"])[1].startswith("▁")
