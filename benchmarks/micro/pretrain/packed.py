"""The language model's training step without padding: lessons of several videos as one flat row of tokens.

Everything but attention is computed on that row `[N, D]`. Attention is computed in groups of branches of about the same length: a branch
sees the prefix of its video and itself. The numbers are those of transformers' own forward (tested); queries, keys and values take one
matrix product instead of three, and the last layer is computed only where something is to be learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.micro.pretrain.lessons import IGNORE, Drill, Lesson, prefix_ids
from benchmarks.micro.pretrain.wording import IMG, Words

if TYPE_CHECKING:
    import torch
    from transformers import InternVLForConditionalGeneration

_PREFIX = prefix_ids()
_IMG_ID = Words().ids[IMG]
_IN_A_GROUP = 32
"""Branches computed together; more waste less time on calls and more on padding."""


class Group(NamedTuple):
    """Branches `[R]` of up to `m` tokens and `M` keys: where their queries `[R, m]` and keys `[R, M]` lie in the flat row, and what is
    added to their scores `[R, 1, m, M]` (0, or minus infinity where nothing is seen)."""

    queries: torch.Tensor
    keys: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True)
class Packed:
    """A batch: tokens, positions `[N]`, where visual tokens lie, where a reply's token is predicted, which, and with what weight."""

    ids: torch.Tensor
    positions: torch.Tensor
    visual: torch.Tensor
    at: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    groups: tuple[Group, ...]
    back: torch.Tensor
    """For every token its place among the groups' outputs, one after the other."""


@dataclass(frozen=True)
class _Branch:
    start: int
    length: int
    prefix: int
    """Where its prefix starts; -1: it has none."""


def pack(videos: Sequence[Sequence[Lesson]], drills: Sequence[Drill] = (), *, drill_weight: float = 1.0) -> Packed:
    """Lessons of each video, and drills, which have no video. A branch's last token is learned and never read, so it is left out."""
    import torch

    ids, pos, at, targets, weights = list[int](), list[int](), list[int](), list[int](), list[float]()
    branches = list[_Branch]()

    def add(tokens: Sequence[int], labels: Sequence[int], prefix: int, weight: float) -> None:
        start, first = len(ids), len(_PREFIX) if prefix >= 0 else 0
        branches.append(_Branch(start, len(tokens) - 1, prefix))
        ids.extend(tokens[:-1])
        pos.extend(range(first, first + len(tokens) - 1))
        for k, label in enumerate(labels[1:]):
            if label != IGNORE:
                at.append(start + k)
                targets.append(label)
                weights.append(weight)

    for row in videos:
        prefix = len(ids)
        branches.append(_Branch(prefix, len(_PREFIX), -1))
        ids.extend(_PREFIX)
        pos.extend(range(len(_PREFIX)))
        for prompt, reply in row:
            add([*prompt, *reply], [*[IGNORE] * len(prompt), *reply], prefix, 1.0)
    for tokens, labels in drills:
        add(tokens, labels, -1, drill_weight)
    groups, back = _group(branches, len(ids))
    row_ids = torch.tensor(ids)
    return Packed(
        row_ids, torch.tensor(pos), (row_ids == _IMG_ID).nonzero()[:, 0], torch.tensor(at), torch.tensor(targets), torch.tensor(weights),
        groups, torch.from_numpy(back),
    )  # fmt: skip


def _group(branches: Sequence[_Branch], n: int) -> tuple[tuple[Group, ...], NDArray[np.int64]]:
    """Branches sorted by prefix (none, or one) and length, cut into groups; and each token's place among the groups' outputs."""
    import torch

    back, offset, groups = np.zeros(n, np.int64), 0, list[Group]()
    for with_prefix in (False, True):
        rest = sorted((b for b in branches if (b.prefix >= 0) == with_prefix), key=lambda b: b.length)
        for some in (rest[i : i + _IN_A_GROUP] for i in range(0, len(rest), _IN_A_GROUP)):
            p, m = len(_PREFIX) if with_prefix else 0, some[-1].length
            queries, keys = np.zeros((len(some), m), np.int64), np.zeros((len(some), p + m), np.int64)
            hidden = np.zeros((len(some), m, p + m), bool)
            hidden[:, :, p:] = np.triu(np.ones((m, m), bool), 1)
            for r, b in enumerate(some):
                queries[r, : b.length] = keys[r, p : p + b.length] = np.arange(b.start, b.start + b.length)
                keys[r, :p] = np.arange(b.prefix, b.prefix + p)
                back[b.start : b.start + b.length] = offset + r * m + np.arange(b.length)
            offset += len(some) * m
            bias = torch.zeros(len(some), 1, m, p + m).masked_fill_(torch.from_numpy(hidden)[:, None], float("-inf"))
            groups.append(Group(torch.from_numpy(queries), torch.from_numpy(keys), bias))
    return tuple(groups), back


def hidden_states(model: InternVLForConditionalGeneration, batch: Packed, features: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The last hidden states `[P, D]` where the batch predicts something; features `[videos, VISUAL_TOKENS, D]`; products in `dtype`."""
    import torch
    import torch.nn.functional as F

    lm = model.model.language_model
    x = F.embedding(batch.ids, lm.embed_tokens.weight)
    d = x.shape[-1]
    x = x.index_copy(0, batch.visual, features.reshape(-1, d).to(x.dtype))
    cos, sin = (t[0, :, None].to(dtype) for t in lm.rotary_emb(x[None], batch.positions[None]))
    biases = [g.bias.to(dtype) for g in batch.groups]
    last = len(lm.layers) - 1
    for i, layer in enumerate(lm.layers):
        a, mlp, eps = layer.self_attn, layer.mlp, layer.input_layernorm.variance_epsilon
        h = F.rms_norm(x, (d,), layer.input_layernorm.weight, eps).to(dtype)
        w = torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight]).to(dtype)
        b = torch.cat([a.q_proj.bias, a.k_proj.bias, a.v_proj.bias]).to(dtype)
        qkv = F.linear(h, w, b).view(-1, 3 * d // a.head_dim, a.head_dim)
        heads = d // a.head_dim
        qk, v = qkv[:, : 2 * heads], qkv[:, 2 * heads :]
        left, right = qk.chunk(2, -1)
        qk = qk * cos + torch.cat([-right, left], -1) * sin
        out = _attend(qk[:, :heads], torch.cat([qk[:, heads:], v], 1), batch.groups, biases)
        place = batch.back
        if i == last:
            x, place = x[batch.at], place[batch.at]
        x = x + F.linear(out[place], a.o_proj.weight.to(dtype))
        h = F.rms_norm(x, (d,), layer.post_attention_layernorm.weight, eps).to(dtype)
        gate, up = F.linear(h, torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).to(dtype)).chunk(2, -1)
        x = x + F.linear(F.silu(gate) * up, mlp.down_proj.weight.to(dtype))
    return F.rms_norm(x, (d,), lm.norm.weight, lm.norm.variance_epsilon)


def _attend(q: torch.Tensor, kv: torch.Tensor, groups: Sequence[Group], biases: Sequence[torch.Tensor]) -> torch.Tensor:
    """Queries `[N, heads, C]`, keys and values `[N, 2 * heads, C]` -> the groups' outputs, one after the other, `[rows, heads * C]`."""
    import torch

    heads, out = q.shape[1], []
    for g, bias in zip(groups, biases, strict=True):
        some = kv.index_select(0, g.keys.flatten()).view(*g.keys.shape, 2 * heads, -1).transpose(1, 2)
        asked = q.index_select(0, g.queries.flatten()).view(*g.queries.shape, heads, -1).transpose(1, 2)
        scores = asked @ some[:, :heads].mT * q.shape[-1] ** -0.5 + bias
        out.append((scores.softmax(-1) @ some[:, heads:]).transpose(1, 2).reshape(-1, q.shape[1] * q.shape[2]))
    return torch.cat(out)


def loss_of(model: InternVLForConditionalGeneration, batch: Packed, features: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Weighted mean cross-entropy of what the batch predicts."""
    import torch.nn.functional as F

    h = hidden_states(model, batch, features, dtype)
    each = F.cross_entropy(h @ model.lm_head.weight.T, batch.targets, reduction="none")
    return (each * batch.weights).sum() / batch.weights.sum()
