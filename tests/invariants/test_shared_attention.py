"""Attention over a shared prefix and an own branch equals plain attention over their concatenation."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from savi.engine import branch_attention as module
from savi.engine.branch_attention import SharedPrefixes, attend, branch_attention
from savi.engine.prefix import Prefix


class Layer(torch.nn.Module):
    layer_idx = 0


def make_prefix(length: int, seed: int, dtype: torch.dtype) -> Prefix:
    generator = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(1, 2, length, 16, generator=generator).to(dtype) for _ in range(2))
    return Prefix(torch.arange(length), [(k, v)], length, length)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("new", [1, 5])
def test_equals_attention_over_the_whole(new: int, dtype: torch.dtype, tolerance: float) -> None:
    prefixes = [make_prefix(37, 1, dtype), make_prefix(70, 2, dtype)]
    owners = [0, 0, 0, 1, 1]
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(5, 6, new, 16, generator=generator).to(dtype)
    key, value = (torch.randn(5, 2, new + 4, 16, generator=generator).to(dtype) for _ in range(2))
    hidden = torch.rand(5, 1, new, new + 4, generator=generator) < 0.3
    hidden[..., -1] = False
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)
    out, _ = branch_attention(Layer(), query, key, value, mask, shared=SharedPrefixes.of(prefixes, owners))
    for i, owner in enumerate(owners):
        k, v = prefixes[owner].kv[0]
        whole_mask = torch.cat([torch.zeros(1, 1, new, k.shape[2], dtype=dtype), mask[i : i + 1]], -1)
        whole = scaled_dot_product_attention(
            query[i : i + 1],
            torch.cat([k, key[i : i + 1]], 2).repeat_interleave(3, 1),
            torch.cat([v, value[i : i + 1]], 2).repeat_interleave(3, 1),
            attn_mask=whole_mask,
        )
        torch.testing.assert_close(out[i], whole[0].transpose(0, 1), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("rows", [1, 7, 200])
def test_fused_and_plain_products_agree(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, n, 16, generator=generator) for n in (rows, 90, 90))
    out, lse = attend(query, key, value, 0.25)
    plain, plain_lse = module._plain(query, key, value, 0.25, None)
    torch.testing.assert_close(out, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse, plain_lse, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse, (query @ key.transpose(-1, -2) * 0.25).logsumexp(-1), atol=1e-5, rtol=1e-5)


def test_groups_follow_their_rows() -> None:
    shared = SharedPrefixes.of([make_prefix(3, i, torch.float32) for i in range(3)], [0, 0, 1, 2, 2, 2])
    assert shared.groups == [(0, 2, 0), (2, 3, 1), (3, 6, 2)]
    assert shared.select([1, 3, 5]).groups == [(0, 1, 0), (1, 3, 2)]


def test_without_prefixes_or_mask_it_refuses() -> None:
    query = torch.randn(1, 2, 1, 16)
    shared = SharedPrefixes.of([make_prefix(3, 0, torch.float32)], [0])
    with pytest.raises(RuntimeError, match="shared prefixes"):
        branch_attention(Layer(), query, query, query, torch.zeros(1, 1, 1, 1))
    with pytest.raises(RuntimeError, match="mask"):
        branch_attention(Layer(), query, query, query, None, shared=shared)
