"""The packed training step computes what transformers' own forward does on every lesson by itself, and learns the same from it."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from benchmarks.micro.pretrain.lessons import DRILLS, IGNORE, Mix, drill, prefix_ids, video_lessons
from benchmarks.micro.pretrain.packed import hidden_states, loss_of, pack
from benchmarks.micro.world.world import make_scene

MIX = Mix(critique=1, revise=1, direct=1, letter=1, match=1, ask=1, caption=1)


@pytest.fixture(scope="module")
def model() -> Any:
    from savi.base.torchvision import fix_torchvision

    fix_torchvision()
    from benchmarks.micro.pretrain.model import new_model

    return new_model(3, hidden=64, layers=2, vision_hidden=32, vision_layers=1)


def _alone(model: Any, tokens: list[int], labels: list[int], features: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states that predict a lesson's learned tokens, and these, from transformers' forward on the whole sequence by itself."""
    from benchmarks.micro.pretrain.language import embed

    head = prefix_ids() if features is not None else []
    ids = torch.tensor([head + tokens])
    x = model.get_input_embeddings()(ids) if features is None else embed(model, ids, features[None])
    y = torch.tensor([IGNORE] * len(head) + labels)
    at = (y[1:] != IGNORE).nonzero()[:, 0]
    return model.model.language_model(inputs_embeds=x, use_cache=False).last_hidden_state[0, at], y[1:][at]


def _batch(model: Any, videos: int) -> tuple[Any, torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    rng = random.Random(1)
    torch.manual_seed(0)
    features = torch.randn(videos, 32, 64)
    rows = [video_lessons(make_scene(rng), rng, MIX) for _ in range(videos)]
    drills = [drill(rng, kind) for kind in DRILLS]
    one_by_one = [_alone(model, a + b, [IGNORE] * len(a) + b, f) for row, f in zip(rows, features, strict=True) for a, b in row]
    one_by_one += [_alone(model, *d, None) for d in drills]
    return pack(rows, drills, drill_weight=1.0), features, one_by_one


def test_it_predicts_the_same_tokens_from_the_same_states(model: Any) -> None:
    batch, features, one_by_one = _batch(model, 7)  # over 32 lessons: more than one group
    assert len(batch.groups) >= 3
    assert torch.equal(batch.targets, torch.cat([y for _, y in one_by_one]))
    torch.testing.assert_close(hidden_states(model, batch, features, torch.float32), torch.cat([h for h, _ in one_by_one]))


def test_its_gradients_are_the_same(model: Any) -> None:
    batch, features, one_by_one = _batch(model, 2)
    parameters = [p for n, p in model.named_parameters() if "language_model" in n]
    mine = torch.autograd.grad(loss_of(model, batch, features, torch.float32), parameters)
    states, targets = (torch.cat(parts) for parts in zip(*one_by_one, strict=True))
    theirs = torch.autograd.grad(torch.nn.functional.cross_entropy(model.lm_head(states), targets), parameters)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-4)


def test_bfloat16_is_near(model: Any) -> None:
    batch, features, _ = _batch(model, 3)
    exact = hidden_states(model, batch, features, torch.float32)
    assert (hidden_states(model, batch, features, torch.bfloat16) - exact).norm() < 0.02 * exact.norm()


def test_a_lesson_does_not_see_its_neighbours(model: Any) -> None:
    rng = random.Random(4)
    one, other, third = video_lessons(make_scene(rng), rng, Mix(2, 0, 0, 0, 0, 0, 0)) + video_lessons(
        make_scene(rng), rng, Mix(1, 0, 0, 0, 0, 0, 0)
    )
    features = torch.randn(1, 32, 64)
    n = len(one[1])
    with_other = hidden_states(model, pack([[one, other]]), features, torch.float32)[:n]
    with_third = hidden_states(model, pack([[one, third]]), features, torch.float32)[:n]
    torch.testing.assert_close(with_other, with_third)


def test_a_drill_counts_by_its_weight(model: Any) -> None:
    rng = random.Random(5)
    rows, features = [video_lessons(make_scene(rng), rng, MIX)], torch.randn(1, 32, 64)
    text = [drill(rng, "letters")]
    without = loss_of(model, pack(rows), features, torch.float32)
    torch.testing.assert_close(loss_of(model, pack(rows, text, drill_weight=0.0), features, torch.float32), without)
    assert not torch.isclose(loss_of(model, pack(rows, text, drill_weight=1.0), features, torch.float32), without)
