"""Attention over a prefix tree: every branch sees the shared prefix, its own ancestors and itself, and nothing else.

Registered with transformers as an attention function *and* a mask function. Without the second, transformers makes no mask at all for an
implementation it does not know, and a cached call of several tokens then silently drops keys. The module knows nothing of
preferences: a tree is a prefix length and a mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from savi.base.errors import ExitCode, SaviError
from savi.base.kernels import takes_flash_attn
from savi.engine.causal import causal

TREE_ATTENTION = "savi_tree"
"""The name this attention is registered under (`model.set_attn_implementation`)."""

SPLIT_FROM = 512
"""From this prefix length on, attention is computed in two calls (prefix plainly causal, branches with a small mask): about twice as fast
at 8k tokens. Below it, one call with the whole mask is faster."""


class MaskDroppedError(SaviError, RuntimeError):
    """A packed batch met an attention implementation that would not apply its mask, or whose layers never asked for it."""

    exit_code = ExitCode.USAGE


class Uses:
    """How many attention layers used a tree. An object of its own: FSDP2's mixed precision hands layers copies of dataclasses."""

    count = 0


@dataclass
class Tree:
    """The block structure of a packed batch.

    `mask` is additive, in the model's dtype: 0 where a query may look, -inf elsewhere; every query may look at itself, so no row is empty.
    Shape [B, 1, T, P + T] for the T branch positions when `split`, else [B, 1, P + T, P + T]. `prefix_len` is P, equal in all rows.
    `uses` is shared by copies of the tree.
    """

    prefix_len: int
    mask: Tensor
    split: bool
    uses: Uses = field(default_factory=Uses, compare=False)


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    tree: Tree | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface; query [B, H, S, D], key and value [B, KV, S, D] -> ([B, S, H, D], None).

    Without a `tree` (vision tower, generation, a plain forward) it is transformers' own sdpa attention.

    Raises:
        MaskDroppedError: a cached call of several tokens without a mask; sdpa would crop the keys.
    """
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    if tree is None:
        if attention_mask is None and 1 < query.shape[2] < key.shape[2]:
            raise MaskDroppedError("a cached call of several tokens came without its attention mask; pass attention_mask over all keys")
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    tree.uses.count += 1
    p = tree.prefix_len
    groups = int(getattr(module, "num_key_value_groups", 1))
    flash = tree.split and not dropout and takes_flash_attn()
    head = causal(query[:, :, :p], key[:, :, :p], value[:, :, :p], scaling) if flash else None
    if groups > 1:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    if tree.split:
        if head is None:
            head = F.scaled_dot_product_attention(
                query[:, :, :p], key[:, :, :p], value[:, :, :p], is_causal=True, scale=scaling, dropout_p=dropout
            )
        tail = F.scaled_dot_product_attention(query[:, :, p:], key, value, attn_mask=tree.mask, scale=scaling, dropout_p=dropout)
        out = torch.cat([head, tail], dim=2)
    else:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=tree.mask, scale=scaling, dropout_p=dropout)
    return out.transpose(1, 2).contiguous(), None


def tree_mask(batch_size: int, q_length: int, kv_length: int, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """transformers' mask interface. A call without padding and cache is plainly causal or brings its tree: no mask is made. Any other call
    gets transformers' own sdpa mask."""
    from transformers.masking_utils import sdpa_mask

    if attention_mask is None and q_length == kv_length:
        return None
    return sdpa_mask(batch_size=batch_size, q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, **kwargs)


def register_tree_attention() -> None:
    """Make the implementation known to transformers; safe to call often."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(TREE_ATTENTION, tree_attention)
    AttentionMaskInterface.register(TREE_ATTENTION, tree_mask)


def text_implementation(model: nn.Module) -> str:
    """The attention implementation of a model's language part."""
    config = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return str(text._attn_implementation)


def require_tree_attention(model: nn.Module) -> None:
    """Refuse to run a packed batch on any other implementation.

    Raises:
        MaskDroppedError: the language model would ignore the tree (flash attention, flex, sdpa) or add a Boolean mask (eager).
    """
    found = text_implementation(model)
    if found != TREE_ATTENTION:
        raise MaskDroppedError(
            f"attention implementation {found!r} would drop the mask of a packed batch: branches would see each other, the loss would be "
            f"wrong; run it inside savi.training.tree_attention.use_tree_attention(model), or set engine='plain'"
        )


def check_applied(tree: Tree) -> None:
    """Refuse the result of a forward pass in which no layer used the tree.

    Raises:
        MaskDroppedError: the model's forward did not hand the tree to its attention layers.
    """
    if tree.uses.count == 0:
        raise MaskDroppedError(
            "no attention layer of this model was given the tree: its forward drops keyword arguments, so packing cannot be used with it; "
            "set engine='plain'"
        )


@contextmanager
def use_tree_attention(model: nn.Module) -> Iterator[None]:
    """Run a model with tree attention in its language part, and put its own implementation back afterwards.

    Raises:
        MaskDroppedError: the model does not let its implementation be chosen.
    """
    register_tree_attention()
    config = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    before = text._attn_implementation
    text._attn_implementation = TREE_ATTENTION
    try:
        require_tree_attention(model)
        yield
    finally:
        text._attn_implementation = before
