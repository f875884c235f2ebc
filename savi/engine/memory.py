"""How many rows fit: what a row costs is known in advance (its prefix's keys and values), what is free is asked of the machine.

A batch that runs out of memory all the same is split in half and tried again; every split is recorded. Nothing here knows texts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from savi.base.errors import SaviError

T = TypeVar("T")
R = TypeVar("R")

MOST_ROWS = 512
"""Rows in a batch where memory sets no lower bound: beyond it nothing is gained."""

_SHARE = {"cuda": 0.85, "cpu": 0.4}
"""The share of free memory a batch may plan with: a CPU's memory belongs to others too."""


class EngineMemoryError(SaviError, MemoryError):
    """One row alone does not fit: names the sizes and what to lower."""


@dataclass(frozen=True)
class Split:
    """A batch that ran out of memory and was cut in two."""

    rows: int
    prefix_length: int
    reason: str


def available_bytes(device: torch.device) -> int:
    """Free bytes on a device; on the CPU what the kernel calls available, within the cgroup's limit where there is one."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip().isdigit():
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(free, 0)


def row_bytes(text_config: Any, dtype: torch.dtype, prefix_length: int, prompt_length: int, new_tokens: int) -> int:
    """Bytes one row of a batch needs at its peak: keys and values, one layer's attention, activations of the prompt, logits.

    `prefix_length` is 0 where the prefix is shared in place: it is in memory already and no row copies it.
    """
    size = torch.empty((), dtype=dtype).element_size()
    heads = int(text_config.num_attention_heads)
    kv_heads = int(getattr(text_config, "num_key_value_heads", None) or heads)
    head_dim = int(getattr(text_config, "head_dim", None) or text_config.hidden_size // heads)
    slots = prefix_length + prompt_length + new_tokens
    cache = int(text_config.num_hidden_layers) * 2 * kv_heads * head_dim * slots * size
    one_layer = 2 * heads * head_dim * slots * size + prompt_length * slots * size + 8 * heads * prompt_length**2
    activations = prompt_length * (6 * int(text_config.hidden_size) + 3 * int(text_config.intermediate_size)) * size
    logits = int(text_config.vocab_size) * (4 + 4 + 8 + 8)
    return cache + one_layer + activations + logits


def prefix_bytes(text_config: Any, dtype: torch.dtype, prefix_length: int) -> int:
    """Bytes of a prefix's keys and values: what a batch adds for each of its videos where it stacks them."""
    return row_bytes(text_config, dtype, prefix_length, 0, 0) - row_bytes(text_config, dtype, 0, 0, 0)


def plan(
    sizes: Sequence[tuple[int, int]],
    row_cost: Callable[[int, int], int],
    budget: int,
    max_batch: int | None,
    neighbours: Sequence[int] | None = None,
    video_cost: Callable[[int], int] = lambda prefix_length: 0,
) -> list[list[int]]:
    """Cut rows, given as (prefix length, prompt length), into batches of indices that stay within `budget` bytes.

    Rows of like lengths stand together: a batch costs its number of rows times its longest prefix and longest prompt, and its number of
    videos times what its longest prefix adds. `neighbours` numbers the videos where rows of one video should stand together before all
    else.
    """
    most = max_batch or MOST_ROWS
    batches: list[list[int]] = []
    longest = (0, 0)
    video = neighbours or [0] * len(sizes)
    videos: set[int] = set()
    for index in sorted(range(len(sizes)), key=lambda i: (sizes[i][0], video[i], sizes[i][1], i)):
        grown = (max(longest[0], sizes[index][0]), max(longest[1], sizes[index][1]))
        needed = (len(batches[-1]) + 1) * row_cost(*grown) + len(videos | {video[index]}) * video_cost(grown[0]) if batches else 0
        if batches and len(batches[-1]) < most and needed <= budget:
            batches[-1].append(index)
            longest = grown
            videos.add(video[index])
        else:
            batches.append([index])
            longest = sizes[index]
            videos = {video[index]}
    return batches


def budget_bytes(device: torch.device) -> int:
    """The part of the free memory that a batch may plan with."""
    return int(available_bytes(device) * _SHARE.get(device.type, 0.4))


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA's error class, Python's, or the CPU allocator's RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in ("can't allocate memory", "not enough memory"))


def run_halving(
    work: Callable[[Sequence[T]], list[R]], items: Sequence[T], on_split: Callable[[Sequence[T], BaseException], None]
) -> list[R]:
    """`work(items)`; out of memory: the two halves one after the other, and so on down to one item.

    Raises:
        EngineMemoryError: one item alone does not fit.
    """
    try:
        return work(items)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = error
    if len(items) == 1:
        raise EngineMemoryError(f"one prompt on one video does not fit ({reason}); lower num_frames or max_new_tokens") from reason
    on_split(items, reason)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(items) // 2
    return run_halving(work, items[:half], on_split) + run_halving(work, items[half:], on_split)
