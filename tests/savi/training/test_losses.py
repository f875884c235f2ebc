"""The losses as formulas, and where the reference enters."""

from __future__ import annotations

import math

import pytest
import torch

from savi.training.losses import DPOSettings, preference_losses, reward_sums, step_loss

POLICY = torch.tensor([[-3.0, -5.0], [-4.0, -2.0]], dtype=torch.float64)
REFERENCE = torch.tensor([[-3.5, -4.0], [-4.0, -2.5]], dtype=torch.float64)
LENGTHS = torch.tensor([[2, 4], [1, 5]])
MARGINS = [0.5 - (-1.0), 0.0 - 0.5]


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_formulas(beta: float) -> None:
    sigmoid = [math.log(1 + math.exp(-beta * margin)) for margin in MARGINS]
    hinge = [max(0.0, 1 - beta * margin) for margin in MARGINS]
    ipo = [(0.5 / 2 - (-1.0) / 4 - 1 / (2 * beta)) ** 2, (0.0 - 0.5 / 5 - 1 / (2 * beta)) ** 2]
    for kind, expected in (("sigmoid", sigmoid), ("hinge", hinge), ("ipo", ipo)):
        found = preference_losses(POLICY, REFERENCE, LENGTHS, beta=beta, loss_type=kind)  # type: ignore[arg-type]
        assert found.tolist() == pytest.approx(expected)


def test_an_unknown_loss() -> None:
    with pytest.raises(ValueError, match="sigmoid, ipo, hinge"):
        preference_losses(POLICY, REFERENCE, LENGTHS, beta=1.0, loss_type="kto")  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [DPOSettings(), DPOSettings(rpo_alpha=0.5), DPOSettings(method="sft"), DPOSettings(loss_type="ipo")])
def test_shares_add_up(settings: DPOSettings) -> None:
    """Micro-batches and processes divide by the step's totals, so their losses add up to that of the whole step."""
    reference = REFERENCE if settings.needs_reference else None
    whole = step_loss(POLICY, reference, LENGTHS, settings, step_pairs=2, step_chosen_tokens=3)
    parts = [
        step_loss(
            POLICY[i : i + 1],
            None if reference is None else reference[i : i + 1],
            LENGTHS[i : i + 1],
            settings,
            step_pairs=2,
            step_chosen_tokens=3,
        )
        for i in range(2)
    ]
    assert float(whole) == pytest.approx(float(sum(parts)))


def test_rpo_adds_the_mean_nll_per_chosen_token() -> None:
    plain = step_loss(POLICY, REFERENCE, LENGTHS, DPOSettings(), step_pairs=2, step_chosen_tokens=3)
    rpo = step_loss(POLICY, REFERENCE, LENGTHS, DPOSettings(rpo_alpha=0.5), step_pairs=2, step_chosen_tokens=3)
    assert float(rpo - plain) == pytest.approx(0.5 * (3.0 + 4.0) / 3)


def test_dpo_needs_a_reference() -> None:
    with pytest.raises(ValueError, match="reference"):
        step_loss(POLICY, None, LENGTHS, DPOSettings(), step_pairs=2, step_chosen_tokens=3)


def test_rewards() -> None:
    sums = reward_sums(POLICY, REFERENCE, LENGTHS, DPOSettings(beta=0.5))
    assert sums["rewards/margins"] == pytest.approx(0.5 * sum(MARGINS))
    assert sums["rewards/accuracies"] == 1
    assert sums["tokens"] == 3
