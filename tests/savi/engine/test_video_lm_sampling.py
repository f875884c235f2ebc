"""Inverse-CDF sampling: the right distribution, the right set, streams that depend on seed and key only."""

from __future__ import annotations

import pytest
import torch

from savi.engine.sampling import GenerationSettings, choose, uniforms


def test_streams_depend_on_seed_and_key_only() -> None:
    a = uniforms(3, ["x", "y", "z"], 50)
    assert torch.equal(uniforms(3, ["z", "x"], 50), a[[2, 0]])
    assert torch.equal(uniforms(3, ["y"], 10)[0], a[1, :10])
    assert not torch.equal(uniforms(4, ["x"], 50)[0], a[0])
    assert not torch.equal(a[0], a[1])
    assert float(a.min()) >= 0
    assert float(a.max()) < 1
    assert float(uniforms(0, [str(i) for i in range(200)], 100).mean()) == pytest.approx(0.5, abs=0.01)


def test_greedy_takes_the_largest() -> None:
    logits = torch.tensor([[0.1, 3.0, -1.0], [5.0, 4.9, 0.0]])
    assert choose(logits, GenerationSettings(), None).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampling_has_the_softmax_distribution(temperature: float) -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    tokens = choose(logits.expand(len(grid), -1), GenerationSettings(temperature=temperature), grid)
    shares = torch.bincount(tokens, minlength=4).double() / len(grid)
    torch.testing.assert_close(shares, torch.softmax(logits.double() / temperature, -1), atol=1e-4, rtol=0)


def test_nucleus_keeps_the_smallest_set() -> None:
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    grid = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    tokens = choose(logits.expand(len(grid), -1), GenerationSettings(temperature=1.0, top_p=0.7), grid)
    shares = torch.bincount(tokens, minlength=4).double() / len(grid)
    torch.testing.assert_close(shares, torch.tensor([0.0, 2 / 3, 0.0, 1 / 3], dtype=torch.float64), atol=2e-4, rtol=0)
    only = choose(logits.expand(len(grid), -1), GenerationSettings(temperature=1.0, top_p=0.01), grid)
    assert set(only.tolist()) == {1}


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_extreme_uniforms_stay_inside_the_vocabulary(top_p: float) -> None:
    logits = torch.tensor([[0.0, -200.0, 0.0], [0.0, 0.0, -200.0]])
    settings = GenerationSettings(temperature=1.0, top_p=top_p)
    highest = torch.full((2,), 1 - 2.0**-53, dtype=torch.float64)
    for uniform in (torch.zeros(2, dtype=torch.float64), highest):
        tokens = choose(logits, settings, uniform)
        assert all(logits[i, token] == 0 for i, token in enumerate(tokens.tolist()))


@pytest.mark.parametrize("wrong", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_batch": 0}])
def test_settings_name_what_is_wrong(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GenerationSettings(**wrong)  # type: ignore[arg-type]


def test_sampling_without_numbers_is_an_error() -> None:
    with pytest.raises(ValueError, match="uniform"):
        choose(torch.zeros(1, 3), GenerationSettings(temperature=1.0), None)
