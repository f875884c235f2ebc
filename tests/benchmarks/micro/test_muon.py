"""Muon in float32 against torch's own, and what its orthogonalisation promises."""

from __future__ import annotations

import pytest
import torch

from benchmarks.micro.pretrain.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 96, 32), (2, 32, 96)])
def test_singular_values_come_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(*shape) * 7))
    assert values.min() > 0.3 and values.max() < 1.3


def test_the_scale_of_a_gradient_does_not_matter_and_zero_stays_zero() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 16, 24)
    torch.testing.assert_close(orthogonalise(x * 1000), orthogonalise(x))
    assert not orthogonalise(torch.zeros(1, 4, 4)).any()


def test_steps_are_torchs_up_to_its_bfloat16() -> None:
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(*s)) for s in ((32, 32), (96, 32), (32, 32), (32, 96))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    a = Muon(ours, lr=0.01, weight_decay=0.02)
    b = torch.optim.Muon(theirs, lr=0.01, weight_decay=0.02, momentum=0.95)
    start = [p.detach().clone() for p in ours]
    for _ in range(4):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q, s in zip(ours, theirs, start, strict=True):
        assert (p - q).norm() < 0.02 * (p - s).norm()


def test_a_parameter_without_gradient_is_left_alone() -> None:
    p = torch.nn.Parameter(torch.ones(4, 4))
    Muon([p], lr=0.1).step()
    assert torch.equal(p, torch.ones(4, 4))
