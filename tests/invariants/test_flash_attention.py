"""The package flash-attn reads videos and the prefix of a training step: called as its documentation says, with the results of torch.

The kernel itself needs a GPU (tests/gpu); here a stand-in computes what it promises.
"""

from __future__ import annotations

import sys
import types

import pytest
import torch
import torch.nn.functional as F

from savi.base import kernels
from savi.engine import causal
from savi.training import tree_attention
from savi.training.packing import pack, packed_logps
from savi.training.tree_attention import use_tree_attention
from tests.invariants.packed import gradients, make_rows, relative_difference
from tests.savi.tiny import FAMILIES, tiny_family_lm, tiny_frames


def pretend(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The package is there from now on; what it is called with: query's shape, key heads. Models are loaded before: transformers looks for
    it too."""
    seen: list[tuple[int, ...]] = []

    def stand_in(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, softmax_scale: float | None, causal: bool) -> torch.Tensor:
        """[batch, tokens, heads, width]; fewer key heads than query heads are shared."""
        assert causal and q.shape[1] == k.shape[1] == v.shape[1]
        seen.append((*q.shape, k.shape[2]))
        moved = (part.transpose(1, 2) for part in (q, k, v))
        return F.scaled_dot_product_attention(*moved, is_causal=True, scale=softmax_scale, enable_gqa=True).transpose(1, 2)

    monkeypatch.setitem(sys.modules, "flash_attn", types.SimpleNamespace(flash_attn_func=stand_in))
    monkeypatch.setattr(causal, "causal_kernel", lambda *args, **keywords: "flash-attn")
    monkeypatch.setattr(tree_attention, "takes_flash_attn", lambda: True)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_a_video_is_read_with_the_same_result(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_family_lm(family)
    calls = pretend(monkeypatch)
    config = lm.family.text_model(lm.model).config
    own = config._attn_implementation  # type: ignore[union-attr]
    video = tiny_frames(0)
    found = lm.watch(video)
    layers = int(lm.text_config.num_hidden_layers)
    assert len(calls) == layers - 1, "of the last layer keys and values are all that is needed"
    assert {call[1] for call in calls} == {found.prefix.length}
    assert {call[4] for call in calls} == {int(lm.text_config.num_key_value_heads)}, "key heads are not copied"
    assert config._attn_implementation == own  # type: ignore[union-attr]
    monkeypatch.setattr(causal, "causal_kernel", lambda *args, **keywords: "torch")
    wanted = lm.watch(video)
    assert len(calls) == layers - 1
    for ours, theirs in zip(found.prefix.kv, wanted.prefix.kv, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)
    questions = ["what is red", "where is the circle"]
    assert [r.text for r in found.ask(questions, max_new_tokens=6)] == [r.text for r in wanted.ask(questions, max_new_tokens=6)]


@pytest.mark.parametrize("family", ["internvl-qwen2", "qwen2_5_vl"])
def test_a_training_step_has_the_same_gradients(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_family_lm(family)
    calls = pretend(monkeypatch)
    lm.model.requires_grad_(False)
    lm.family.text_model(lm.model).requires_grad_(True)
    rows = make_rows(lm)
    found = []
    for flash in (True, False):
        monkeypatch.setattr(tree_attention, "takes_flash_attn", lambda flash=flash: flash)
        before = len(calls)
        batch = pack(rows, lm.family, dtype=torch.float32, split=True)
        with use_tree_attention(lm.model):
            logps = packed_logps(lm.model, batch, lm.family)
        assert (len(calls) - before) == (int(lm.text_config.num_hidden_layers) if flash else 0)
        found.append((logps, gradients(lm.model, logps.sum())))
    assert {call[1] for call in calls[-int(lm.text_config.num_hidden_layers) :]} == {batch.tree.prefix_len}
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
    assert relative_difference(found[0][1], found[1][1]) < 1e-5


@pytest.mark.parametrize(
    ("device", "half", "head_dim", "installed", "asked", "kernel"),
    [
        ("cuda", True, 128, True, "", "flash-attn"),
        ("cuda", True, 128, True, "torch", "torch"),
        ("cuda", True, 128, False, "", "torch"),
        ("cuda", True, 20, True, "", "torch"),
        ("cuda", False, 128, True, "", "torch"),
        ("cpu", True, 128, True, "flash-attn", "torch"),
    ],
)
def test_when_it_is_taken(
    device: str, half: bool, head_dim: int, installed: bool, asked: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "flash_attn_installed", lambda: installed)
    monkeypatch.setenv("SAVI_ATTENTION", asked)
    assert kernels.causal_kernel(device, half=half, head_dim=head_dim) == kernel
    unequal = kernels.prefix_kernel(device, half=half, head_dim=head_dim, equal_lengths=False)
    assert unequal == ("flash-attn" if kernel == "flash-attn" else "matrix products")


def test_a_choice_that_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "flash_attn_installed", lambda: False)
    for asked, words in (("flash", "'flash'.*SAVI_ATTENTION.*auto, torch, flash-attn"), ("flash-attn", "not installed: pip install")):
        monkeypatch.setenv("SAVI_ATTENTION", asked)
        with pytest.raises(kernels.UsageError, match=words):
            kernels.takes_flash_attn()
