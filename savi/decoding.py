"""Rows of text behind prefixes, in one batch: the decoding loop and the scoring of given replies.

A batch is laid out as `[zeros | prefix | padding | prompt | reply]`, so that all prompts end in the same column. Positions are given
explicitly and a mask hides the padding, so a row's numbers do not depend on its neighbours. The module knows a family, a model and ids;
it must not know texts or files. How much fits in memory is decided by `savi.memory`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from savi.families.base import Family
from savi.prefix import BranchCache, Prefix, expand
from savi.sampling import GenerationSettings, choose

_COMPACT_BELOW = 0.7
"""Rows that are done leave the batch when fewer than this share are still running: each leaving copies the cache once."""


@dataclass(frozen=True)
class Row:
    """One prompt behind one prefix; `uniform [max_new_tokens]` when sampling."""

    prefix: Prefix
    ids: list[int]
    uniform: Tensor | None = None


@dataclass(frozen=True)
class Generated:
    """New ids of a row, end-of-turn included if it came (`finished`)."""

    ids: list[int]
    finished: bool


@dataclass
class _Batch:
    """A laid out batch. `ids [B, L]`, `positions [B, L]`, `bias [B, P + L + extra]` (0 where seen, very negative where hidden)."""

    ids: Tensor
    positions: Tensor
    bias: Tensor
    cache: BranchCache
    prefix_length: int
    next_positions: Tensor

    def prompt_mask(self) -> Tensor:
        """`[B, 1, L, P + L]`: padding hidden, causal among the prompt's tokens."""
        length = self.ids.shape[1]
        mask = self.bias[:, None, None, : self.prefix_length + length].expand(-1, 1, length, -1).clone()
        later = torch.ones(length, length, dtype=torch.bool, device=mask.device).triu(1)
        mask[..., self.prefix_length :].masked_fill_(later, torch.finfo(mask.dtype).min)
        return mask


def _lay_out(rows: Sequence[Row], extra: int, dtype: torch.dtype, device: torch.device) -> _Batch:
    prefixes: list[Prefix] = []
    place: dict[int, int] = {}
    for row in rows:
        if id(row.prefix) not in place:
            place[id(row.prefix)] = len(prefixes)
            prefixes.append(row.prefix)
    length = max(len(row.ids) for row in rows)
    longest = max(p.length for p in prefixes)
    prompt_lengths = torch.tensor([len(row.ids) for row in rows])
    prefix_lengths = torch.tensor([row.prefix.length for row in rows])
    starts = torch.tensor([row.prefix.next_pos for row in rows])
    ids = torch.tensor([[0] * (length - len(row.ids)) + row.ids for row in rows])
    column = torch.arange(length)[None] - (length - prompt_lengths)[:, None]
    positions = starts[:, None] + column.clamp(min=0)
    bias = torch.zeros(len(rows), longest + length + extra, dtype=dtype)
    hidden = torch.finfo(dtype).min
    bias[:, :longest].masked_fill_(torch.arange(longest)[None] < (longest - prefix_lengths)[:, None], hidden)
    bias[:, longest : longest + length].masked_fill_(column < 0, hidden)
    index = torch.tensor([place[id(row.prefix)] for row in rows], device=device)
    return _Batch(
        ids=ids.to(device),
        positions=positions.to(device),
        bias=bias.to(device),
        cache=expand(prefixes, index, length + extra),
        prefix_length=longest,
        next_positions=(starts + prompt_lengths).to(device),
    )


def _forward(family: Family, text_model: nn.Module, ids: Tensor, positions: Tensor, mask: Tensor, cache: BranchCache) -> Tensor:
    """Hidden states `[B, L, D]` of text tokens behind the cache."""
    output = text_model(
        input_ids=ids,
        position_ids=family.text_positions(positions),
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
    )
    return output.last_hidden_state


@torch.no_grad()
def generate(
    family: Family, model: nn.Module, rows: Sequence[Row], settings: GenerationSettings, end_ids: Sequence[int]
) -> list[Generated]:
    """Continue every row until its end of turn or `max_new_tokens`; rows that are done leave the batch."""
    text_model, head = family.text_model(model), model.get_output_embeddings()  # type: ignore[operator]
    weight = next(text_model.parameters())
    new = settings.max_new_tokens
    batch = _lay_out(rows, new - 1, weight.dtype, weight.device)
    uniform = torch.stack([row.uniform for row in rows if row.uniform is not None]).to(weight.device) if settings.temperature > 0 else None
    ends = torch.tensor(sorted(set(end_ids)), device=weight.device)
    width = batch.prefix_length + batch.ids.shape[1]

    said: list[list[int]] = [[] for _ in rows]
    finished = [False] * len(rows)
    owners = list(range(len(rows)))
    hidden = _forward(family, text_model, batch.ids, batch.positions, batch.prompt_mask(), batch.cache)
    alive = torch.ones(len(rows), dtype=torch.bool, device=weight.device)
    bias, next_positions = batch.bias, batch.next_positions
    for step in range(new):
        logits = head(hidden[:, -1]).float()
        token = choose(logits, settings, uniform[:, step] if uniform is not None else None)
        ended = (token[:, None] == ends).any(-1)
        for owner, value, was_alive, ends_here in zip(owners, token.tolist(), alive.tolist(), ended.tolist(), strict=True):
            if was_alive:
                said[owner].append(value)
                finished[owner] = ends_here
        alive &= ~ended
        running = int(alive.sum())
        if running == 0 or step + 1 == new:
            break
        if running <= _COMPACT_BELOW * len(owners):
            kept = alive.nonzero()[:, 0]
            batch.cache.select(kept)
            token, bias, next_positions, alive = token[kept], bias[kept], next_positions[kept], alive[kept]
            uniform = uniform[kept] if uniform is not None else None
            owners = [owners[i] for i in kept.tolist()]
        mask = bias[:, None, None, : width + step + 1]
        hidden = _forward(family, text_model, token[:, None], (next_positions + step)[:, None], mask, batch.cache)
    return [Generated(ids, done) for ids, done in zip(said, finished, strict=True)]


@torch.no_grad()
def score(family: Family, model: nn.Module, rows: Sequence[Row], response_lengths: Sequence[int]) -> list[float]:
    """Sum of log-probabilities of the last `response_lengths[i]` ids of each row (float32 log-softmax, float64 sum)."""
    text_model, head = family.text_model(model), model.get_output_embeddings()  # type: ignore[operator]
    weight = next(text_model.parameters())
    batch = _lay_out(rows, 0, weight.dtype, weight.device)
    hidden = _forward(family, text_model, batch.ids, batch.positions, batch.prompt_mask(), batch.cache)
    sums = []
    for i, length in enumerate(response_lengths):
        logits = head(hidden[i, -length - 1 : -1]).float()
        logps = torch.log_softmax(logits, -1).gather(-1, batch.ids[i, -length:, None])
        sums.append(float(logps.double().sum()))
    return sums
