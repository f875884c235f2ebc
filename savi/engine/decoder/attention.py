"""Attention of a batch's new tokens over stacked prefixes and their own branches, without a loop over videos.

Rows of one video are put side by side (slots), so that one kernel reads each prefix once for all of them; the branch part is two small
products; their log-sum-exps join the two exactly. Shapes as in `savi.engine.branch_attention`, and V videos of n slots each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from savi.base.kernels import prefix_kernel
from savi.engine.branch_attention import attend
from savi.engine.prefix import KeyValues

NAME = "savi_static"


@dataclass
class Stacked:
    """The prefixes a batch reads: `kv` a layer, `[V, G, P, D]` each, of which the first `lengths[v]` tokens count.

    `lengths` is the host's copy of `used [V]`; `hidden [V, 1, 1, P]` is very negative beyond them; both are read where lengths differ.
    `slots [V * n]`: the row in each slot (0 in an empty one); `places [B]`: the slot of each row; None: slots are the rows in order.
    """

    kv: Sequence[KeyValues]
    lengths: Sequence[int]
    used: Tensor
    hidden: Tensor
    slots: Tensor | None
    places: Tensor | None

    @property
    def equal(self) -> bool:
        """Whether all prefixes fill their place."""
        return min(self.lengths) == self.kv[0][0].shape[2]


def static_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    stacked: Stacked | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`query [B, H, q, D]`, `key`/`value [B, G, n, D]`, additive float32 `attention_mask [B, 1, q, n]` -> `[B, q, H, D]`.

    Raises:
        RuntimeError: called without prefixes or mask.
    """
    if stacked is None or attention_mask is None:
        raise RuntimeError(f"{NAME} attends to stacked prefixes and needs both them and a branch mask; use sdpa for other calls")
    rows, heads, new, width = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    scale = scaling if scaling is not None else width**-0.5
    folded = query.reshape(rows, kv_heads, group * new, width)
    keys, values = stacked.kv[int(module.layer_idx)]  # type: ignore[arg-type]
    videos = keys.shape[0]
    placed = folded if stacked.slots is None else folded.index_select(0, stacked.slots)
    slots = placed.shape[0] // videos
    together = placed.view(videos, slots, kv_heads, group * new, width).transpose(1, 2).reshape(videos, kv_heads, -1, width)
    before, before_sum = _over_prefixes(together, keys, values, scale, stacked, one_token=new == 1)
    before = before.view(videos, kv_heads, slots, group * new, width).transpose(1, 2).reshape(-1, kv_heads, group * new, width)
    before_sum = before_sum.view(videos, kv_heads, slots, group * new).transpose(1, 2).reshape(-1, kv_heads, group * new)
    if stacked.places is not None:
        before, before_sum = before.index_select(0, stacked.places), before_sum.index_select(0, stacked.places)
    mask = attention_mask if new == 1 else attention_mask.repeat(1, 1, group, 1)  # queries are folded as (head of the group, token)
    own, own_sum = products(folded, key, value, scale, mask)
    out = torch.lerp(own.float(), before.float(), torch.sigmoid(before_sum - own_sum)[..., None]).to(query.dtype)
    return out.view(rows, heads, new, width).transpose(1, 2).contiguous(), None


def _over_prefixes(query: Tensor, keys: Tensor, values: Tensor, scale: float, stacked: Stacked, *, one_token: bool) -> KeyValues:
    """`query [V, G, m, D]` over each video's own prefix: output and log-sum-exp `[V, G, m]` (float32)."""
    if stacked.equal:
        return attend(query, keys, values, scale)
    if not one_token:  # a prompt is read once: scores of all its tokens at once would not fit, and kernels take the exact lengths
        each = [
            attend(query[v : v + 1], keys[v : v + 1, :, :length], values[v : v + 1, :, :length], scale)
            for v, length in enumerate(stacked.lengths)
        ]
        return torch.cat([out for out, _ in each]), torch.cat([lse for _, lse in each])
    half = query.dtype in (torch.float16, torch.bfloat16)
    if prefix_kernel(query.device.type, half=half, head_dim=query.shape[-1], equal_lengths=False) == "flash-attn":
        return flash_attn_over_prefixes(query, keys, values, scale, stacked.used)
    return products(query, keys, values, scale, stacked.hidden)


def flash_attn_over_prefixes(query: Tensor, keys: Tensor, values: Tensor, scale: float, used: Tensor) -> KeyValues:
    """The same by the package flash-attn, which splits keys and knows how many of them count (`used [V]`, int32, on the device)."""
    from flash_attn import flash_attn_with_kvcache

    out, lse, *_ = flash_attn_with_kvcache(
        query.transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        cache_seqlens=used,
        softmax_scale=scale,
        causal=False,
        return_softmax_lse=True,
    )
    return out.transpose(1, 2), lse


def products(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None) -> KeyValues:
    """Attention by two matrix products: `[N, G, m, D]` over `[N, G, k, D]` with an additive mask; scores and log-sum-exp in float32."""
    scores = _scores(query, key) * scale
    if mask is not None:
        scores = scores + mask
    total = scores.logsumexp(-1)
    return torch.matmul((scores - total[..., None]).exp().to(value.dtype), value), total


def _scores(query: Tensor, key: Tensor) -> Tensor:
    """Products in float32: 16-bit ones would round scores of 20 by 0.06."""
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        wide = torch.bmm(query.flatten(0, 1), key.flatten(0, 1).transpose(-1, -2), out_dtype=torch.float32)
        return wide.view(*query.shape[:-1], key.shape[2])
    return torch.matmul(query.float(), key.float().transpose(-1, -2))
