"""Packing preference pairs: the prefix of a video once, followed by all its pairs as branches, several videos a batch.

    row = [ video prefix | q1 c1 r1 | q2 c2 r2 | ... | padding ]

A question sees the prefix; chosen (c) and rejected (r) see the prefix and their question, not each other; positions go on from the prefix
in every branch. So each completion has exactly the log-probability it has in a sequence of its own (tested in tests/invariants). The module
knows token ids only: no files, no losses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from savi.training.tree_attention import SPLIT_FROM, Tree, check_applied, require_tree_attention

if TYPE_CHECKING:
    from savi.families.base import Family, VideoFeatures


@dataclass(frozen=True)
class VideoPrefix:
    """A video ready for training: its features (no gradient), the prefix's `ids` [P], their rope `positions` [P] or [3, P], and `next_pos`,
    the position at which text goes on (not P for M-RoPE families)."""

    ids: Tensor
    positions: Tensor
    next_pos: int
    features: VideoFeatures

    @property
    def length(self) -> int:
        return int(self.ids.numel())


@dataclass(frozen=True)
class PairTokens:
    """A pair as token ids. `question`: what follows the prefix up to and with the assistant's header, may be empty; `chosen`, `rejected`:
    the replies with their end of turn. An empty `rejected` (SFT) takes no room."""

    question: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return len(self.question) + len(self.chosen) + len(self.rejected)


@dataclass(frozen=True)
class PackedRow:
    """One video with some of its pairs: one row of a packed batch."""

    prefix: VideoPrefix
    pairs: tuple[PairTokens, ...]

    @property
    def tokens(self) -> int:
        return self.prefix.length + sum(pair.tokens for pair in self.pairs)


@dataclass
class PackedBatch:
    """A packed batch of B rows, S positions, N scored tokens, n pairs (numbered row after row).

    `input_ids` [B, S]; `position_ids` [B, S] or [3, B, S]; `keep` [U]: the positions any row predicts a scored token from; token j is
    predicted by row `row[j]` at `keep[at[j]]`, its id is `target[j]`, and its place in the [2n, L] grid of completions is `slot[j]`
    (completion 2i is pair i's chosen, 2i+1 its rejected). `lengths` [n, 2]: tokens of each completion.
    """

    input_ids: Tensor
    position_ids: Tensor
    keep: Tensor
    row: Tensor
    at: Tensor
    target: Tensor
    slot: Tensor
    lengths: Tensor
    grid: tuple[int, int]
    tree: Tree
    features: tuple[VideoFeatures, ...]

    @property
    def pairs(self) -> int:
        return int(self.lengths.shape[0])


def pack(
    rows: Sequence[PackedRow],
    family: Family,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    split: bool | None = None,
) -> PackedBatch:
    """Pack rows whose prefixes are equally long.

    `dtype` is the model's (of the additive mask). `split`: attention in two calls (`savi.training.tree_attention`); None: by the prefix.

    Raises:
        ValueError: no pairs at all, prefixes of different lengths, or an empty completion where a scored one is needed.
    """
    if not any(row.pairs for row in rows):
        raise ValueError("a packed batch needs at least one pair: leave out videos without pairs")
    lengths_of = {row.prefix.length for row in rows}
    if len(lengths_of) > 1:
        raise ValueError(f"prefixes of different lengths in one batch: {sorted(lengths_of)}; group the videos by prefix length first")
    p = lengths_of.pop()
    split = p >= SPLIT_FROM if split is None else split
    longest = max(row.tokens for row in rows)
    tails = [_tail(row, p) for row in rows]

    filler = 0 if family.visual_token_id != 0 else 1  # padding is never looked at, but must not be taken for a visual token
    input_ids = torch.stack(
        [torch.cat([row.prefix.ids.cpu(), _padded(tail.ids, longest - p, filler)]) for row, tail in zip(rows, tails, strict=True)]
    )
    positions = torch.stack(
        [
            torch.cat([row.prefix.positions.cpu(), family.text_positions(_padded(tail.positions, longest - p))], dim=-1)
            for row, tail in zip(rows, tails, strict=True)
        ],
        dim=-2,
    )
    mask = torch.stack([_visible(tail, p, longest, whole=not split) for tail in tails])[:, None]
    tree = Tree(p, torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, float("-inf")).to(device), split)

    keep = torch.tensor(sorted({position for tail in tails for position in tail.predicted_at}), dtype=torch.long)
    at = torch.searchsorted(keep, torch.tensor([position for tail in tails for position in tail.predicted_at], dtype=torch.long))
    row_of = torch.tensor([i for i, tail in enumerate(tails) for _ in tail.predicted_at], dtype=torch.long)
    target = torch.tensor([token for tail in tails for token in tail.targets], dtype=torch.long)
    lengths = [(len(pair.chosen), len(pair.rejected)) for row in rows for pair in row.pairs]
    width = max(max(pair) for pair in lengths)
    slot = torch.tensor([i * width + j for i, n in enumerate(n for pair in lengths for n in pair) for j in range(n)], dtype=torch.long)
    return PackedBatch(
        input_ids=input_ids.to(device),
        position_ids=positions.to(device),
        keep=keep.to(device),
        row=row_of.to(device),
        at=at.to(device),
        target=target.to(device),
        slot=slot.to(device),
        lengths=torch.tensor(lengths, dtype=torch.long, device=device),
        grid=(2 * len(lengths), width),
        tree=tree,
        features=tuple(row.prefix.features for row in rows),
    )


@dataclass
class _Tail:
    """What follows the prefix in one row; `segments`: (start, end, start of the parent question or -1, its end) of each branch."""

    ids: list[int]
    positions: list[int]
    segments: list[tuple[int, int, int, int]]
    predicted_at: list[int]
    targets: list[int]


def _tail(row: PackedRow, p: int) -> _Tail:
    tail = _Tail([], [], [], [], [])
    for pair in row.pairs:
        if not pair.chosen:
            raise ValueError("a chosen reply without tokens: a reply has at least its end of turn")
        question_start = p + len(tail.ids)
        tail.ids += pair.question
        tail.positions += range(row.prefix.next_pos, row.prefix.next_pos + len(pair.question))
        question_end = p + len(tail.ids)
        tail.segments.append((question_start, question_end, -1, -1))
        last = question_end - 1 if pair.question else p - 1  # the position that predicts a reply's first token
        after = row.prefix.next_pos + len(pair.question)
        for reply in (pair.chosen, pair.rejected):
            if not reply:
                continue
            start = p + len(tail.ids)
            tail.ids += reply
            tail.positions += range(after, after + len(reply))
            tail.segments.append((start, start + len(reply), question_start, question_end))
            tail.predicted_at += [last, *range(start, start + len(reply) - 1)]
            tail.targets += reply
    return tail


def _padded(values: list[int], length: int, filler: int = 0) -> Tensor:
    """Values [length], padded with `filler`."""
    out = torch.full((length,), filler, dtype=torch.long)
    out[: len(values)] = torch.tensor(values, dtype=torch.long)
    return out


def _visible(tail: _Tail, p: int, longest: int, *, whole: bool) -> Tensor:
    """Boolean [longest or longest - p, longest]: what each query may look at. Padding looks at itself only."""
    first = 0 if whole else p
    mask = torch.zeros(longest - first, longest, dtype=torch.bool)
    mask[:, :p] = True
    for start, end, question_start, question_end in tail.segments:
        mask[start - first : end - first, start:end] = True
        if question_start >= 0:
            mask[start - first : end - first, question_start:question_end] = True
    mask[p + len(tail.ids) - first :] = False
    mask.tril_(first)
    mask.diagonal(first).fill_(True)
    return mask


def token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """log softmax(logits)[targets] for logits [N, V], in fp32 at least -> [N]."""
    if logits.dtype != torch.float64:
        logits = logits.float()
    return logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)


def packed_logps(model: nn.Module, batch: PackedBatch, family: Family) -> Tensor:
    """Sum of log-probabilities of each completion [n, 2] (chosen, rejected; 0 for an empty one) in one forward pass.

    `model` may be wrapped (DDP, FSDP, peft): only its forward is called. The sum is taken over a padded grid and not by index_add, whose
    order on a GPU is not fixed.

    Raises:
        MaskDroppedError: the model's attention would ignore the mask, or did.
    """
    inner = unwrap(model)
    require_tree_attention(inner)
    batch.tree.uses.count = 0
    logits = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        mm_encoder_outputs=family.mm_encoder_outputs(batch.features),
        logits_to_keep=batch.keep,
        use_cache=False,
        tree=batch.tree,
    ).logits  # [B, U, V]
    check_applied(batch.tree)
    if logits.shape[1] != len(batch.keep):  # VideoLLaMA3's forward does not know logits_to_keep and gives all
        logits = logits[:, batch.keep]
    each = token_logps(logits[batch.row, batch.at], batch.target)
    count, width = batch.grid
    flat = each.new_zeros(count * width).index_copy(0, batch.slot, each)
    return flat.view(count, width).sum(1).view(-1, 2)


def separate_logps(model: nn.Module, rows: Iterable[PackedRow], family: Family) -> Tensor:
    """The oracle: the same [n, 2] with one plain forward pass a completion, nothing shared, no mask."""
    sums: list[Tensor] = []
    device = next(model.parameters()).device
    for row in rows:
        prefix = row.prefix
        for pair in row.pairs:
            for reply in (pair.chosen, pair.rejected):
                text = [*pair.question, *reply]
                ids = torch.cat([prefix.ids.cpu(), torch.tensor(text, dtype=torch.long)])[None].to(device)
                after = family.branch_positions(prefix.next_pos, len(text))
                positions = torch.cat([prefix.positions.cpu(), after], dim=-1).unsqueeze(-2).to(device)
                logits = model(
                    input_ids=ids,
                    position_ids=positions,
                    mm_encoder_outputs=family.mm_encoder_outputs([prefix.features]),
                    logits_to_keep=len(reply) + 1,
                    use_cache=False,
                ).logits[0, :-1]
                target = torch.tensor(reply, dtype=torch.long, device=device)
                sums.append(token_logps(logits[-len(reply) :], target).sum() if reply else logits.new_zeros(()))
    return torch.stack(sums).view(-1, 2)


def unwrap(model: nn.Module) -> Any:
    """The model inside DDP's and torch.compile's wrappers."""
    inner = model
    while True:
        for name in ("module", "_orig_mod"):
            if name in inner._modules:
                inner = inner._modules[name]  # type: ignore[assignment]
                break
        else:
            return inner


def batches(rows: Sequence[PackedRow], max_tokens: int) -> list[list[int]]:
    """Group row numbers into batches of equal prefix length and at most `max_tokens` padded tokens (one row at least), order kept
    otherwise.

    Rows of like length are put together, so that little is padded; ties keep their order, so the grouping is a function of the rows alone.
    """
    order = sorted(range(len(rows)), key=lambda i: (rows[i].prefix.length, rows[i].tokens, i))
    groups: list[list[int]] = []
    for i in order:
        group = groups[-1] if groups else None
        if group and rows[group[0]].prefix.length == rows[i].prefix.length and (len(group) + 1) * rows[i].tokens <= max_tokens:
            group.append(i)
        else:
            groups.append([i])
    return groups
