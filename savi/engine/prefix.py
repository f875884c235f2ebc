"""A video encoded once: its keys and values, and the cache that continues it for many prompts at the same time.

`Prefix` is what is kept of a video; `expand` lays prefixes of any lengths into one preallocated cache, a row for each prompt.
The module knows tensors and transformers' cache interface, nothing of prompts, tokenizers or families.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

KeyValues = tuple[Tensor, Tensor]


@dataclass
class Prefix:
    """System message and frames of one video after the language model.

    `ids` `[P]`; `kv`: one `(keys, values)` a layer, each `[1, H, P, D]`; `length` = P, the cache slots used; `next_pos`: the rope
    position of the first token after it (not `length` for M-RoPE: there it is the largest position + 1).
    """

    ids: Tensor
    kv: list[KeyValues]
    length: int
    next_pos: int


class PreallocatedLayer(DynamicLayer):
    """A cache layer with its full length allocated at the start: `update` writes in place and returns views.

    The stock layer concatenates, which copies the whole prefix for every new token.
    """

    def __init__(self, keys: Tensor, values: Tensor, used: int) -> None:
        super().__init__()
        self.key_buffer, self.value_buffer, self.used = keys, values, used
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.keys, self.values = keys[:, :, :used], values[:, :, :used]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> KeyValues:
        """Append `[B, H, n, D]` and return all keys and values so far."""
        end = self.used + key_states.shape[2]
        if end > self.key_buffer.shape[2]:
            raise IndexError(f"cache of {self.key_buffer.shape[2]} slots is full: {end} needed")
        self.key_buffer[:, :, self.used : end] = key_states
        self.value_buffer[:, :, self.used : end] = value_states
        self.used = end
        self.keys, self.values = self.key_buffer[:, :, :end], self.value_buffer[:, :, :end]
        return self.keys, self.values

    def select(self, rows: Tensor) -> None:
        """Keep these rows only."""
        self.key_buffer, self.value_buffer = self.key_buffer.index_select(0, rows), self.value_buffer.index_select(0, rows)
        self.keys, self.values = self.key_buffer[:, :, : self.used], self.value_buffer[:, :, : self.used]


class BranchCache(DynamicCache):
    """Preallocated layers that continue one or more prefixes."""

    def __init__(self, layers: Sequence[PreallocatedLayer]) -> None:
        super().__init__()
        self.layers = list(layers)

    def select(self, rows: Tensor) -> None:
        """Keep these rows only, in every layer."""
        for layer in self.layers:
            layer.select(rows)


class PrefixCompleteError(Exception):
    """Not a failure: raised inside a forward to end it once every layer's keys and values are there; `complete_prefix` catches it."""


class PrefixCache(DynamicCache):
    """Takes a prefix's keys and values and ends the forward with the last layer's.

    What that layer would go on to compute (attention, MLP, head) is not needed: only tokens after the prefix are read out, and they see
    the prefix through its keys and values alone.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self._last = int(config.num_hidden_layers) - 1

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> KeyValues:
        """Append `[B, H, n, D]`; does not return for the last layer."""
        stored = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if layer_idx == self._last:
            raise PrefixCompleteError
        return stored


def complete_prefix(forward: Callable[[], object]) -> None:
    """Run a model's forward that was given a `PrefixCache`.

    Raises:
        RuntimeError: the forward came to its end: it did not write to the cache it was given.
    """
    try:
        forward()
    except PrefixCompleteError:
        return
    raise RuntimeError("the model ran to its end without filling the cache it was given; its prefixes cannot be shared")


def cache_keyword(model: Any) -> str:
    """What a model's forward calls the cache it is given: `cache` since transformers 5.24, `past_key_values` before."""
    return _cache_keyword(model.__class__)


@cache
def _cache_keyword(kind: Any) -> str:
    return "cache" if "cache" in inspect.signature(kind.forward).parameters else "past_key_values"


def read_prefixes(cache: Cache, ids: Tensor, next_pos: int) -> list[Prefix]:
    """The prefixes a forward over `ids [B, P]` left in `cache`, as views, one a row."""
    stacked = [(layer.keys, layer.values) for layer in cache.layers]
    rows, length = ids.shape
    return [Prefix(ids[i], [(k[i : i + 1], v[i : i + 1]) for k, v in stacked], length, next_pos) for i in range(rows)]


def expand(prefixes: Sequence[Prefix], rows: Tensor, extra: int) -> BranchCache:
    """A cache with one row for each entry of `rows` (indices into `prefixes`) and room for `extra` tokens after it.

    Prefixes are aligned at their ends: a shorter one has zeros in front, which the mask hides.
    """
    longest = max(p.length for p in prefixes)
    layers = []
    for number in range(len(prefixes[0].kv)):
        buffers = []
        for part in (0, 1):
            first = prefixes[0].kv[number][part]
            buffer = first.new_empty(len(rows), first.shape[1], longest + extra, first.shape[3])
            buffer[:, :, :longest] = _aligned([p.kv[number][part] for p in prefixes], longest, rows)
            buffers.append(buffer)
        layers.append(PreallocatedLayer(buffers[0], buffers[1], longest))
    return BranchCache(layers)


def empty(like: Prefix, rows: int, extra: int) -> BranchCache:
    """A cache for `rows` rows and `extra` tokens that begins after the prefixes: those are attended to where they are."""
    layers = []
    for keys, values in like.kv:
        shape = (rows, keys.shape[1], extra)
        layers.append(PreallocatedLayer(keys.new_empty(*shape, keys.shape[3]), values.new_empty(*shape, values.shape[3]), 0))
    return BranchCache(layers)


def _aligned(parts: Sequence[Tensor], longest: int, rows: Tensor) -> Tensor:
    """`[1, H, P_i, D]` tensors, aligned at their ends, one row for each entry of `rows`."""
    if len(parts) == 1:
        return parts[0]
    if all(part.shape[2] == longest for part in parts):
        return torch.cat(list(parts)).index_select(0, rows)
    padded = parts[0].new_zeros(len(parts), parts[0].shape[1], longest, parts[0].shape[3])
    for i, part in enumerate(parts):
        padded[i, :, longest - part.shape[2] :] = part[0]
    return padded.index_select(0, rows)
