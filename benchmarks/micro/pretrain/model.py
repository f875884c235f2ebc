"""The micro base model's architecture: InternVL (transformers' native class) with a 64-pixel vision tower and a small Qwen2 language model.

Shapes: a frame is 64 patches of 8 x 8 pixels; pixel-unshuffle by 4 leaves 4 visual tokens a frame, 32 a video.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.micro.pretrain.wording import BOS, EOS, IMG, PAD, vocabulary, write_tokenizer
from benchmarks.micro.world.world import FRAMES, SIZE
from savi.base.files import follow_umask, sync_files, write_text_atomic

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import InternVLForConditionalGeneration

PATCH, RATIO = 8, 0.25
TOKENS_PER_FRAME = int((SIZE // PATCH * RATIO) ** 2)
VISUAL_TOKENS = FRAMES * TOKENS_PER_FRAME


def new_model(
    seed: int, *, hidden: int = 128, layers: int = 5, vision_hidden: int = 96, vision_layers: int = 2
) -> InternVLForConditionalGeneration:
    """A freshly initialised micro model in fp32. Position embeddings of the vision tower start at zero in this class, where nothing
    would tell patches apart: they are drawn N(0, 0.2). Layers of the language model start small (N(0, 0.02)): with larger ones letters
    are learned but looking things up in the video is not."""
    from savi.base.torchvision import fix_torchvision

    fix_torchvision()  # before transformers looks for torchvision
    import torch
    from transformers import InternVLConfig, InternVLForConditionalGeneration, Qwen2Config
    from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

    torch.manual_seed(seed)
    ids = {w: i for i, w in enumerate(vocabulary())}
    vision = InternVLVisionConfig(
        hidden_size=vision_hidden,
        num_hidden_layers=vision_layers,
        num_attention_heads=vision_hidden // 32,
        intermediate_size=3 * vision_hidden,
        image_size=(SIZE, SIZE),
        patch_size=(PATCH, PATCH),
        layer_scale_init_value=1.0,
        attention_bias=True,
        norm_type="layer_norm",
    )
    text = Qwen2Config(
        vocab_size=len(ids),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
        pad_token_id=ids[PAD],
    )
    config = InternVLConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_id=ids[IMG],
        image_seq_length=TOKENS_PER_FRAME,
        downsample_ratio=RATIO,
        tie_word_embeddings=True,
    )
    m = InternVLForConditionalGeneration(config)
    with torch.no_grad():
        e = m.model.vision_tower.embeddings
        e.position_embeddings.normal_(0, 0.2)
        e.cls_token.normal_(0, 0.02)
        for name, p in m.named_parameters():
            if p.dim() == 2 and "vision_tower" in name:
                torch.nn.init.xavier_uniform_(p)
            elif p.dim() == 2 and "language_model" in name:
                p.normal_(0, hidden**-0.5 if "embed" in name else 0.02)
        _start_induction(m)
    g = m.generation_config
    g.pad_token_id, g.eos_token_id, g.bos_token_id = ids[PAD], ids[EOS], ids[BOS]
    return m


def _start_induction(model: InternVLForConditionalGeneration) -> None:
    """Give every layer a head that looks for the same token (query and key weights alike) and the first two layers a head that looks
    one token
    back (a bias that rotary positions turn into a peak at distance 1): the two halves of an induction circuit (Olsson et al. 2022), from
    which binding a letter to its option is a matter of a few hundred steps instead of thousands. Only where training starts; nothing
    is fixed."""
    import torch

    text = model.config.text_config
    d = text.hidden_size // text.num_attention_heads
    freq = 10000.0 ** (-2 * torch.arange(4) / d)
    peak = (30 * d**0.5 / 4) ** 0.5
    for i, layer in enumerate(model.model.language_model.layers):
        a = layer.self_attn
        a.q_proj.weight[:d].normal_(0, text.hidden_size**-0.5)
        a.k_proj.weight[:d] = a.q_proj.weight[:d]
        if i < 2:
            a.k_proj.bias[d : d + 4] = peak
            a.q_proj.bias[d : d + 4] = peak * torch.cos(freq)
            a.q_proj.bias[d + d // 2 : d + d // 2 + 4] = -peak * torch.sin(freq)


def pixel_values(frames: NDArray[np.uint8]) -> torch.Tensor:
    """Frames `[B, T, H, W, 3]` uint8 -> `[B*T, 3, H, W]` float in -1..1 (mean and std 0.5)."""
    import torch

    x = torch.from_numpy(frames).float().div_(127.5).sub_(1.0)
    return x.flatten(0, 1).permute(0, 3, 1, 2).contiguous()


def image_features(model: InternVLForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """Projected visual tokens: `[N, 3, H, W]` -> `[N, TOKENS_PER_FRAME, D]`."""
    out = model.model.get_image_features(
        pixel_values=pixels, vision_feature_layer=-1, vision_feature_select_strategy="default", return_dict=True
    )
    f = out.pooler_output
    return f.reshape(pixels.shape[0], TOKENS_PER_FRAME, f.shape[-1])


def matrix_dtype() -> torch.dtype:
    """What matrix products are computed in: bfloat16 where the processor multiplies it in hardware, which takes less than half the time."""
    import torch

    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


@contextmanager
def quick_eye(model: InternVLForConditionalGeneration) -> Iterator[None]:
    """Inside, the vision tower multiplies in `matrix_dtype()`; with plain attention, as torch's fused one is slow backwards in bfloat16."""
    import torch

    config = model.model.vision_tower.config
    before, config._attn_implementation = config._attn_implementation, "eager"
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=matrix_dtype() == torch.bfloat16):
            yield
    finally:
        config._attn_implementation = before


CARD = """\
---
library_name: transformers
license: apache-2.0
pipeline_tag: video-text-to-text
tags:
- videosavi
---

# Micro base model

A video language model of InternVL's architecture, small enough for two CPU cores, trained from scratch on synthetic videos by
`python -m benchmarks micro --rebuild-base`; how is in training.json. It knows the words of the synthetic questions alone.
"""


def save_checkpoint(model: InternVLForConditionalGeneration, folder: Path, facts: dict[str, object]) -> None:
    """Write the checkpoint in fp16 with tokenizer and preprocessor; `facts` (how it was made) goes to training.json."""
    import copy

    import torch

    half = copy.deepcopy(model).to(torch.float16)
    half.save_pretrained(folder)
    follow_umask(folder)
    sync_files(folder.glob("*.safetensors"), folder)
    write_tokenizer(folder, SIZE, TOKENS_PER_FRAME)
    write_text_atomic(folder / "training.json", json.dumps(facts, indent=1) + "\n")
    write_text_atomic(folder / "README.md", CARD)
