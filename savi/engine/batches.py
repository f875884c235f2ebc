"""Cutting rows of any videos into batches that fit in memory, and running them in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from savi.engine import memory
from savi.engine.decoding import Branch, shares

if TYPE_CHECKING:
    from savi.engine.video_lm import VideoLM

T = TypeVar("T")


def in_batches(
    lm: VideoLM,
    rows: Sequence[Branch],
    new_tokens: int,
    max_batch: int | None,
    work: Callable[[Sequence[Branch]], list[T]],
    *,
    stacks: bool,
    held_bytes: int,
) -> list[T]:
    """Run `work` over batches that fit, results in the order of `rows`; a batch that does not fit is halved and recorded in `lm.splits`.

    `stacks`: a batch holds a second copy of its videos' prefixes (the static decoder); `held_bytes` of that are there already.
    """
    dtype = next(lm.model.parameters()).dtype
    shared = stacks or (bool(rows) and shares([row.prefix for row in rows]))
    numbers: dict[int, int] = {}
    videos = [numbers.setdefault(id(row.prefix), len(numbers)) for row in rows] if shared else None

    @cache
    def cost(prefix_length: int, prompt_length: int) -> int:
        scores = 8 * int(lm.text_config.num_attention_heads) * prompt_length**2 if stacks else 0  # a prompt's own, in float32, twice
        return scores + memory.row_bytes(lm.text_config, dtype, 0 if shared else prefix_length, prompt_length, new_tokens)

    def video_cost(prefix_length: int) -> int:
        return memory.prefix_bytes(lm.text_config, dtype, prefix_length) if stacks else 0

    def on_split(part: Sequence[Branch], reason: BaseException) -> None:
        longest = max(row.prefix.length for row in part)
        lm.splits.append(memory.Split(len(part), longest, str(reason).splitlines()[0] if str(reason) else type(reason).__name__))

    sizes = [(row.prefix.length, len(row.ids)) for row in rows]
    budget = memory.budget_bytes(lm.device) + held_bytes
    result: dict[int, T] = {}
    for indices in memory.plan(sizes, cost, budget, max_batch, videos, video_cost):
        result |= zip(indices, memory.run_halving(work, [rows[i] for i in indices], on_split), strict=True)
    return [result[i] for i in range(len(rows))]
