"""A small `transformers.Trainer` that runs packed steps.

Accelerate brings what Trainer brings (several processes, mixed precision, resume); what is ours is the plan of steps, the packed forward
pass and the loss. A step's pairs do not depend on the number of processes, its loss is divided by its global number of pairs, and the
reference is scored once, before the first step, from the same packing. No second model is held in memory.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from savi.base.torchvision import fix_torchvision
from savi.base.watch import working_on
from savi.training.callbacks import DivergedError, Progress, largest, wrong_weight
from savi.training.checkpoints import load_weights, save_weights, seal
from savi.training.examples import (
    Example,
    Step,
    Unit,
    VideoStore,
    make_units,
)
from savi.training.losses import Logps, reward_sums, step_loss
from savi.training.packing import PackedRow, batches, pack, packed_logps, separate_logps, unwrap
from savi.training.settings import PLAIN_SHARDED, DPOSettings
from savi.training.sharding import ShardingError, set_up

fix_torchvision()  # Trainer's module looks for torchvision when it is imported

from transformers import PrinterCallback, Trainer, TrainerCallback  # noqa: E402

if TYPE_CHECKING:
    from trl import DPOConfig

    from savi.families import Family


class PackedDPOTrainer(Trainer):
    """`transformers.Trainer` whose data are the steps of a plan (one batch of its loader = one optimiser step of any number of
    micro-batches).

    `args` is TRL's `DPOConfig`; what it does not say (method, engine, micro-batch size) is in `settings`.
    """

    loss_is_scaled_for_ga = True  # step_loss divides by the step's global number of pairs itself

    def __init__(
        self,
        model: nn.Module,
        args: DPOConfig,
        *,
        settings: DPOSettings,
        family: Family,
        examples: Sequence[Example],
        plan: Sequence[Step],
        store: VideoStore,
        weight_limit: float,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        super().__init__(model=model, args=args, train_dataset=_Plan(plan), callbacks=callbacks)
        self.sharding = set_up(self, model, family)
        if self.sharding != "none":
            if settings.engine == "plain":
                raise ShardingError(PLAIN_SHARDED)
            model.to(self.args.device)  # Trainer leaves it where it is; the reference is scored before it is sharded
        self.remove_callback(PrinterCallback)  # the log goes to a file, progress to the caller
        self.settings = settings
        self.family = family
        self.examples = examples
        self.plan = plan
        self.store = store
        self.weight_limit = weight_limit
        self.reference: Tensor | None = None
        self._sums: dict[str, float] = defaultdict(float)
        self._loss = 0.0

    # data: the plan as it stands, the same on every process

    def get_train_dataloader(self) -> DataLoader[Step]:
        return DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=_only)

    def get_batch_samples(self, epoch_iterator: Iterator[Step], num_batches: int, device: torch.device) -> tuple[list[Step], None]:
        return [next(epoch_iterator) for _ in range(num_batches)], None

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # Trainer's estimate knows neither shared prefixes nor frozen towers

    # one step

    def training_step(self, model: nn.Module, inputs: Step, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Forward and backward of all micro-batches of a step; returns the step's loss times the number of processes, as Trainer averages
        it."""
        model.train()
        total = torch.zeros((), device=self.args.device)
        micros = self._micro_batches(inputs)
        for number, (units, rows, weight) in enumerate(micros, start=1):
            last = number == len(micros)
            self.accelerator.gradient_state._set_sync_gradients(last)
            alone = not last and self.sharding == "none"  # a sharded model keeps its shard of the sum, not all of every gradient
            with self.accelerator.no_sync(model=model) if alone else contextlib.nullcontext():
                with self.compute_loss_context_manager():
                    loss = self._share_of_loss(model, inputs, units, rows, counted=weight > 0) * weight
                self.accelerator.backward(loss)
            total += loss.detach().float()
        self._loss = float(total)
        first = self.args.process_index == 0
        self._sums["loss"] += self._loss / self.args.world_size
        self._sums["steps"] += 1 if first else 0
        return total

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Trainer's gradient norm, the same on every process; a step without one ends the run before it changes a weight."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not math.isfinite(norm):
            what = f"the loss is {self._loss}" if not math.isfinite(self._loss) else f"the gradient norm is {float(norm)}"
            raise DivergedError(self.state.global_step + 1, what, self._get_learning_rate())
        return norm

    def check_weights(self) -> None:
        """End a run whose update left weights that cannot be saved.

        Raises:
            DivergedError: names the step.
        """
        value = largest(weight for weight in self.model.parameters() if weight.requires_grad)
        if self.args.world_size > 1:
            value = torch.nan_to_num(value, nan=float("inf"))  # a maximum over processes may lose a NaN
            torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX)
        if wrong := wrong_weight(float(value), self.weight_limit):
            raise DivergedError(self.state.global_step + 1, wrong, self._get_learning_rate())

    def _micro_batches(self, step: Step) -> list[tuple[list[Unit], list[PackedRow], float]]:
        """This process's units of a step in batches that fit, each with a weight of 1 (times processes, undoing their averaging).

        All processes run the same number of forward passes, or those that shard the model would wait for each other: who has fewer
        repeats one with weight 0.
        """
        world, rank = self.args.world_size, self.args.process_index
        mine = list(step.units[rank::world])
        rows = [self._row(unit) for unit in mine]
        if self.state.global_step + 1 < len(self.plan):
            self.store.expect(unit.video for unit in self.plan[self.state.global_step + 1].units[rank::world])
        groups = [([mine[i] for i in group], [rows[i] for i in group], float(world)) for group in self._group(rows)]
        if world > 1:
            most = torch.tensor(len(groups), device=self.args.device)
            torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
            spare = step.units[0]
            groups += [([spare], [self._row(spare)], 0.0)] * (int(most) - len(groups))
        return groups

    def _group(self, rows: Sequence[PackedRow]) -> list[list[int]]:
        if self.settings.engine == "plain":
            return [[i] for i in range(len(rows))]
        return batches(rows, self.settings.max_batch_tokens)

    def _row(self, unit: Unit) -> PackedRow:
        working_on(f"video {unit.video} (train)")
        return PackedRow(self.store.get(unit.video), tuple(self.examples[number].tokens for number in unit.examples))

    def _share_of_loss(self, model: nn.Module, step: Step, units: Sequence[Unit], rows: Sequence[PackedRow], *, counted: bool) -> Tensor:
        policy, lengths = self.logps(model, rows)
        numbers = [number for unit in units for number in unit.examples]
        reference = None if self.reference is None else self.reference[numbers].to(policy)
        logps, objective = Logps(policy, reference, lengths), self.settings.objective
        for key, value in reward_sums(logps, objective).items():
            self._sums[key] += value if counted else 0.0  # the keys are there on every process
        return step_loss(logps, objective, step_pairs=step.pairs, step_chosen_tokens=step.chosen_tokens)

    def logps(self, model: nn.Module, rows: Sequence[PackedRow]) -> tuple[Tensor, Tensor]:
        """Log-probabilities [n, 2] of the rows' completions and their lengths [n, 2]."""
        if self.settings.engine == "plain":
            lengths = [(len(pair.chosen), len(pair.rejected)) for row in rows for pair in row.pairs]
            return separate_logps(model, rows, self.family), torch.tensor(lengths, device=self.args.device)
        batch = pack(rows, self.family, dtype=self._dtype(model), device=self.args.device)
        return packed_logps(model, batch, self.family), batch.lengths

    def _autocast(self) -> torch.autocast:
        """What accelerate puts around the policy's forward pass: the reference is computed as the policy is."""
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16)

    def _dtype(self, model: nn.Module) -> torch.dtype:
        """The dtype attention is computed in."""
        return torch.bfloat16 if self.args.bf16 else next(model.parameters()).dtype

    def score_reference(self, progress: Progress | None = None) -> None:
        """Score all pairs with the model as it is (with LoRA: adapters off), once; processes share the work."""
        model = unwrap(self.model)
        adapters_off = model.disable_adapter() if hasattr(model, "disable_adapter") else contextlib.nullcontext()
        world, rank = self.args.world_size, self.args.process_index
        units = make_units(self.examples, self.settings.pairs_per_step)[rank::world]
        found: dict[int, list[float]] = {}
        was_training = model.training
        model.eval()
        with adapters_off, torch.no_grad(), self._autocast():
            for start in range(0, len(units), 64):  # videos in memory at a time
                part = units[start : start + 64]
                rows = [self._row(unit) for unit in part]
                self.store.expect(unit.video for unit in units[start + 64 : start + 128])
                for group in self._group(rows):
                    logps, _ = self.logps(model, [rows[i] for i in group])
                    numbers = [number for i in group for number in part[i].examples]
                    found.update(zip(numbers, logps.double().tolist(), strict=True))
                if progress is not None:
                    progress(min(start + 64, len(units)), len(units))
        model.train(was_training)
        if world > 1:
            gathered: list[Any] = [None] * world
            torch.distributed.all_gather_object(gathered, found)
            found = {number: row for part_found in gathered for number, row in part_found.items()}
        self.reference = torch.tensor([found[number] for number in range(len(self.examples))], dtype=torch.float64)

    # logging and checkpoints

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what was summed since the last row, over all processes, to Trainer's grad_norm and learning_rate."""
        if "loss" in logs:
            sums = self.summed()
            self._sums.clear()
            pairs, tokens, steps = (sums.pop(key) for key in ("pairs", "tokens", "steps"))
            logs["loss"] = sums.pop("loss") / steps
            logs |= {key: value / pairs for key, value in sums.items()}
            logs["nll/chosen"] = -sums["logps/chosen"] / tokens
        super().log(logs, start_time)

    def summed(self) -> dict[str, float]:
        """The sums of the log's next row, over all processes."""
        keys = sorted(self._sums)
        values = torch.tensor([self._sums[key] for key in keys], dtype=torch.float64, device=self.args.device)
        if self.args.world_size > 1:
            torch.distributed.all_reduce(values)
        return dict(zip(keys, values.tolist(), strict=True))

    def go_on_with(self, sums: Mapping[str, float]) -> None:
        """Take over the sums of a checkpoint: the first process has them, the others their keys."""
        self._sums.update({key: value if self.args.process_index == 0 else 0.0 for key, value in sums.items()})

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """What is trained, by its names in memory; a sharded model is left to Trainer. (Trainer would write a plain checkpoint, whose names
        are not those in memory, and on resuming load none of them.)"""
        if self.sharding != "none":
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            save_weights(unwrap(self.model), Path(str(output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.sharding != "none":
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_weights(unwrap(self.model), Path(resume_from_checkpoint))


class Keeper(TrainerCallback):
    """Checks weights before they are kept, and seals checkpoints."""

    def __init__(self, plan: str) -> None:
        self.plan = plan
        self.trainer: PackedDPOTrainer | None = None

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        self.trainer.check_weights()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        sums = self.trainer.summed()
        self.trainer.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}", self.plan, sums)
        self.trainer.accelerator.wait_for_everyone()


class _Plan(torch.utils.data.Dataset[Step]):
    def __init__(self, plan: Sequence[Step]) -> None:
        self._plan = plan

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, index: int) -> Step:
        return self._plan[index]


def _only(items: list[Step]) -> Step:
    return items[0]
