"""A prefix is only read through its keys and values: ending its forward at the last layer's changes none of them."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers.cache_utils import DynamicCache

from savi.engine.prefix import PrefixCache, cache_keyword, complete_prefix
from savi.families import supported
from tests.savi.engine.test_families import FAMILIES, frames_for
from tests.savi.tiny import tiny_family_lm


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_and_values_are_those_of_the_whole_forward(family: str) -> None:
    lm = tiny_family_lm(family)
    watched = lm.watch(frames_for(family))
    ids = lm.prefix_ids(watched.features)
    positions, _ = lm.family.positions(ids, watched.features)
    cache = DynamicCache(config=lm.text_config)
    with torch.no_grad():
        lm.model(
            input_ids=ids[None],
            position_ids=positions.unsqueeze(-2),
            mm_encoder_outputs=lm.family.mm_encoder_outputs([watched.features]),
            use_cache=True,
            **{cache_keyword(lm.model): cache},
        )
    assert len(watched.prefix.kv) == len(cache.layers) == lm.text_config.num_hidden_layers
    for (keys, values), layer in zip(watched.prefix.kv, cache.layers, strict=True):
        assert torch.equal(keys, layer.keys)
        assert torch.equal(values, layer.values)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_computes_nothing_that_nobody_reads(family: str) -> None:
    lm = tiny_family_lm(family)
    layers = lm.family.text_model(lm.model).layers
    ran: list[int] = []
    for number, layer in enumerate(layers):
        layer.mlp.register_forward_hook(lambda *_, number=number: ran.append(number))
    lm.watch(frames_for(family))
    assert ran == list(range(len(layers) - 1))


def test_the_model_is_as_before_after_it() -> None:
    lm = tiny_family_lm("internvl-qwen2")
    lm.model.train()
    lm.watch(frames_for("internvl-qwen2"))
    assert lm.model.training
    lm.model.eval()
    ids = torch.tensor([[11, 12, 13]])
    assert torch.isfinite(lm.model(input_ids=ids).logits).all()
    assert torch.is_grad_enabled()


def test_a_forward_that_drops_the_cache_is_noticed() -> None:
    with pytest.raises(RuntimeError, match="without filling the cache"):
        complete_prefix(lambda: None)


def test_an_error_of_the_model_is_not_taken_for_the_end() -> None:
    lm = tiny_family_lm("internvl-qwen2")
    keywords = {cache_keyword(lm.model): PrefixCache(lm.text_config)}
    with pytest.raises(IndexError):
        complete_prefix(lambda: lm.model(input_ids=torch.tensor([[10**6]]), use_cache=True, **keywords))


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_deprecated_is_used(family: str) -> None:
    lm = tiny_family_lm(family)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watched = lm.watch(frames_for(family))
        watched.ask(["red", "what is red"], max_new_tokens=3)
        watched.score([("what", "red")])


def test_the_cache_is_given_by_the_name_that_a_model_knows() -> None:
    """Both names of the allowed range of transformers (5.24 renamed it), whichever is installed."""

    class Before:
        def forward(self, input_ids: object, past_key_values: object = None) -> None: ...

    class Since:
        def forward(self, input_ids: object, cache: object = None) -> None: ...

    assert (cache_keyword(Before()), cache_keyword(Since())) == ("past_key_values", "cache")


def test_every_supported_family_is_held_to_it() -> None:
    assert len(FAMILIES) >= len(supported())
