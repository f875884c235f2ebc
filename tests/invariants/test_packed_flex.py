"""Flex attention over the branches gives what sdpa with its mask gives; what it cannot do is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.attention import flex_attention as flex

from savi.engine.video_lm import VideoLM
from savi.training.packing import PackedRow, pack, packed_logps
from savi.training.settings import DPOSettings
from savi.training.trainer import train
from savi.training.tree_attention import branch_blocks, require_branch_attention, use_tree_attention
from tests.invariants.packed import encode, gradients, make_rows, relative_difference
from tests.savi.tiny import tiny_family_lm, tiny_video_lm

KINDS = ("sdpa", "flex")


@pytest.fixture(scope="module")
def lm() -> VideoLM:
    lm = tiny_video_lm(layers=2)
    assert lm.text_config.num_attention_heads > lm.text_config.num_key_value_heads, "keys are shared by heads"
    return lm


@pytest.mark.parametrize("empty_questions", [False, True])
def test_the_block_mask_is_the_mask(lm: VideoLM, empty_questions: bool) -> None:
    """Position by position: several videos, unequal lengths, one without pairs; and the mask is no trivial one."""
    rows = make_rows(lm, (2, 1, 3), empty_questions=empty_questions)
    rows.insert(1, PackedRow(encode(lm, 7), ()))
    masked, blocks = (pack(rows, lm.family, dtype=torch.float32, split=True, branches=kind) for kind in KINDS)
    assert masked.tree.mask is not None
    seen = masked.tree.mask[:, 0] == 0
    rows_, queries, keys = torch.meshgrid(*(torch.arange(n) for n in seen.shape), indexing="ij")
    assert blocks.tree.blocks.shape == (*seen.shape[:1], 1, *seen.shape[1:])
    assert torch.equal(blocks.tree.blocks.mask_mod(rows_, 0 * rows_, queries, keys), seen)
    causal = keys <= queries + masked.tree.prefix_len
    assert 0.05 < float((causal & ~seen).float().mean()) < 0.9


@pytest.mark.parametrize("family", ["internvl-qwen2", "internvl-llama", "qwen2_5_vl", "smolvlm"])
def test_log_probabilities(family: str) -> None:
    lm = tiny_family_lm(family)
    rows = make_rows(lm, (2, 1, 3))
    with use_tree_attention(lm.model), torch.no_grad():
        masked, blocks = (packed_logps(lm.model, pack(rows, lm.family, dtype=torch.float32, branches=kind), lm.family) for kind in KINDS)
    torch.testing.assert_close(blocks, masked, rtol=1e-5, atol=1e-5)
    assert masked.std() > 0.1


def test_a_wrong_block_mask_is_noticed(lm: VideoLM) -> None:
    """Branches that hang on nothing but the prefix: the tolerance above is far below what that does."""
    batch = pack(make_rows(lm, (3,)), lm.family, dtype=torch.float32, branches="flex")
    length = batch.input_ids.shape[1] - batch.tree.prefix_len
    with use_tree_attention(lm.model), torch.no_grad():
        right = packed_logps(lm.model, batch, lm.family)
        one = torch.zeros(1, length, dtype=torch.long)
        batch.tree.blocks = branch_blocks(one, one, batch.tree.prefix_len)
        wrong = packed_logps(lm.model, batch, lm.family)
    assert (right - wrong).abs().max() > 0.1


def test_gradients(lm: VideoLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch keeps its uncompiled backward pass from CPUs; the arithmetic is there, and is what is compiled on a GPU."""
    monkeypatch.setattr(flex, "_validate_device", lambda *tensors: None)
    lm.model.requires_grad_(False)
    lm.family.text_model(lm.model).requires_grad_(True)
    found = []
    for kind in KINDS:
        with use_tree_attention(lm.model):
            batch = pack(make_rows(lm, (2, 1, 3)), lm.family, dtype=torch.float32, branches=kind)
            logps = packed_logps(lm.model, batch, lm.family)
        found.append(gradients(lm.model, (logps * torch.linspace(-1, 1, logps.numel()).view_as(logps)).sum()))
    lm.model.requires_grad_(False)
    assert len(found[0]) > 10
    assert relative_difference(found[1], found[0]) < 1e-5


def test_what_cannot_be_had_is_refused(lm: VideoLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be trained on a CPU.*use 'sdpa'"):
        train(lm, [], DPOSettings(branch_attention="flex"), tmp_path)
    require_branch_attention("sdpa", torch.device("cpu"))
    require_branch_attention("flex", torch.device("cuda"))
    lm.model.config.get_text_config().attention_dropout = 0.5
    lm.model.train()
    for layer in lm.family.text_model(lm.model).layers:
        layer.self_attn.attention_dropout = 0.5
    try:
        with use_tree_attention(lm.model), torch.no_grad(), pytest.raises(ValueError, match="no dropout"):
            packed_logps(lm.model, pack(make_rows(lm, (1,)), lm.family, dtype=torch.float32, branches="flex"), lm.family)
    finally:
        lm.model.eval()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_on_cuda(dtype: torch.dtype) -> None:
    """Log-probabilities and gradients of the compiled kernels, on shapes that change from batch to batch."""
    lm = tiny_video_lm(layers=2, hidden=256)
    lm.model.to(device="cuda", dtype=dtype)
    lm.model.requires_grad_(False)
    lm.family.text_model(lm.model).requires_grad_(True)
    close = 1e-4 if dtype == torch.float32 else 5e-2
    for pairs in ((2, 1, 3), (1,), (4, 2)):
        rows, found = make_rows(lm, pairs), []
        for kind in KINDS:
            with use_tree_attention(lm.model):
                logps = packed_logps(lm.model, pack(rows, lm.family, dtype=dtype, device="cuda", branches=kind), lm.family)
            found.append((logps.detach(), gradients(lm.model, logps.float().pow(2).mean())))
        torch.testing.assert_close(found[1][0], found[0][0], rtol=close, atol=10 * close)
        assert relative_difference(found[1][1], found[0][1]) < 10 * close
