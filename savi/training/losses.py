"""Direct preference optimisation: its settings and its losses, as functions of log-probabilities.

How the log-probabilities come about (packed, or one sequence at a time) is `savi.training.packing`; stepping is `savi.training.trainer`.
Names and defaults follow TRL's `DPOConfig`, which the settings are turned into.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

if TYPE_CHECKING:
    from trl import DPOConfig

LossType = Literal["sigmoid", "ipo", "hinge"]
BranchAttention = Literal["sdpa", "flex"]
Sharding = Literal["none", "fsdp2", "deepspeed"]

MACHINE_ONLY = frozenset({"sharding", "branch_attention"})
"""Settings that suit a machine: a run may go on without them, or with others, on the next one."""

SPEED_ONLY = MACHINE_ONLY | {"max_batch_tokens", "gradient_checkpointing", "engine", "features_mb"}
"""Settings that change time and memory and, beyond rounding, nothing else."""

PLAIN_SHARDED = (
    "engine 'plain' runs a different number of forward passes on each process, and processes that share a model would wait for each other "
    "for ever: use engine 'packed' with sharding"
)


class DPOSettings(BaseModel):
    """How one iteration is trained.

    `method` "sft" trains on the chosen answers alone (negative log-likelihood), with no reference model. `rpo_alpha` weighs the same term
    next to the preference loss (0: none). `pairs_per_step` bounds the pairs of an optimiser step, over all processes. `lora_r` 0 is full
    fine-tuning of the language model. `max_batch_tokens` bounds the padded tokens of one forward pass (memory), and never changes the
    result beyond rounding. `features_mb` bounds the encoded videos kept in memory; the rest is decoded and encoded again when needed.
    `engine` "plain" runs one sequence at a time, the oracle. `save_steps` 0 keeps no checkpoints on the way; else it is rounded up to a
    multiple of `logging_steps`, so that a resumed log equals an uninterrupted one. `num_frames` None: as the pairs were made.

    `branch_attention` "flex": the branches behind a prefix go through flex attention, which skips what they do not see and needs no mask of
    queries times keys (CUDA only; the prefix stays with sdpa's causal kernel either way).

    `sharding` says what the processes of a launch (`torchrun`, `accelerate launch`) keep whole: "none" the model on each (DDP); "fsdp2"
    weights, gradients and optimiser state are spread (PyTorch's FSDP2); "deepspeed" gradients and optimiser state are (ZeRO stage 2;
    needs the package deepspeed). Either way the result is a plain checkpoint, and the same up to rounding (a bfloat16 model is trained
    more finely: both keep float32 weights behind it). `accelerate launch` with an FSDP2 or DeepSpeed config does the same without this
    setting.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["dpo", "sft"] = "dpo"
    beta: float = Field(0.1, gt=0)
    loss_type: LossType = "sigmoid"
    rpo_alpha: float = Field(0.0, ge=0)
    learning_rate: float = Field(1e-6, gt=0)
    epochs: int = Field(1, ge=1)
    pairs_per_step: int = Field(16, ge=1)
    lora_r: int = Field(0, ge=0)
    lora_alpha: int = Field(32, ge=1)
    freeze_vision: Literal[True] = True
    warmup_ratio: float = Field(0.1, ge=0, le=1)
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    max_grad_norm: float = Field(1.0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    adam_beta2: float = Field(0.999, gt=0, lt=1)
    seed: int = 0
    gradient_checkpointing: bool = False
    logging_steps: int = Field(10, ge=1)
    save_steps: int = Field(0, ge=0)
    max_batch_tokens: int = Field(16384, ge=1)
    features_mb: float = Field(4096.0, gt=0)
    num_frames: int | None = Field(None, ge=1)
    engine: Literal["packed", "plain"] = "packed"
    branch_attention: BranchAttention = "sdpa"
    sharding: Sharding = "none"

    @model_validator(mode="after")
    def _check(self) -> DPOSettings:
        if self.method == "sft" and self.rpo_alpha:
            raise ValueError(
                "rpo_alpha adds the SFT term to the preference loss; with method 'sft' that term is all there is: leave it out"
            )
        if self.sharding != "none" and self.engine == "plain":
            raise ValueError(PLAIN_SHARDED)
        return self

    @property
    def needs_reference(self) -> bool:
        return self.method == "dpo"

    @property
    def sft_weight(self) -> float:
        """Weight of the negative log-likelihood of the chosen answers."""
        return 1.0 if self.method == "sft" else self.rpo_alpha

    def checkpoint_every(self) -> int:
        """`save_steps` rounded up to a multiple of `logging_steps`; 0 for none."""
        return -(-self.save_steps // self.logging_steps) * self.logging_steps

    def trl_config(self, output_dir: str | Path, *, total_steps: int, use_cpu: bool, bf16: bool, **more: Any) -> DPOConfig:
        """These settings as TRL's `DPOConfig`, complete enough for its own `DPOTrainer` (rpo_alpha is its "sft" loss with that weight).

        `more`: further options of Trainer's, see `savi.training.sharding.trainer_options`.
        """
        from savi.base.torchvision import fix_torchvision

        fix_torchvision()
        from trl import DPOConfig

        if self.method == "sft":
            losses: list[str] = ["sft"]
            weights: list[float] | None = None
        else:
            losses = [self.loss_type] + (["sft"] if self.rpo_alpha else [])
            weights = [1.0, self.rpo_alpha] if self.rpo_alpha else None
        every = self.checkpoint_every()
        options: dict[str, Any] = {
            "output_dir": str(output_dir),
            "beta": self.beta,
            "loss_type": losses,
            "loss_weights": weights,
            "learning_rate": self.learning_rate,
            "num_train_epochs": 1,  # the plan of steps spans all epochs, see savi.training.trainer
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "warmup_steps": round(self.warmup_ratio * total_steps),
            "lr_scheduler_type": self.lr_scheduler,
            "max_grad_norm": self.max_grad_norm,
            "weight_decay": self.weight_decay,
            "adam_beta2": self.adam_beta2,
            "seed": self.seed,
            "data_seed": self.seed,
            "gradient_checkpointing": self.gradient_checkpointing,
            "gradient_checkpointing_kwargs": {"use_reentrant": False} if self.gradient_checkpointing else None,
            "logging_steps": self.logging_steps,
            "logging_first_step": True,
            "save_strategy": "steps" if every else "no",
            "save_steps": every or 500,
            "save_total_limit": 2,
            "eval_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "remove_unused_columns": False,
            "dataloader_num_workers": 0,
            "dataloader_pin_memory": False,
            "use_cpu": use_cpu,
            "bf16": bf16,
            "precompute_ref_log_probs": self.needs_reference,
            **more,
        }
        with (
            warnings.catch_warnings()
        ):  # transformers 5.23 renames the option; the new name is not known to the oldest version allowed here
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated", category=FutureWarning)
            return DPOConfig(**options)


def preference_losses(policy: Tensor, reference: Tensor, lengths: Tensor, *, beta: float, loss_type: LossType) -> Tensor:
    """The loss of each pair [n], from summed log-probabilities [n, 2] (chosen, rejected) of policy and reference; `lengths` [n, 2] in
    tokens.

    With h = log pi(c)/pi_ref(c) - log pi(r)/pi_ref(r):

    * sigmoid: -log sigmoid(beta h). Rafailov et al. 2023 (arXiv 2305.18290), eq. 7.
    * hinge: max(0, 1 - beta h). Zhao et al. 2023 (SLiC-HF, arXiv 2305.10425) in DPO's parametrisation (Liu et al. 2024, RSO, arXiv
      2309.06657).
    * ipo: (h' - 1 / (2 beta))^2, h' with each log-ratio divided by its number of tokens, as TRL does on the word of IPO's authors. Azar
      et al. 2023 (arXiv 2310.12036), eq. 17, beta being its tau.
    """
    ratios = policy - reference
    if loss_type == "ipo":
        per_token = ratios / lengths.clamp(min=1)
        return (per_token[:, 0] - per_token[:, 1] - 1 / (2 * beta)) ** 2
    margin = beta * (ratios[:, 0] - ratios[:, 1])
    if loss_type == "hinge":
        return torch.relu(1 - margin)
    if loss_type == "sigmoid":
        return -F.logsigmoid(margin)
    raise ValueError(f"loss_type {loss_type!r}: unknown; there are sigmoid, ipo, hinge")


def step_loss(
    policy: Tensor, reference: Tensor | None, lengths: Tensor, settings: DPOSettings, *, step_pairs: int, step_chosen_tokens: int
) -> Tensor:
    """This batch's share of an optimiser step's loss, a scalar; the shares of all batches and processes add up to it.

        sum of pair losses / step_pairs + sft_weight * (- sum of log p(chosen)) / step_chosen_tokens

    The second term is the NLL term of iterative RPO (Pang et al. 2024, arXiv 2404.19733, eq. 1), divided by the number of chosen tokens
    of the step as TRL's "sft" loss is (the paper divides by each answer's own length).
    """
    loss = policy.new_zeros(())
    if settings.method == "dpo":
        if reference is None:
            raise ValueError("method 'dpo' needs the reference's log-probabilities")
        losses = preference_losses(policy, reference, lengths, beta=settings.beta, loss_type=settings.loss_type)
        loss = loss + losses.sum() / step_pairs
    if settings.sft_weight:
        loss = loss - settings.sft_weight * policy[:, 0].sum() / step_chosen_tokens
    return loss


def reward_sums(policy: Tensor, reference: Tensor | None, lengths: Tensor, settings: DPOSettings) -> dict[str, float]:
    """What the log shows of a batch, as sums over its pairs (`pairs` of them) and chosen tokens (`tokens`).

    Implicit rewards are beta log pi/pi_ref (Rafailov et al. 2023, eq. 5); without a reference there are none.
    """
    policy = policy.detach()
    sums = {
        "pairs": float(policy.shape[0]),
        "tokens": float(lengths[:, 0].sum()),
        "logps/chosen": float(policy[:, 0].sum()),
    }
    if reference is not None:
        rewards = settings.beta * (policy - reference)
        margins = rewards[:, 0] - rewards[:, 1]
        sums |= {
            "logps/rejected": float(policy[:, 1].sum()),
            "rewards/chosen": float(rewards[:, 0].sum()),
            "rewards/rejected": float(rewards[:, 1].sum()),
            "rewards/margins": float(margins.sum()),
            "rewards/accuracies": float((margins > 0).sum()),
        }
    return sums
