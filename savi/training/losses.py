"""The preference losses: one object each, and the loss of a training step.

A loss is a function of the log-probabilities of a pair's two answers. To add one, add an object to `LOSSES`: the settings, the command line
and the scales read their choices from that table. How the log-probabilities come about is `savi.training.packing`. torch is imported where
a formula is computed, so that a command can list the losses without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Logps:
    """Summed log-probabilities of n pairs' answers, `policy` and `reference` [n, 2] (chosen, rejected), and their `lengths` [n, 2] in
    tokens. `reference` is None where the loss needs none."""

    policy: Tensor
    reference: Tensor | None
    lengths: Tensor

    @property
    def ratios(self) -> Tensor:
        """log pi / pi_ref [n, 2].

        Raises:
            ValueError: there is no reference.
        """
        if self.reference is None:
            raise ValueError("this loss needs the reference's log-probabilities")
        return self.policy - self.reference

    def per_token(self, sums: Tensor) -> Tensor:
        """Sums over an answer's tokens [n, 2], divided by their number."""
        return sums / self.lengths.clamp(min=1)


@dataclass(frozen=True)
class Parameter:
    """A number that a loss takes besides beta: its default, and the range it lies in, from `low` to below `high`."""

    default: float
    low: float
    high: float


Parameters = Mapping[str, float]


def _implicit_rewards(logps: Logps, beta: float) -> Tensor:
    """beta log pi / pi_ref [n, 2]. Rafailov et al. 2023, eq. 5 without its constant."""
    return beta * logps.ratios


@dataclass(frozen=True)
class Loss:
    """A preference loss.

    `formula`: (log-probabilities, beta, parameters) -> the loss of each pair [n]. `rewards`: the implicit rewards [n, 2] that the log
    shows. `trl`: its name in TRL's `DPOConfig`, None where TRL's DPO has it not. `parameters`: what it takes besides beta, named as in
    TRL where TRL has it.
    """

    name: str
    formula: Callable[[Logps, float, Parameters], Tensor]
    text: str
    source: str
    needs_reference: bool = True
    trl: str | None = None
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    rewards: Callable[[Logps, float], Tensor] = _implicit_rewards

    def with_defaults(self, given: Parameters) -> dict[str, float]:
        """All parameters: those given, else their defaults.

        Raises:
            ValueError: one is unknown or out of its range.
        """
        for name, value in given.items():
            if name not in self.parameters:
                raise ValueError(f"loss {self.name} has no parameter {name!r}; it has {', '.join(self.parameters) or 'none'}")
            known = self.parameters[name]
            if not known.low <= value < known.high:
                raise ValueError(f"loss {self.name}: {name} is {value}; it must be at least {known.low} and below {known.high}")
        return {name: known.default for name, known in self.parameters.items()} | dict(given)


def _log_sigmoid(x: Tensor) -> Tensor:
    from torch.nn.functional import logsigmoid

    return logsigmoid(x)


def _margin(rewards: Tensor) -> Tensor:
    return rewards[:, 0] - rewards[:, 1]


def _sigmoid(logps: Logps, beta: float, _: Parameters) -> Tensor:
    return -_log_sigmoid(beta * _margin(logps.ratios))


def _hinge(logps: Logps, beta: float, _: Parameters) -> Tensor:
    return (1 - beta * _margin(logps.ratios)).relu()


def _ipo(logps: Logps, beta: float, _: Parameters) -> Tensor:
    return (_margin(logps.per_token(logps.ratios)) - 1 / (2 * beta)) ** 2


def _robust(logps: Logps, beta: float, parameters: Parameters) -> Tensor:
    noise, margin = parameters["label_smoothing"], beta * _margin(logps.ratios)
    return (noise * _log_sigmoid(-margin) - (1 - noise) * _log_sigmoid(margin)) / (1 - 2 * noise)


def _mean_logps(logps: Logps, beta: float) -> Tensor:
    """beta times the mean log-probability of a token [n, 2]. Meng et al. 2024, eq. 4."""
    return beta * logps.per_token(logps.policy)


def _simpo(logps: Logps, beta: float, parameters: Parameters) -> Tensor:
    return -_log_sigmoid(_margin(_mean_logps(logps, beta)) - parameters["gamma"])


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss(
            name="sigmoid",
            formula=_sigmoid,
            text="-log sigmoid(beta h), h = log pi(c)/pi_ref(c) - log pi(r)/pi_ref(r)",
            source="DPO: Rafailov et al. 2023 (arXiv 2305.18290), eq. 7",
            trl="sigmoid",
        ),
        Loss(
            name="ipo",
            formula=_ipo,
            text="(h' - 1 / (2 beta))^2, h' with each log-ratio divided by its number of tokens, as TRL does on the word of IPO's authors",
            source="IPO: Azar et al. 2023 (arXiv 2310.12036), eq. 17, beta being its tau",
            trl="ipo",
        ),
        Loss(
            name="hinge",
            formula=_hinge,
            text="max(0, 1 - beta h)",
            source="SLiC-HF: Zhao et al. 2023 (arXiv 2305.10425) in DPO's parametrisation (RSO: Liu et al. 2024, arXiv 2309.06657)",
            trl="hinge",
        ),
        Loss(
            name="robust",
            formula=_robust,
            text="(-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)) / (1 - 2 e), e (label_smoothing) the share of wrong preferences",
            source="Robust DPO: Chowdhury et al. 2024 (arXiv 2403.00409)",
            trl="robust",
            parameters={"label_smoothing": Parameter(0.1, 0.0, 0.5)},
        ),
        Loss(
            name="simpo",
            formula=_simpo,
            text="-log sigmoid(beta (log pi(c)/|c| - log pi(r)/|r|) - gamma); usual are beta 2 to 10 and gamma 0.3 to 1.6",
            source="SimPO: Meng et al. 2024 (arXiv 2405.14734), eq. 6",
            needs_reference=False,
            parameters={"gamma": Parameter(0.5, 0.0, float("inf"))},
            rewards=_mean_logps,
        ),
    )
}


def _known(name: str) -> str:
    if name not in LOSSES:
        raise ValueError(f"loss_type {name!r}: unknown; there are {', '.join(LOSSES)}")
    return name


LossName = Annotated[str, AfterValidator(_known)]
"""The name of a loss, for pydantic."""


@dataclass(frozen=True)
class Objective:
    """What a step minimises: a preference loss (None: none), with its beta and parameters, and the NLL of the chosen answers, weighted."""

    loss: Loss | None
    beta: float = 0.1
    parameters: Parameters = field(default_factory=dict)
    nll_weight: float = 0.0

    @property
    def needs_reference(self) -> bool:
        return self.loss is not None and self.loss.needs_reference


def step_loss(logps: Logps, objective: Objective, *, step_pairs: int, step_chosen_tokens: int) -> Tensor:
    """This batch's share of an optimiser step's loss, a scalar; the shares of all batches and processes add up to it.

        sum of pair losses / step_pairs + nll_weight * (- sum of log p(chosen)) / step_chosen_tokens

    The second term is the NLL term of iterative RPO (Pang et al. 2024, arXiv 2404.19733, eq. 1), divided by the number of chosen tokens
    of the step as TRL's "sft" loss is (the paper divides by each answer's own length).
    """
    total = logps.policy.new_zeros(())
    if objective.loss is not None:
        total = total + objective.loss.formula(logps, objective.beta, objective.parameters).sum() / step_pairs
    if objective.nll_weight:
        total = total - objective.nll_weight * logps.policy[:, 0].sum() / step_chosen_tokens
    return total


def reward_sums(logps: Logps, objective: Objective) -> dict[str, float]:
    """What the log shows of a batch, as sums over its pairs (`pairs` of them) and chosen tokens (`tokens`). Without a preference loss there
    are no rewards."""
    logps = Logps(logps.policy.detach(), logps.reference, logps.lengths)
    sums = {
        "pairs": float(logps.policy.shape[0]),
        "tokens": float(logps.lengths[:, 0].sum()),
        "logps/chosen": float(logps.policy[:, 0].sum()),
    }
    if objective.loss is not None:
        rewards = objective.loss.rewards(logps, objective.beta)
        margins = rewards[:, 0] - rewards[:, 1]
        sums |= {
            "logps/rejected": float(logps.policy[:, 1].sum()),
            "rewards/chosen": float(rewards[:, 0].sum()),
            "rewards/rejected": float(rewards[:, 1].sum()),
            "rewards/margins": float(margins.sum()),
            "rewards/accuracies": float((margins > 0).sum()),
        }
    return sums
