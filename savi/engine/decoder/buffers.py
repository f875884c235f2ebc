"""What a step of the static decoder reads and writes: fixed places in memory, and one captured graph a bucket of shapes.

Buffers are flat and grow; a bucket looks at their beginning in its own shape, so that all buckets share them. The module knows tensors and
a model's forward, nothing of end tokens or sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from savi.engine.decoder.attention import Stacked
from savi.engine.prefix import KeyValues, Prefix

HIDDEN = -1e30
"""Added to a score that does not count."""

_MOST_GRAPHS = 32
_ROWS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def rows_bucket(rows: int) -> int:
    """The least number of rows at or above `rows` that a step is captured for."""
    return next((size for size in _ROWS if size >= rows), -(-rows // 128) * 128)


def videos_bucket(videos: int) -> int:
    """The same for videos: each costs a prefix to read, so the steps are small."""
    return videos if videos <= 8 else -(-videos // 4) * 4


def room_bucket(columns: int) -> int:
    """The same for columns of a branch."""
    return -(-columns // 128) * 128 if columns <= 512 else -(-columns // 256) * 256


def prefix_bucket(lengths: Sequence[int]) -> int:
    """Columns of the stacked prefixes: exact where all are equal, as kernels without a mask want it."""
    longest = max(lengths)
    return longest if min(lengths) == longest else -(-longest // 256) * 256


@dataclass(frozen=True)
class Bucket:
    """The shapes of a step: rows B, videos V, slots a video, columns of prefix, of the branch buffers and those of them that are read."""

    rows: int
    videos: int
    slots: int
    prefix: int
    branch: int
    room: int
    equal: bool
    in_order: bool


class StaticLayer(DynamicLayer):
    """A cache layer that writes new tokens at `columns [q]`, a tensor on the device, and returns the first `room` columns."""

    def __init__(self, keys: Tensor, values: Tensor, columns: Tensor, room: int) -> None:
        super().__init__()
        self.key_buffer, self.value_buffer, self.columns = keys, values, columns
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.keys, self.values = keys[:, :, :room], values[:, :, :room]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> KeyValues:
        """Write `[B, G, q, D]` in place."""
        self.key_buffer.index_copy_(2, self.columns, key_states)
        self.value_buffer.index_copy_(2, self.columns, value_states)
        return self.keys, self.values


class StaticCache(DynamicCache):
    """Static layers over one set of branch buffers."""

    def __init__(self, buffers: Sequence[KeyValues], columns: Tensor, room: int) -> None:
        super().__init__()
        self.layers = [StaticLayer(keys, values, columns, room) for keys, values in buffers]


@dataclass
class Step:
    """One bucket: the tensors a step reads, and its graph once it is captured."""

    bucket: Bucket
    tokens: Tensor
    positions: Tensor
    column: Tensor
    bias: Tensor
    stacked: Stacked
    cache: StaticCache
    graph: torch.cuda.CUDAGraph | None = None
    logits: Tensor | None = None

    def run(self, forward: Callable[[Step], Tensor], pool: Any) -> Tensor:
        """Logits `[B, vocabulary]` of the tokens as they stand: by the graph on CUDA, captured at the first call."""
        if not self.tokens.is_cuda:
            return forward(self)
        if self.graph is None:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):  # libraries choose and load their kernels; a step writes where it stands, so it may run often
                    forward(self)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # other threads may prepare the next videos
                self.logits = forward(self)
            self.graph = graph
        self.graph.replay()
        assert self.logits is not None
        return self.logits


@dataclass
class Arena:
    """Flat buffers a layer for prefixes and branches, and the steps captured over them.

    `weights`: where the model's weights lay when the steps were captured; a graph reads those places.
    """

    prefix: list[KeyValues] = field(default_factory=list)
    branch: list[KeyValues] = field(default_factory=list)
    steps: dict[Bucket, Step] = field(default_factory=dict)
    weights: tuple[int, ...] = ()
    pool: Any = None

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(part.numel() * part.element_size() for kv in (*self.prefix, *self.branch) for part in kv)

    def fit(self, like: Prefix, prefix_tokens: int, branch_tokens: int, model: nn.Module) -> None:
        """Make room for so many tokens; graphs over places that are given up are dropped."""
        weights = tuple(t.data_ptr() for t in (*model.parameters(), *model.buffers()))
        of = like.kv[0][0]
        shapes = [tuple(part.shape[1] * part.shape[3] for part in kv) for kv in like.kv]
        if self.weights != weights:
            self._forget_steps()
            self.weights = weights
        for name, tokens in (("prefix", prefix_tokens), ("branch", branch_tokens)):
            held: list[KeyValues] = getattr(self, name)
            if held and held[0][0].numel() >= tokens * shapes[0][0] and (held[0][0].dtype, held[0][0].device) == (of.dtype, of.device):
                continue
            self._forget_steps()
            held.clear()  # first: the old buffers and the new ones need not fit together
            held += [(of.new_zeros(tokens * key), of.new_zeros(tokens * value)) for key, value in shapes]

    def _forget_steps(self) -> None:
        """Drop all graphs, and their memory pool with them: a pool whose last graph is gone takes no new ones."""
        self.steps.clear()
        self.pool = torch.cuda.graph_pool_handle() if torch.cuda.is_available() else None

    def prefixes(self, like: Prefix, videos: int, length: int) -> list[KeyValues]:
        """Views `[V, G, P, D]`."""
        return _views(self.prefix, like, videos, length)

    def branches(self, like: Prefix, rows: int, length: int) -> list[KeyValues]:
        """Views `[B, G, L, D]`."""
        return _views(self.branch, like, rows, length)

    def step(self, bucket: Bucket, like: Prefix) -> Step:
        """The step of a bucket; its inputs are the caller's to fill."""
        if bucket not in self.steps:
            if len(self.steps) >= _MOST_GRAPHS:
                self._forget_steps()
            device = like.kv[0][0].device
            whole = {"dtype": torch.long, "device": device}
            column = torch.zeros(1, **whole)
            gathered = not bucket.in_order
            stacked = Stacked(
                self.prefixes(like, bucket.videos, bucket.prefix),
                [bucket.prefix if bucket.equal else 0] * bucket.videos,
                torch.zeros(bucket.videos, dtype=torch.int32, device=device),
                torch.zeros(bucket.videos, 1, 1, bucket.prefix, device=device),
                torch.zeros(bucket.videos * bucket.slots, **whole) if gathered else None,
                torch.zeros(bucket.rows, **whole) if gathered else None,
            )
            self.steps[bucket] = Step(
                bucket,
                torch.zeros(bucket.rows, 1, **whole),
                torch.zeros(bucket.rows, 1, **whole),
                column,
                torch.zeros(bucket.rows, bucket.room, device=device),
                stacked,
                StaticCache(self.branches(like, bucket.rows, bucket.branch), column, bucket.room),
            )
        return self.steps[bucket]


def _views(flat: Sequence[KeyValues], like: Prefix, count: int, length: int) -> list[KeyValues]:
    """The beginning of flat buffers as `[count, G, length, D]`."""
    made = []
    for (keys, values), (key, value) in zip(flat, like.kv, strict=True):
        first, second = (
            buffer[: count * part.shape[1] * length * part.shape[3]].view(count, part.shape[1], length, part.shape[3])
            for buffer, part in ((keys, key), (values, value))
        )
        made.append((first, second))
    return made
