"""Branches of text that continue prefixes, in one batch: the decoding loop and the scoring of given replies.

A batch is laid out as `[zeros | prefix | padding | prompt | reply]`, so that all prompts end in the same column. Positions are given
explicitly and a mask hides the padding, so a row's numbers do not depend on its neighbours. Short prefixes are copied, one a row; long
ones stay where they are and are shared (`savi.engine.branch_attention`). The module knows a family, a model and ids; it must not know texts
or files. How much fits in memory is decided by `savi.engine.memory`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from savi.engine.branch_attention import LONG_PREFIX, NAME, SharedPrefixes, attention_as, register
from savi.engine.prefix import BranchCache, Prefix, cache_keyword, empty, expand
from savi.engine.sampling import GenerationSettings, choose
from savi.families.base import Family

_COMPACT_BELOW = 0.7
"""Rows that are done leave the batch when fewer than this share are still running: each leaving copies the cache once."""


@dataclass(frozen=True)
class Branch:
    """One prompt that continues one prefix; `uniform [max_new_tokens]` when sampling. The last `reply` ids are a reply to be scored."""

    prefix: Prefix
    ids: list[int]
    uniform: Tensor | None = None
    reply: int = 0


@dataclass(frozen=True)
class Generated:
    """New ids of a row, end-of-turn included if it came (`finished`)."""

    ids: list[int]
    finished: bool


@dataclass
class _Batch:
    """A laid out batch of `B` rows.

    `ids [B, L]`, `positions [B, L]`, `bias [B, columns]` (0 where seen, very negative where hidden) over the cache's columns, of which
    `lead` stand before the prompts: the prefixes, or none where those are `shared` instead of copied. `order[i]`: which of the caller's
    rows row i is.
    """

    ids: Tensor
    positions: Tensor
    bias: Tensor
    cache: BranchCache
    lead: int
    next_positions: Tensor
    order: list[int]
    shared: SharedPrefixes | None

    def prompt_mask(self) -> Tensor:
        """`[B, 1, L, lead + L]`: padding hidden, causal among the prompt's tokens."""
        length = self.ids.shape[1]
        mask = self.bias[:, None, None, : self.lead + length].expand(-1, 1, length, -1).clone()
        later = torch.ones(length, length, dtype=torch.bool, device=mask.device).triu(1)
        mask[..., self.lead :].masked_fill_(later, torch.finfo(mask.dtype).min)
        # a padding query sees nothing where prefixes are shared: it sees itself, so that no row of a softmax is empty
        return mask.diagonal_scatter(torch.zeros_like(mask.diagonal(self.lead, -2, -1)), self.lead, -2, -1)

    def select(self, kept: Tensor) -> None:
        """Keep these rows only."""
        self.cache.select(kept)
        self.bias, self.next_positions = self.bias[kept], self.next_positions[kept]
        rows = kept.tolist()
        self.order = [self.order[i] for i in rows]
        self.shared = self.shared.select(rows) if self.shared is not None else None


def shares(prefixes: Sequence[Prefix]) -> bool:
    """Whether branches of these prefixes share them in place (long ones), or get a copy each (short ones)."""
    return max(prefix.length for prefix in prefixes) >= LONG_PREFIX


def _lay_out(rows: Sequence[Branch], extra: int, dtype: torch.dtype, device: torch.device) -> _Batch:
    """Rows of one prefix become neighbours; prompts end in one column."""
    prefixes = list({id(row.prefix): row.prefix for row in rows}.values())
    place = {id(prefix): i for i, prefix in enumerate(prefixes)}
    order = sorted(range(len(rows)), key=lambda i: place[id(rows[i].prefix)])
    rows = [rows[i] for i in order]
    owners = [place[id(row.prefix)] for row in rows]
    shared = SharedPrefixes.of(prefixes, owners) if shares(prefixes) else None
    lead = 0 if shared else max(p.length for p in prefixes)
    length = max(len(row.ids) for row in rows)
    prompt_lengths = torch.tensor([len(row.ids) for row in rows])
    starts = torch.tensor([row.prefix.next_pos for row in rows])
    column = torch.arange(length)[None] - (length - prompt_lengths)[:, None]
    bias = torch.zeros(len(rows), lead + length + extra, dtype=dtype)
    hidden = torch.finfo(dtype).min
    if not shared:
        prefix_lengths = torch.tensor([row.prefix.length for row in rows])
        bias[:, :lead].masked_fill_(torch.arange(lead)[None] < (lead - prefix_lengths)[:, None], hidden)
    bias[:, lead : lead + length].masked_fill_(column < 0, hidden)
    return _Batch(
        ids=torch.tensor([[0] * (length - len(row.ids)) + row.ids for row in rows]).to(device),
        positions=(starts[:, None] + column.clamp(min=0)).to(device),
        bias=bias.to(device),
        cache=empty(prefixes[0], len(rows), length + extra)
        if shared
        else expand(prefixes, torch.tensor(owners, device=device), length + extra),
        lead=lead,
        next_positions=(starts + prompt_lengths).to(device),
        order=order,
        shared=shared,
    )


def _forward(family: Family, text_model: nn.Module, ids: Tensor, positions: Tensor, mask: Tensor, batch: _Batch) -> Tensor:
    """Hidden states `[B, L, D]` of text tokens that follow the cache."""
    own = text_model.config._attn_implementation  # type: ignore[union-attr]
    keywords: dict[str, Any] = {cache_keyword(text_model): batch.cache}
    if batch.shared is not None:
        own, keywords["shared"] = NAME, batch.shared
    elif own not in ("sdpa", "eager"):
        own = "sdpa"  # others take no additive 4-D mask
    with attention_as(text_model.config, own):
        output = text_model(
            input_ids=ids,
            position_ids=family.text_positions(positions),
            attention_mask=mask,
            use_cache=True,
            **keywords,
        )
    return output.last_hidden_state


@torch.no_grad()
def generate(
    family: Family, model: nn.Module, rows: Sequence[Branch], settings: GenerationSettings, end_ids: Sequence[int]
) -> list[Generated]:
    """Continue every row until its end of turn or `max_new_tokens`; rows that are done leave the batch."""
    register()
    text_model, head = family.text_model(model), model.get_output_embeddings()  # type: ignore[operator]
    weight = next(text_model.parameters())
    new = settings.max_new_tokens
    batch = _lay_out(rows, new - 1, weight.dtype, weight.device)
    uniform = torch.stack([rows[i].uniform for i in batch.order]).to(weight.device) if settings.temperature > 0 else None  # type: ignore[misc]
    ends = torch.tensor(sorted(set(end_ids)), device=weight.device)
    width = batch.lead + batch.ids.shape[1]

    said: list[list[int]] = [[] for _ in rows]
    finished = [False] * len(rows)
    hidden = _forward(family, text_model, batch.ids, batch.positions, batch.prompt_mask(), batch)
    alive = torch.ones(len(rows), dtype=torch.bool, device=weight.device)
    for step in range(new):
        logits = head(hidden[:, -1]).float()
        token = choose(logits, settings, uniform[:, step] if uniform is not None else None)
        ended = (token[:, None] == ends).any(-1)
        for owner, value, was_alive, ends_here in zip(batch.order, token.tolist(), alive.tolist(), ended.tolist(), strict=True):
            if was_alive:
                said[owner].append(value)
                finished[owner] = ends_here
        alive &= ~ended
        running = int(alive.sum())
        if running == 0 or step + 1 == new:
            break
        if running <= _COMPACT_BELOW * len(batch.order):
            kept = alive.nonzero()[:, 0]
            batch.select(kept)
            token, alive = token[kept], alive[kept]
            uniform = uniform[kept] if uniform is not None else None
        mask = batch.bias[:, None, None, : width + step + 1]
        hidden = _forward(family, text_model, token[:, None], (batch.next_positions + step)[:, None], mask, batch)
    return [Generated(ids, done) for ids, done in zip(said, finished, strict=True)]


@torch.no_grad()
def score(family: Family, model: nn.Module, rows: Sequence[Branch], response_lengths: Sequence[int]) -> list[float]:
    """Sum of log-probabilities of the last `response_lengths[i]` ids of each row (float32 log-softmax, float64 sum)."""
    register()
    text_model, head = family.text_model(model), model.get_output_embeddings()  # type: ignore[operator]
    weight = next(text_model.parameters())
    batch = _lay_out(rows, 0, weight.dtype, weight.device)
    hidden = _forward(family, text_model, batch.ids, batch.positions, batch.prompt_mask(), batch)
    sums = [0.0] * len(rows)
    for i, owner in enumerate(batch.order):
        length = response_lengths[owner]
        logits = head(hidden[i, -length - 1 : -1]).float()
        logps = torch.log_softmax(logits, -1).gather(-1, batch.ids[i, -length:, None])
        sums[owner] = float(logps.double().sum())
    return sums
