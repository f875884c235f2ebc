"""The losses as formulas, and where the reference enters."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError

from savi.training.losses import LOSSES, Logps, reward_sums, step_loss
from savi.training.settings import DPOSettings

LOGPS = Logps(
    policy=torch.tensor([[-3.0, -5.0], [-4.0, -2.0]], dtype=torch.float64),
    reference=torch.tensor([[-3.5, -4.0], [-4.0, -2.5]], dtype=torch.float64),
    lengths=torch.tensor([[2, 4], [1, 5]]),
)
FREE = Logps(LOGPS.policy, None, LOGPS.lengths)
MARGINS = [0.5 - (-1.0), 0.0 - 0.5]
MEANS = [(-3.0 / 2, -5.0 / 4), (-4.0 / 1, -2.0 / 5)]
"""Log-probability of a token in the mean, chosen and rejected."""


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_formulas(beta: float) -> None:
    expected = {
        "sigmoid": [-log_sigmoid(beta * margin) for margin in MARGINS],
        "hinge": [max(0.0, 1 - beta * margin) for margin in MARGINS],
        "ipo": [(0.5 / 2 - (-1.0) / 4 - 1 / (2 * beta)) ** 2, (0.0 - 0.5 / 5 - 1 / (2 * beta)) ** 2],
        "robust": [(-0.7 * log_sigmoid(beta * m) + 0.3 * log_sigmoid(-beta * m)) / 0.4 for m in MARGINS],
        "simpo": [-log_sigmoid(beta * (chosen - rejected) - 0.8) for chosen, rejected in MEANS],
    }
    assert set(expected) == set(LOSSES)
    given = {"robust": {"label_smoothing": 0.3}, "simpo": {"gamma": 0.8}}
    for name, values in expected.items():
        found = LOSSES[name].formula(LOGPS, beta, given.get(name, {}))
        assert found.tolist() == pytest.approx(values), name


def test_robust_without_noise_is_sigmoid() -> None:
    parts = [LOSSES[name].formula(LOGPS, 0.7, {"label_smoothing": 0.0}) for name in ("robust", "sigmoid")]
    assert torch.equal(*parts)


def test_simpo_by_hand() -> None:
    """Mean log-probabilities -1.5 and -1.25, beta 2, gamma 0.5: 2 (-1.5 + 1.25) - 0.5 = -1, and -log sigmoid(-1) = log(1 + e) = 1.31326."""
    loss = DPOSettings(loss_type="simpo", beta=2.0).objective
    first = Logps(FREE.policy[:1], None, FREE.lengths[:1])
    assert float(step_loss(first, loss, step_pairs=1, step_chosen_tokens=2)) == pytest.approx(1.31326, abs=1e-5)
    sums = reward_sums(first, loss)
    assert (sums["rewards/chosen"], sums["rewards/rejected"]) == (-3.0, -2.5), "beta times the mean log-probability of a token"


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_loss_says_whether_it_needs_a_reference(name: str) -> None:
    objective = DPOSettings(loss_type=name).objective
    if LOSSES[name].needs_reference:
        with pytest.raises(ValueError, match="reference"):
            step_loss(FREE, objective, step_pairs=2, step_chosen_tokens=3)
    else:
        with_reference, without = (step_loss(x, objective, step_pairs=2, step_chosen_tokens=3) for x in (LOGPS, FREE))
        assert with_reference == without
    assert LOSSES[name].source and LOSSES[name].text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss_type": "kto"}, "'kto': unknown; there are sigmoid, ipo, hinge"),
        ({"loss_parameters": {"gamma": 1}}, "sigmoid has no parameter 'gamma'"),
        ({"loss_type": "robust", "loss_parameters": {"label_smoothing": 0.5}}, r"must be at least 0.0 and below 0.5"),
        ({"loss_type": "simpo", "loss_parameters": {"gamma": float("nan")}}, "gamma is nan"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DPOSettings.model_validate(change)


@pytest.mark.parametrize("settings", [DPOSettings(), DPOSettings(rpo_alpha=0.5), DPOSettings(method="sft"), DPOSettings(loss_type="ipo")])
def test_shares_add_up(settings: DPOSettings) -> None:
    """Micro-batches and processes divide by the step's totals, so their losses add up to that of the whole step."""
    assert LOGPS.reference is not None
    whole = step_loss(LOGPS, settings.objective, step_pairs=2, step_chosen_tokens=3)
    parts = [
        step_loss(
            Logps(LOGPS.policy[i : i + 1], LOGPS.reference[i : i + 1], LOGPS.lengths[i : i + 1]),
            settings.objective,
            step_pairs=2,
            step_chosen_tokens=3,
        )
        for i in range(2)
    ]
    assert float(whole) == pytest.approx(float(sum(parts)))


def test_rpo_adds_the_mean_nll_per_chosen_token() -> None:
    plain = step_loss(LOGPS, DPOSettings().objective, step_pairs=2, step_chosen_tokens=3)
    rpo = step_loss(LOGPS, DPOSettings(rpo_alpha=0.5).objective, step_pairs=2, step_chosen_tokens=3)
    assert float(rpo - plain) == pytest.approx(0.5 * (3.0 + 4.0) / 3)


def test_rewards() -> None:
    sums = reward_sums(LOGPS, DPOSettings(beta=0.5).objective)
    assert sums["rewards/margins"] == pytest.approx(0.5 * sum(MARGINS))
    assert sums["rewards/accuracies"] == 1
    assert sums["tokens"] == 3


def test_losses_are_listed_without_torch() -> None:
    code = "import sys, savi.training.settings as s; s.DPOSettings(loss_type='simpo').objective; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
