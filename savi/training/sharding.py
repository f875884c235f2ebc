"""Training with the model's state spread over processes: FSDP2 and DeepSpeed's ZeRO, as accelerate brings them.

What is ours: the frozen vision tower stays whole on every process (videos are encoded at different times on different processes, so it
must not wait for the others), and what is written at the end is a plain checkpoint. Loading and the reference need the whole weights once
on each process; gradients, optimiser state and, with FSDP2, the weights in training are sharded.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from savi.base.errors import ExitCode, SaviError
from savi.training.settings import DPOSettings, Sharding

if TYPE_CHECKING:
    from savi.families import Family


class ShardingError(SaviError, ValueError):
    """Training cannot be sharded this way: says why, and what to do instead."""

    exit_code = ExitCode.USAGE


def trainer_options(settings: DPOSettings, model: nn.Module, family: Family) -> dict[str, Any]:
    """What `TrainingArguments` are told for `settings.sharding`.

    Raises:
        ShardingError: there are no processes to spread the model over, or a package is missing.
    """
    if settings.sharding == "none":
        return {}
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise ShardingError(
            f"sharding {settings.sharding!r} spreads a model over processes, but this is one alone: start it with "
            "`torchrun --nproc-per-node=N ...` or `accelerate launch ...`, or leave sharding out"
        )
    if settings.sharding == "deepspeed":
        return {"deepspeed": _zero_2()}
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "transformer_layer_cls_to_wrap": layer_classes(model, family),
            "reshard_after_forward": True,
            "cpu_ram_efficient_loading": False,
            "state_dict_type": "SHARDED_STATE_DICT",
        },
    }


def _zero_2() -> dict[str, Any]:
    """ZeRO stage 2 around Trainer's own optimiser and schedule.

    Raises:
        ShardingError: DeepSpeed is not installed.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise ShardingError("sharding 'deepspeed' needs the package deepspeed, which is not installed; sharding 'fsdp2' needs none")
    return {
        "zero_optimization": {"stage": 2},
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def layer_classes(model: nn.Module, family: Family) -> list[str]:
    """Names of the classes of the language model's layers: the units that are gathered and freed."""
    return sorted({type(layer).__name__ for layer in family.text_model(_base(model)).layers})  # type: ignore[union-attr]


def _base(model: Any) -> Any:
    """The model inside its adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def set_up(trainer: Any, model: nn.Module, family: Family) -> Sharding:
    """Which sharding a Trainer was started with (by its arguments or by `accelerate launch`), made ready for `model`.

    Raises:
        ShardingError: one of its options cannot be had.
    """
    zero = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    if zero is not None:
        if zero.zero_stage > 2:
            raise ShardingError(
                f"DeepSpeed's ZeRO stage {zero.zero_stage} shards the vision tower too, which processes use at different times: they "
                "would deadlock; take stage 2, or sharding='fsdp2' for sharded weights"
            )
        return "deepspeed"
    _fsdp_on_cpu(trainer)
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        return "none"
    if plugin.fsdp_version != 2:
        raise ShardingError("FSDP version 1 is not supported: set fsdp_version to 2 in accelerate's config, or sharding='fsdp2'")
    if plugin.cpu_ram_efficient_loading:
        raise ShardingError(
            "fsdp_cpu_ram_efficient_loading leaves all processes but the first without weights, and each of them scores its share of the "
            "reference: set it to false"
        )
    if plugin.activation_checkpointing:
        raise ShardingError("fsdp_activation_checkpointing would wrap the layers a second time: set gradient_checkpointing instead")
    plugin.transformer_cls_names_to_wrap = plugin.transformer_cls_names_to_wrap or layer_classes(model, family)
    plugin.ignored_modules = [nn.ParameterList(frozen_parameters(model, family))]
    return "fsdp2"


def count_cpu_processes(args: Any) -> None:
    """Accelerate (1.15) takes a CPU process under DeepSpeed for one alone, though DeepSpeed has joined it to the others: all would be the
    first."""
    state = args.distributed_state
    if args.deepspeed and args.device.type == "cpu" and state.backend is None and torch.distributed.is_initialized():
        state.backend = torch.distributed.get_backend()
        state.num_processes = torch.distributed.get_world_size()
        state.process_index = torch.distributed.get_rank()
        state.local_process_index = int(os.environ.get("LOCAL_RANK", "0"))


def _fsdp_on_cpu(trainer: Any) -> None:
    """Accelerate (1.15) knows FSDP on accelerators only: several CPU processes that ask for it silently get plain copies."""
    from accelerate import DistributedType
    from accelerate.utils import FullyShardedDataParallelPlugin

    state = trainer.accelerator.state
    asked = trainer.args.fsdp_plugin_args
    if state.distributed_type == DistributedType.MULTI_CPU and (asked or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"):
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**(asked or {}))
        if trainer.accelerator.mixed_precision != "no":
            state.fsdp_plugin.set_mixed_precision(trainer.accelerator.mixed_precision)
        state.distributed_type = DistributedType.FSDP
        trainer.is_fsdp_enabled = True


def frozen_parameters(model: nn.Module, family: Family) -> list[nn.Parameter]:
    """The parameters outside of the language model and its head: they stay whole on every process."""
    base = _base(model)
    inside = {id(parameter) for parameter in family.text_model(base).parameters()}
    head = base.get_output_embeddings()
    if head is not None:
        inside |= {id(parameter) for parameter in head.parameters()}
    return [parameter for parameter in base.parameters() if id(parameter) not in inside]


@dataclass(frozen=True)
class Plain:
    """What a model is before training: its class (FSDP2 changes it in place), dtypes by name, names that share one tensor with another, and
    the dtype it computes in."""

    kind: type[Any]
    dtypes: Mapping[str, torch.dtype]
    ties: Mapping[str, str]
    dtype: torch.dtype

    @classmethod
    def of(cls, model: Any) -> Plain:
        first: dict[int, str] = {}
        state = model.state_dict(keep_vars=True)
        ties = {name: first.setdefault(id(value), name) for name, value in state.items()}
        return cls(
            type(model),
            {name: value.dtype for name, value in state.items()},
            {name: other for name, other in ties.items() if other != name},
            model.dtype,
        )

    def shell(self, sharded: Any) -> Any:
        """A model without weights, to write whole ones with: transformers goes by the class's name for the names it writes."""
        with torch.device("meta"):
            shell = self.kind(sharded.config).to(self.dtype)
        shell.generation_config = sharded.generation_config
        if hasattr(sharded, "_weight_conversions"):  # how the names in the file differed, known to models that were loaded
            shell._weight_conversions = sharded._weight_conversions
        return shell


def whole_state(model: nn.Module, plain: Plain, settings: DPOSettings) -> dict[str, Tensor]:
    """The weights of a sharded model, LoRA merged, on the CPU of the first process; empty on the others. All processes call it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if not state:
        return {}
    if settings.lora_r:
        state = merged(state, settings.lora_alpha / settings.lora_r)
    whole = {name: state[name].to(dtype) for name, dtype in plain.dtypes.items() if name not in plain.ties}
    return whole | {name: whole[other] for name, other in plain.ties.items()}


def merged(state: Mapping[str, Tensor], scaling: float) -> dict[str, Tensor]:
    """Weights by their names without adapters, with W + scaling B A in the place of W (Hu et al. 2021, arXiv 2106.09685, eq. 3)."""
    out = {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}
    for name, down in state.items():
        if ".lora_A." in name:
            up = state[name.replace(".lora_A.", ".lora_B.")]
            place = name.split(".lora_A.")[0] + ".weight"
            kind = torch.promote_types(out[place].dtype, torch.float32)
            out[place] = (out[place].to(kind) + scaling * (up.to(kind) @ down.to(kind))).to(out[place].dtype)
    return out


def sharding_of(checkpoint: Path) -> Sharding:
    """How the run was sharded that left one of Trainer's checkpoints."""
    if any(checkpoint.glob("pytorch_model_fsdp*")):
        return "fsdp2"
    if any(checkpoint.glob("global_step*")):
        return "deepspeed"
    return "none"
