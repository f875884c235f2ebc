"""How the next token is chosen: greedily, or by the inverse of the cumulative distribution with one uniform number a step.

A row's uniform numbers come from its own counter-based stream, seeded by the settings' seed and the row's key, so that what a
row says does not depend on which rows share its batch. The module knows logits and numbers, nothing of models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class GenerationSettings:
    """How replies are made. `temperature` 0 is greedy; `max_batch` bounds the rows of one batch (None: memory decides)."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_batch: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.max_batch is not None and self.max_batch < 1:
            raise ValueError(f"max_batch is {self.max_batch}; it must be at least 1")


def uniforms(seed: int, keys: Sequence[str], steps: int) -> Tensor:
    """Uniform numbers `[rows, steps]` in [0, 1), float64: row i depends on `seed` and `keys[i]` only."""
    rows = np.empty((len(keys), steps))
    for i, key in enumerate(keys):
        digest = hashlib.sha256(f"{seed}\x00{key}".encode(errors="surrogatepass")).digest()
        rows[i] = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little"))).random(steps)
    return torch.from_numpy(rows)


def choose(logits: Tensor, settings: GenerationSettings, uniform: Tensor | None) -> Tensor:
    """Next token `[B]` from `logits [B, V]` (float32); `uniform [B]` is needed when the temperature is above 0.

    Nucleus sampling (Holtzman et al., 2020) keeps the smallest set of most likely tokens whose mass reaches `top_p`. The sum is
    taken in float64, so that a difference of one float32 rounding between batches moves a token only where the uniform number
    falls into that rounding.
    """
    if settings.temperature == 0:
        return logits.argmax(-1)
    if uniform is None:
        raise ValueError("sampling needs one uniform number a row")
    probabilities = torch.softmax(logits.double() / settings.temperature, -1)
    if settings.top_p >= 1:
        cumulative = probabilities.cumsum(-1)
        index = torch.searchsorted(cumulative, (uniform[:, None] * cumulative[:, -1:]), right=True)
        return index[:, 0].clamp(max=logits.shape[-1] - 1)
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    cumulative = ordered.cumsum(-1)
    kept = torch.where(cumulative - ordered < settings.top_p, ordered, torch.zeros_like(ordered)).cumsum(-1)
    index = torch.searchsorted(kept, (uniform[:, None] * kept[:, -1:]), right=True)
    return order.gather(-1, index.clamp(max=logits.shape[-1] - 1))[:, 0]
