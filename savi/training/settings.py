"""The settings of a training run, and their form as TRL's `DPOConfig`.

Names and defaults follow TRL. Losses are in `savi.training.losses`, stepping in `savi.training.trainer`. The module imports no
torch: a command can check its settings without it.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from savi.training.losses import LOSSES, LossName, Objective

if TYPE_CHECKING:
    from trl import DPOConfig

Method = Literal["dpo", "sft"]
LrScheduler = Literal["linear", "cosine", "constant", "constant_with_warmup"]
Sharding = Literal["none", "fsdp2", "deepspeed"]

SPEED_ONLY = frozenset(
    {"sharding", "branch_attention", "max_batch_tokens", "gradient_checkpointing", "engine", "features_mb", "save_steps"}
)
"""Settings that change time and memory and, beyond rounding, nothing else: a run may go on with others."""

PLAIN_SHARDED = (
    "engine 'plain' runs a different number of forward passes on each process, and processes that share a model would deadlock: "
    "use engine 'packed' with sharding"
)


class DPOSettings(BaseModel):
    """How one iteration is trained.

    `method` "sft" trains on the chosen answers alone (negative log-likelihood), with no reference model. `loss_type` names a loss of
    `savi.training.losses`, `loss_parameters` what it takes besides beta (left out: its defaults). `rpo_alpha` weighs the NLL of the
    chosen answers next to the preference loss (0: none). `pairs_per_step` bounds the pairs of an optimiser step, over all processes.
    `lora_r` 0 is full fine-tuning of the language model. `max_batch_tokens` bounds the padded tokens of one forward pass (memory), and
    never changes the result beyond rounding. `features_mb` bounds the encoded videos kept in memory; the rest is decoded and encoded
    again when needed. `gradient_checkpointing` "auto": where a step would not fit in memory without. `engine` "plain" runs one sequence
    at a time, the oracle. `logging_steps`: a row of the log every so many steps, at the first and at the last. `save_steps`: a checkpoint
    every so many steps, to go on from after a kill; 0: none. `num_frames` None: as the pairs were made.

    `sharding` says what the processes of a launch (`torchrun`, `accelerate launch`) keep whole: "none" the model on each (DDP); "fsdp2"
    weights, gradients and optimiser state are spread (PyTorch's FSDP2); "deepspeed" gradients and optimiser state are (ZeRO stage 2;
    needs the package deepspeed). Either way the result is a plain checkpoint, and the same up to rounding (a bfloat16 model is trained
    more finely: both keep float32 copies of its weights). `accelerate launch` with an FSDP2 or DeepSpeed config does the same without this
    setting.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method = "dpo"
    beta: float = Field(0.1, gt=0)
    loss_type: LossName = "sigmoid"
    loss_parameters: dict[str, float] = Field(default_factory=dict)
    rpo_alpha: float = Field(0.0, ge=0)
    learning_rate: float = Field(1e-6, gt=0)
    epochs: int = Field(1, ge=1)
    pairs_per_step: int = Field(16, ge=1)
    lora_r: int = Field(0, ge=0)
    lora_alpha: int = Field(32, ge=1)
    warmup_ratio: float = Field(0.1, ge=0, le=1)
    lr_scheduler: LrScheduler = "linear"
    max_grad_norm: float = Field(1.0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    adam_beta2: float = Field(0.999, gt=0, lt=1)
    seed: int = 0
    gradient_checkpointing: bool | Literal["auto"] = False
    logging_steps: int = Field(10, ge=1)
    save_steps: int = Field(0, ge=0)
    max_batch_tokens: int = Field(16384, ge=1)
    features_mb: float = Field(4096.0, gt=0)
    num_frames: int | None = Field(None, ge=1)
    engine: Literal["packed", "plain"] = "packed"
    branch_attention: Literal["sdpa", "flex"] = "sdpa"
    sharding: Sharding = "none"

    @model_validator(mode="after")
    def _check(self) -> DPOSettings:
        if self.method == "sft" and self.rpo_alpha:
            raise ValueError(
                "rpo_alpha adds the SFT term to the preference loss; with method 'sft' that term is all there is: leave it out"
            )
        LOSSES[self.loss_type].with_defaults(self.loss_parameters)
        if self.branch_attention == "flex":
            raise ValueError(
                "branch_attention 'flex' is no longer there: it was no faster (2.05 against 2.07 s a step of 8B); leave it out"
            )
        if self.sharding != "none" and self.engine == "plain":
            raise ValueError(PLAIN_SHARDED)
        return self

    @property
    def objective(self) -> Objective:
        """What a step minimises."""
        if self.method == "sft":
            return Objective(None, nll_weight=1.0)
        loss = LOSSES[self.loss_type]
        return Objective(loss, self.beta, loss.with_defaults(self.loss_parameters), nll_weight=self.rpo_alpha)

    def trl_config(self, output_dir: str | Path, *, total_steps: int, use_cpu: bool, bf16: bool, **more: Any) -> DPOConfig:
        """These settings as TRL's `DPOConfig`, complete enough for its own `DPOTrainer` (rpo_alpha is its "sft" loss with that weight).

        `more`: further options of Trainer's, see `savi.training.sharding.trainer_options`.
        """
        from savi.base.torchvision import fix_torchvision

        fix_torchvision()
        from trl import DPOConfig

        loss, parameters = self.objective.loss, self.objective.parameters
        if loss is None:
            losses = ["sft"]
        else:  # TRL's trainer cannot compute a loss that it has no name for; ours goes by these settings
            losses = [loss.trl or "sigmoid"] + (["sft"] if self.rpo_alpha else [])
        options: dict[str, Any] = {
            "output_dir": str(output_dir),
            "beta": self.beta,
            "loss_type": losses,
            "loss_weights": [1.0, self.rpo_alpha] if len(losses) == 2 else None,
            **(parameters if loss is not None and loss.trl else {}),
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
            "gradient_checkpointing": bool(self.gradient_checkpointing),
            "gradient_checkpointing_kwargs": {"use_reentrant": False} if self.gradient_checkpointing else None,
            "logging_steps": self.logging_steps,
            "logging_first_step": True,
            "logging_nan_inf_filter": False,
            "save_strategy": "steps" if self.save_steps else "no",
            "save_steps": self.save_steps or 500,
            "save_total_limit": 2,
            "eval_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "remove_unused_columns": False,
            "dataloader_num_workers": 0,
            "dataloader_pin_memory": False,
            "use_cpu": use_cpu,
            "bf16": bf16,
            "precompute_ref_log_probs": self.objective.needs_reference,
            **more,
        }
        with (
            warnings.catch_warnings()
        ):  # transformers 5.23 renames the option; the new name is not known to the oldest version allowed here
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated", category=FutureWarning)
            return DPOConfig(**options)
