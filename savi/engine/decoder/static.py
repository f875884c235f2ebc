"""Decoding with fixed shapes: a batch's state stays on the device, a step is one forward that a GPU replays as one graph.

The model's own forward runs, with a cache and an attention function of ours (`attention`), so every family works, M-RoPE too. Why not what
others keep: transformers' static cache with `torch.compile` gives every row a copy of its prefix (96 rows of the paper's size: 105 GB, all
read in every step); FlashInfer's cascade attention wants the keys in pages of its own and a plan on the host for every shape, which is more
code than the two calls here. The eager decoder (`savi.engine.decoding`) is the oracle: the same ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from savi.engine.branch_attention import attention_as, register
from savi.engine.decoder.attention import NAME, Stacked, static_attention
from savi.engine.decoder.buffers import HIDDEN, Arena, Bucket, StaticCache, Step, prefix_bucket, room_bucket, rows_bucket, videos_bucket
from savi.engine.decoding import Branch, Generated
from savi.engine.prefix import Prefix, cache_keyword
from savi.engine.sampling import GenerationSettings, choose
from savi.families.base import Family

_LEAVE_AT = 0.5
"""Rows that are done leave when at most this share of a bucket is running: a step's time hardly depends on the rows, a new bucket's graph
costs some ten steps to capture."""


@dataclass
class _Batch:
    """Rows of a batch in their places: `order[i]`: which of the caller's rows row i is (rows beyond are copies of row 0 that fill the
    bucket); `owners[i]`: its video. `bias [B, L]` says which columns of a branch count; `positions [B]` is that of the next token."""

    order: list[int]
    owners: list[int]
    lengths: list[int]
    bias: Tensor
    positions: Tensor
    uniform: Tensor | None
    column: int

    @property
    def rows(self) -> int:
        return int(self.bias.shape[0])


class StaticDecoder:
    """One model's static decoder: keeps its buffers and graphs from one call to the next. `release` gives them up."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.arena = Arena()

    @property
    def held_bytes(self) -> int:
        """Memory that is held between calls, and used again by the next."""
        return self.arena.bytes

    def release(self) -> None:
        """Give up buffers and graphs: somebody else needs the memory."""
        self.arena = Arena()

    @torch.no_grad()
    def generate(self, model: nn.Module, rows: Sequence[Branch], settings: GenerationSettings, end_ids: Sequence[int]) -> list[Generated]:
        """Continue every row until its end of turn or `max_new_tokens`; rows that are done leave in steps.

        Takes and gives what `savi.engine.decoding.generate` does. Out of memory, the buffers are given up before the error goes on.
        """
        register(NAME, static_attention)
        try:
            return self._generate(model, rows, settings, set(end_ids))
        except torch.OutOfMemoryError:
            self.release()
            raise

    def _generate(self, model: nn.Module, rows: Sequence[Branch], settings: GenerationSettings, ends: set[int]) -> list[Generated]:
        text_model, head = self.family.text_model(model), model.get_output_embeddings()  # type: ignore[operator]
        new, like = settings.max_new_tokens, rows[0].prefix
        batch, hidden = self._begin(model, text_model, rows, settings)

        def forward(step: Step) -> Tensor:
            mask = step.bias[:, None, None]
            return head(self._forward(text_model, step.tokens, step.positions, mask, step.cache, step.stacked)[:, -1])

        said: list[list[int]] = [[] for _ in rows]
        finished = [False] * len(rows)
        alive = [True] * len(batch.order)
        logits, step = head(hidden[:, -1]), None
        for number in range(new):
            token = choose(logits.float(), settings, batch.uniform[:, number] if batch.uniform is not None else None)
            for i, value in enumerate(token[: len(alive)].tolist()):
                if alive[i]:
                    said[batch.order[i]].append(value)
                    finished[batch.order[i]] = value in ends
                    alive[i] = value not in ends
            running = sum(alive)
            if running == 0 or number + 1 == new:
                break
            leaves = rows_bucket(running) <= _LEAVE_AT * batch.rows
            if leaves:
                kept = [i for i, runs in enumerate(alive) if runs]
                token = self._leave(batch, like, kept, token)
                alive = [True] * len(kept)
            if step is None or leaves or batch.column >= step.bucket.room:
                step = self._step(batch, like)
            step.tokens.copy_(token[:, None])
            step.positions.copy_(batch.positions[:, None])
            step.column.fill_(batch.column)
            batch.bias[:, batch.column] = 0
            step.bias[:, batch.column] = 0
            with _steady(text_model):
                logits = step.run(forward, self.arena.pool)
            batch.positions += 1
            batch.column += 1
        return [Generated(ids, done) for ids, done in zip(said, finished, strict=True)]

    def _begin(
        self, model: nn.Module, text_model: nn.Module, rows: Sequence[Branch], settings: GenerationSettings
    ) -> tuple[_Batch, Tensor]:
        """Stack the prefixes, read the prompts; hidden states of their tokens `[B, T, D]`."""
        prefixes = list({id(row.prefix): row.prefix for row in rows}.values())
        place = {id(prefix): i for i, prefix in enumerate(prefixes)}
        order = sorted(range(len(rows)), key=lambda i: place[id(rows[i].prefix)])
        lengths = [prefix.length for prefix in prefixes]
        count, length = rows_bucket(len(rows)), max(len(row.ids) for row in rows)
        videos, columns, branch = videos_bucket(len(prefixes)), prefix_bucket(lengths), room_bucket(length + settings.max_new_tokens)
        like = prefixes[0]
        self.arena.fit(like, videos * columns, count * branch, model)
        for number, (keys, values) in enumerate(self.arena.prefixes(like, videos, columns)):
            for v, prefix in enumerate(prefixes):
                keys[v, :, : prefix.length] = prefix.kv[number][0][0]
                values[v, :, : prefix.length] = prefix.kv[number][1][0]
                keys[v, :, prefix.length :] = values[v, :, prefix.length :] = 0  # what lay there may not be numbers
        device = like.kv[0][0].device
        filled = [rows[i] for i in order] + [rows[order[0]]] * (count - len(rows))
        ids = torch.tensor([[0] * (length - len(row.ids)) + row.ids for row in filled], device=device)
        padding = torch.tensor([length - len(row.ids) for row in filled], device=device)
        starts = torch.tensor([row.prefix.next_pos for row in filled], device=device)
        column = torch.arange(length, device=device)[None] - padding[:, None]
        bias = torch.full((count, branch), HIDDEN, device=device)
        bias[:, :length].masked_fill_(column >= 0, 0.0)
        uniform = None
        if settings.temperature > 0:
            uniform = torch.stack([row.uniform for row in filled]).to(device)  # type: ignore[misc]
        for keys, values in self.arena.branches(like, count, branch):
            keys.zero_()
            values.zero_()
        batch = _Batch(order, [place[id(rows[i].prefix)] for i in order], lengths, bias, starts + length - padding, uniform, length)
        stacked = self._stacked(batch, like, self._bucket(batch))
        cache = StaticCache(self.arena.branches(like, count, branch), torch.arange(length, device=device), length)
        later = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
        mask = bias[:, None, None, :length].expand(-1, 1, length, -1).masked_fill(later, HIDDEN)
        # a query of the padding sees itself, so that its numbers stay finite
        mask = mask.diagonal_scatter(torch.zeros_like(mask.diagonal(0, -2, -1)), 0, -2, -1)
        return batch, self._forward(text_model, ids, starts[:, None] + column.clamp(min=0), mask, cache, stacked)

    def _forward(self, text_model: nn.Module, ids: Tensor, positions: Tensor, mask: Tensor, cache: StaticCache, stacked: Stacked) -> Tensor:
        """Hidden states `[B, q, D]` of tokens that follow what is in the cache."""
        keywords: dict[str, Any] = {cache_keyword(text_model): cache, "stacked": stacked}
        with attention_as(text_model.config, NAME):
            output = text_model(
                input_ids=ids, position_ids=self.family.text_positions(positions), attention_mask=mask, use_cache=True, **keywords
            )
        return output.last_hidden_state  # type: ignore[no-any-return]

    def _bucket(self, batch: _Batch) -> Bucket:
        """The shapes of the next step."""
        places, slots = _places(batch.owners, batch.rows)
        videos, columns = videos_bucket(len(batch.lengths)), prefix_bucket(batch.lengths)
        equal = min(batch.lengths) == max(batch.lengths)
        in_order = batch.rows == videos * slots and places == list(range(batch.rows))
        room = min(room_bucket(batch.column + 1), int(batch.bias.shape[1]))
        return Bucket(batch.rows, videos, slots, columns, int(batch.bias.shape[1]), room, equal, in_order)

    def _step(self, batch: _Batch, like: Prefix) -> Step:
        """The step of a batch as it stands, with its inputs in place."""
        bucket = self._bucket(batch)
        step = self.arena.step(bucket, like)
        step.bias.copy_(batch.bias[:, : bucket.room])
        now = self._stacked(batch, like, bucket)
        step.stacked.lengths = now.lengths
        step.stacked.used.copy_(now.used)
        step.stacked.hidden.copy_(now.hidden)
        if step.stacked.slots is not None and step.stacked.places is not None:
            step.stacked.slots.copy_(now.slots)  # type: ignore[arg-type]
            step.stacked.places.copy_(now.places)  # type: ignore[arg-type]
        return step

    def _stacked(self, batch: _Batch, like: Prefix, bucket: Bucket) -> Stacked:
        """A batch's prefixes as the attention takes them; videos that fill the bucket count as long as the first."""
        device = batch.bias.device
        lengths = batch.lengths + [batch.lengths[0]] * (bucket.videos - len(batch.lengths))
        used = torch.tensor(lengths, dtype=torch.int32, device=device)
        beyond = torch.arange(bucket.prefix, device=device)[None] >= used[:, None]
        hidden = torch.zeros(beyond.shape, device=device).masked_fill_(beyond, HIDDEN)[:, None, None]
        slots = places = None
        if not bucket.in_order:
            of_row, _ = _places(batch.owners, batch.rows)
            in_slot = [0] * (bucket.videos * bucket.slots)
            for row, slot in enumerate(of_row[: len(batch.owners)]):
                in_slot[slot] = row
            slots, places = torch.tensor(in_slot, device=device), torch.tensor(of_row, device=device)
        return Stacked(self.arena.prefixes(like, bucket.videos, bucket.prefix), lengths, used, hidden, slots, places)

    def _leave(self, batch: _Batch, like: Prefix, kept: list[int], token: Tensor) -> Tensor:
        """Keep these rows, moved to the front, and their videos; returns their tokens."""
        count = rows_bucket(len(kept))
        chosen = kept + [kept[0]] * (count - len(kept))
        index = torch.tensor(chosen, device=token.device)
        branch, old = int(batch.bias.shape[1]), batch.rows
        for part in (part for kv in self.arena.branches(like, old, branch) for part in kv):
            part[:count] = part.index_select(0, index)
        self._move_videos(batch, like, sorted({batch.owners[i] for i in kept}), kept)
        batch.order = [batch.order[i] for i in kept]
        batch.bias, batch.positions = batch.bias[index], batch.positions[index]
        batch.uniform = batch.uniform[index] if batch.uniform is not None else None
        return token[index]

    def _move_videos(self, batch: _Batch, like: Prefix, videos: list[int], kept: list[int]) -> None:
        """Put the prefixes that are still read at the front, in their order, each where its new stack wants it."""
        lengths = [batch.lengths[v] for v in videos]
        before = self.arena.prefixes(like, videos_bucket(len(batch.lengths)), prefix_bucket(batch.lengths))
        after = self.arena.prefixes(like, videos_bucket(len(videos)), prefix_bucket(lengths))
        if videos != list(range(len(batch.lengths))):
            columns = after[0][0].shape[2]
            for source, target in zip((p for kv in before for p in kv), (p for kv in after for p in kv), strict=True):
                for new, old in enumerate(videos):  # forwards: a prefix's new place never begins after its old one
                    target[new, :, :columns] = source[old, :, :columns].clone()
                target[len(videos) :] = 0
        new_number = {old: new for new, old in enumerate(videos)}
        batch.owners, batch.lengths = [new_number[batch.owners[i]] for i in kept], lengths


def _places(owners: Sequence[int], rows: int) -> tuple[list[int], int]:
    """The slot of each row, those of one video side by side, and slots a video; rows that fill a bucket share row 0's."""
    slots = rows_bucket(max(Counter(owners).values()))
    seen: Counter[int] = Counter()
    places = []
    for owner in owners:
        places.append(owner * slots + seen[owner])
        seen[owner] += 1
    return places + [places[0]] * (rows - len(places)), slots


@contextmanager
def _steady(text_model: nn.Module) -> Iterator[None]:
    """Keep the rotary angles as the prompts left them: asking for the longest position in every step would wait for the device."""
    rotary: Any = getattr(text_model, "rotary_emb", None)
    kind = getattr(rotary, "rope_type", None)
    if kind not in ("dynamic", "longrope"):
        yield
        return
    rotary.rope_type = "default"
    try:
        yield
    finally:
        rotary.rope_type = kind
