"""What the tests of checkpoint conversion share: loading natively, and changing a source."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

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


def is_internlm2(config: dict[str, Any]) -> bool:
    return config["llm_config"]["architectures"] == ["InternLM2ForCausalLM"]


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
