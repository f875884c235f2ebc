"""Plainly causal attention over a whole text, as a video is read and as the prefix of a training step is: by the package flash-attn where
`savi.base.kernels` says so, else by torch.

In theory it is as fast as torch's own flash kernel; `python -m reproduce speed --preset gpu --case reading` measures the two. The
module knows no model.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from savi.base.kernels import causal_kernel
from savi.engine.branch_attention import register

NAME = "savi_causal"


def causal(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """`query [B, H, S, D]` over `key`/`value [B, G, S, D]`, each token over itself and those before it -> `[B, H, S, D]`."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    if causal_kernel(query.device.type, half=half, head_dim=query.shape[-1]) == "flash-attn":
        from flash_attn import flash_attn_func

        moved = (part.transpose(1, 2) for part in (query, key, value))
        out: Tensor = flash_attn_func(*moved, softmax_scale=scale, causal=True)
        return out.transpose(1, 2)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)


def causal_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface -> `[B, S, H, D]`; a call with a mask or with earlier tokens is transformers' own sdpa."""
    if attention_mask is not None or query.shape[2] != key.shape[2]:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)  # type: ignore[no-any-return]
    return causal(query, key, value, scaling).transpose(1, 2).contiguous(), None


def reading_implementation(model: nn.Module, config: Any) -> str:
    """The attention that a model reads videos with: the package's where it runs for this model, else the model's own."""
    weight = next(model.parameters())
    half = weight.dtype in (torch.float16, torch.bfloat16)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    if causal_kernel(weight.device.type, half=half, head_dim=width) != "flash-attn":
        return str(config._attn_implementation)
    register(NAME, causal_attention)
    return NAME
