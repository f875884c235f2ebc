"""Muon (Jordan et al. 2024), all matrices of a shape at once.

`torch.optim.Muon` orthogonalises one matrix at a time and in bfloat16. A processor without bfloat16 arithmetic emulates that, and then
takes longer over it than over the rest of a training step; here the type is asked for. Constants and order of operations are torch's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration (github.com/KellerJordan/Muon)."""
STEPS = 5


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """Matrices `[N, A, B]` -> nearly orthogonal ones of the same row and column spaces (singular values between about 0.7 and 1.2)."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT.contiguous() if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum (Nesterov), orthogonalised in `dtype`, with decoupled weight decay; parameters are matrices."""

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype = dtype
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step on every parameter that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for shape, params in shapes.items():
                updates = []
                for p in params:
                    buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    buffer.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(buffer, group["momentum"]))
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for p, update in zip(params, orthogonalise(torch.stack(updates).to(self.dtype)), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)


class Optimizers:
    """Muon for the matrices of the layers (half the steps of AdamW here), AdamW for embeddings, norms and biases."""

    def __init__(self, named: Sequence[tuple[str, torch.nn.Parameter]], lr: float, muon_lr: float, dtype: torch.dtype) -> None:
        matrices = [p for n, p in named if p.dim() == 2 and "embed" not in n]
        rest = [p for n, p in named if not (p.dim() == 2 and "embed" not in n)]
        self.parts: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.AdamW(rest, lr=lr, weight_decay=0.0, betas=(0.9, 0.98)),
            Muon(matrices, lr=muon_lr, weight_decay=0.02, momentum=0.95, dtype=dtype),
        )
        self.base = [o.param_groups[0]["lr"] for o in self.parts]
        self.params = [p for _, p in named]

    def step(self, done: float, warm_up: float) -> None:
        """One step, `done` (0-1) of the way: a rise from nothing over the first `warm_up`, a cosine down to 3 % at the end. Gradients
        are clipped to norm 1, then cleared."""
        factor = min(1.0, (done + 1e-9) / warm_up) * (0.5 * (1 + math.cos(math.pi * done)) * 0.97 + 0.03)
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        for o, lr in zip(self.parts, self.base, strict=True):
            o.param_groups[0]["lr"] = lr * factor
            o.step()
            o.zero_grad(set_to_none=True)
