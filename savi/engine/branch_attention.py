"""Attention of many branches over prefixes they share, without copying a prefix for every branch.

A query attends to its video's prefix and to its own branch; the two softmaxes are joined by their log-sum-exps, which is exact. All
branches of a video go through one product with its keys, so a long prefix is read once a step and not once a prompt. Registered as a
transformers attention function; it works on calls that bring `shared` (`SharedPrefixes`) and a branch mask, and refuses others.
Shapes: B rows, H query heads, G key heads, q new tokens, P prefix tokens, n branch tokens so far, D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from savi.base.kernels import prefix_kernel
from savi.engine.prefix import KeyValues, Prefix

NAME = "savi_branches"
LONG_PREFIX = 512
"""From this many prefix tokens on, sharing is faster than a copy a row; below, one call over copies is."""


@dataclass
class SharedPrefixes:
    """Prefixes and the rows that continue each: `groups` are `(start, end, prefix)`, contiguous and in order."""

    prefixes: Sequence[Prefix]
    groups: list[tuple[int, int, int]]

    @classmethod
    def of(cls, prefixes: Sequence[Prefix], rows: Sequence[int]) -> SharedPrefixes:
        """`rows[i]`: which prefix row i continues; equal ones must be neighbours."""
        groups: list[tuple[int, int, int]] = []
        for i, prefix in enumerate(rows):
            if groups and groups[-1][2] == prefix:
                groups[-1] = (groups[-1][0], i + 1, prefix)
            else:
                groups.append((i, i + 1, prefix))
        return cls(prefixes, groups)

    def select(self, kept: Sequence[int]) -> SharedPrefixes:
        """The same for these rows only."""
        owner = [prefix for start, end, prefix in self.groups for _ in range(start, end)]
        return SharedPrefixes.of(self.prefixes, [owner[i] for i in kept])

    def layer(self, number: int, prefix: int) -> KeyValues:
        """Keys and values `[1, G, P, D]` of one prefix in one layer."""
        return self.prefixes[prefix].kv[number]


def branch_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    shared: SharedPrefixes | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`query [B, H, q, D]`, `key`/`value [B, G, n, D]`, additive `attention_mask [B, 1, q, n]` -> `[B, q, H, D]`.

    Raises:
        RuntimeError: called outside of `sharing`: prefixes and mask would be missing.
    """
    if shared is None or attention_mask is None:
        raise RuntimeError(f"{NAME} attends to shared prefixes and needs both them and a branch mask; use sdpa for other calls")
    rows, heads, new, width = query.shape
    kv_heads = key.shape[1]
    scale = scaling if scaling is not None else width**-0.5
    folded = query.view(rows, kv_heads, heads // kv_heads, new, width)
    parts, sums = [], []
    for start, end, prefix in shared.groups:
        keys, values = shared.layer(int(module.layer_idx), prefix)  # type: ignore[arg-type]
        together = folded[start:end].transpose(0, 1).reshape(1, kv_heads, -1, width)
        out, lse = attend(together, keys, values, scale)
        shape = (kv_heads, end - start, heads // kv_heads, new)
        parts.append(out.view(*shape, width).transpose(0, 1))
        sums.append(lse.view(shape).transpose(0, 1))
    before, before_sum = (parts[0], sums[0]) if len(parts) == 1 else (torch.cat(parts), torch.cat(sums))
    own, own_sum = _plain(folded, key[:, :, None], value[:, :, None], scale, attention_mask[:, :, None])
    share = torch.sigmoid(before_sum - own_sum)[..., None]
    out = before.float() * share + own.float() * (1 - share)
    return out.to(query.dtype).reshape(rows, heads, new, width).transpose(1, 2).contiguous(), None


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> KeyValues:
    """Attention without a mask, `[V, G, m, D]` over `[V, G, P, D]`: output and log-sum-exp `[V, G, m]` (float32).

    torch's fused kernels give both, but only through operators below the public function; where one is not there, plain products do. On
    CUDA the flash kernel comes first, as it splits the keys: the memory-efficient one reads 8,290 of them on a few multiprocessors.
    """
    operators = torch.ops.aten
    half, width = query.dtype in (torch.float16, torch.bfloat16), query.shape[-1]
    if query.is_cuda and prefix_kernel("cuda", half=half, head_dim=width, equal_lengths=True) == "flash (torch)":
        out, lse, *_ = operators._scaled_dot_product_flash_attention(query, key, value, 0.0, False, False, scale=scale)
        return out, lse[..., : query.shape[2]].float()
    if query.device.type == "cpu" and hasattr(operators, "_scaled_dot_product_flash_attention_for_cpu"):
        out, lse = operators._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, False, scale=scale)
        return out, lse.float()
    if query.device.type == "cuda" and hasattr(operators, "_scaled_dot_product_efficient_attention"):
        out, lse, *_ = operators._scaled_dot_product_efficient_attention(query, key, value, None, True, scale=scale)
        return out, lse[..., : query.shape[2]].float()
    return _plain(query, key, value, scale, None)


def _plain(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None) -> KeyValues:
    """The same by plain products, in float32, with an additive mask."""
    scores = torch.matmul(query.float() * scale, key.float().transpose(-1, -2))
    if mask is not None:
        scores = scores + mask
    largest = scores.amax(-1, keepdim=True)
    weights = scores.sub_(largest).exp_()
    total = weights.sum(-1, keepdim=True)
    return torch.matmul(weights.to(value.dtype), value) / total.to(value.dtype), (total.log() + largest)[..., 0]


@contextmanager
def attention_as(config: Any, name: str) -> Iterator[None]:
    """Use an attention function for the time of a call; the model's own choice comes back after."""
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def register(name: str = NAME, function: Callable[..., tuple[Tensor, None]] = branch_attention) -> None:
    """Make an attention function known to transformers, with a mask function that hands a 4-D mask through as it is."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, sdpa_mask)
