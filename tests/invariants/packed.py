"""Rows of random pairs on tiny random models, for the packed tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from savi.training.packing import PackedRow, PairTokens, VideoPrefix
from tests.savi.tiny import tiny_frames

if TYPE_CHECKING:
    from savi.engine.video_lm import VideoLM


def encode(lm: VideoLM, seed: int, frames: int = 4) -> VideoPrefix:
    """A random video as training takes it."""
    features = lm.features(tiny_frames(seed, frames))
    ids = lm.prefix_ids(features)
    positions, next_pos = lm.family.positions(ids, features)
    return VideoPrefix(ids, positions, next_pos, features)


def make_rows(
    lm: VideoLM, pairs: tuple[int, ...] = (2, 1, 3), *, seed: int = 0, frames: int = 4, empty_questions: bool = False
) -> list[PackedRow]:
    """One row for each video, with that many pairs of random lengths; ids avoid the special tokens."""
    generator = np.random.default_rng(seed)
    low, high = 8, int(lm.text_config.vocab_size) - 8

    def ids(longest: int, shortest: int = 1) -> tuple[int, ...]:
        return tuple(int(i) for i in generator.integers(low, high, int(generator.integers(shortest, longest + 1))))

    made = []
    visual = lm.family.visual_token_id
    for number, count in enumerate(pairs):
        rows = [PairTokens(() if empty_questions else ids(9), ids(5), ids(7)) for _ in range(count)]
        assert all(visual not in row.question + row.chosen + row.rejected for row in rows)
        made.append(PackedRow(encode(lm, 100 * seed + number, frames), tuple(rows)))
    return made


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Gradients of a loss, by parameter name; the model is left clean."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def relative_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest over the parameters of |one - other| / |other|, norms; parameters without any gradient are compared absolutely."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).norm() / other[name].norm().clamp(min=1e-12)) for name in other)
