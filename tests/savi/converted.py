"""What the tests of checkpoint conversion share: loading natively, and changing a source."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from savi.base.lock import is_lock
from savi.base.torchvision import fix_torchvision
from tests.savi.internvl_chat import write_shards

LAYER = "language_model.model.layers.0"


def load_native(folder: Path) -> Any:
    fix_torchvision()
    from transformers import AutoModelForImageTextToText

    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def names_in(folder: Path) -> list[str]:
    """What lies in a folder, but for the files of a lock, which stay when it is released."""
    return sorted(path.name for path in folder.iterdir() if not is_lock(path.name))


def has_sentencepiece(config: dict[str, Any]) -> bool:
    """Whether its tokenizer is a sentencepiece model, and so writes a bos token and takes a blank for a "▁"."""
    return config["llm_config"]["architectures"][0] not in ("Qwen2ForCausalLM", "Qwen3ForCausalLM")


def tags(config: dict[str, Any]) -> tuple[str, str, str, str]:
    """Tags of system, user and assistant, and the token that ends a turn."""
    if config["template"] == "phi3-chat":
        return "<|system|>\n", "<|user|>\n", "<|assistant|>\n", "<|end|>"
    return "<|im_start|>system\n", "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>"


def edit_config(folder: Path, **changes: Any) -> None:
    """Set fields by dotted name; None deletes."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name, value in changes.items():
        *outer, last = name.split("__")
        place = config
        for key in outer:
            place = place[key]
        if value is None:
            place.pop(last)
        else:
            place[last] = value
    path.write_text(json.dumps(config))


def rewrite(source: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = {key: tensor for path in sorted(source.glob("*.safetensors")) for key, tensor in load_file(path).items()}
    for path in source.glob("model*"):
        path.unlink()
    change(weights)
    write_shards(source, weights, 1)
