"""Gradient checkpointing: `auto` takes it where a step's activations would not fit in memory, since it costs a second forward pass."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from savi.engine.memory import available_bytes
from savi.training.examples import Example, VideoStore, make_units
from savi.training.settings import DPOSettings

if TYPE_CHECKING:
    from torch import nn

    from savi.engine.video_lm import VideoLM

_SHARE = 0.8
"""The share of free memory that activations may take: fragments, the head's logits and the mask need some as well."""
_OPTIMISER_BYTES = 16
"""A trained weight's master, gradient and Adam state, in float32."""


_SHARDED_BY_ACCELERATE = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")


def activation_bytes(text_config: Any, tokens: int, element: int) -> int:
    """What a forward pass over `tokens` keeps for the backward one without checkpointing.

    A layer's inputs to its norms (float32), its projections and attention, and four tensors of the MLP's width. At InternVL2.5-8B's shape
    that is 99 GB for 10,570 tokens; 108 were measured, with adapters whose inputs were kept a second time in float32.
    """
    hidden, inner = int(text_config.hidden_size), int(text_config.intermediate_size)
    return tokens * int(text_config.num_hidden_layers) * (16 * hidden + element * (14 * hidden + 4 * inner))


def step_tokens(examples: Sequence[Example], store: VideoStore, settings: DPOSettings) -> int:
    """The most padded tokens that one forward pass may have (`max_batch_tokens`, or the longest single row)."""
    prefix = max(store.lengths.values(), default=0)
    rows = [
        store.lengths.get(unit.video, prefix) + sum(examples[number].tokens.tokens for number in unit.examples)
        for unit in make_units(examples, settings.pairs_per_step)
    ]
    return max(max(rows), min(settings.max_batch_tokens, max(rows) * len(rows)))


def needs_checkpointing(lm: VideoLM, model: nn.Module, examples: Sequence[Example], store: VideoStore, settings: DPOSettings) -> bool:
    """What `gradient_checkpointing` comes to; `model` has its trained weights marked. Processes that share a model must agree: yes."""
    if settings.gradient_checkpointing != "auto":
        return settings.gradient_checkpointing
    if settings.sharding != "none" or any(os.environ.get(name, "").lower() == "true" for name in _SHARDED_BY_ACCELERATE):
        return True
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    free = available_bytes(lm.device) - _OPTIMISER_BYTES * trained
    element = next(lm.model.parameters()).element_size()
    return activation_bytes(lm.text_config, step_tokens(examples, store, settings), element) > _SHARE * free
