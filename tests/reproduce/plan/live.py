"""The bytes that tensors hold, counted operation by operation, on any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Within the block: what operations made and somebody still holds; `peak` is the most of it."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[StorageWeakRef, int] = {}
        self.peak = 0

    def now(self) -> int:
        """Bytes held."""
        self._held = {reference: size for reference, size in self._held.items() if not reference.expired()}
        return sum(self._held.values())

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for storage in (t.untyped_storage() for t in tree_leaves(out) if isinstance(t, torch.Tensor)):
            if storage._cdata not in given:  # else it is a view, or was changed in place
                self._held[StorageWeakRef(storage)] = storage.nbytes()
        self.peak = max(self.peak, self.now())
        return out
