"""Training on preference pairs: a small `transformers.Trainer` that runs packed steps, and `train` around it.

Accelerate brings what Trainer brings (several processes, mixed precision, resume); what is ours is the plan of steps, the packed forward
pass and the loss. A step's pairs do not depend on the number of processes, its loss is divided by its global number of pairs, and the
reference is scored once, before the first step, from the same packing. No second model is held in memory.
"""

from __future__ import annotations

import contextlib
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from savi.base.lock import lock_folder
from savi.base.torchvision import fix_torchvision
from savi.engine.model_folder import load_native_model
from savi.loop.preferences import PreferencePair
from savi.training.examples import (
    DroppedPair,
    Example,
    NoPairsError,
    Step,
    Unit,
    VideoStore,
    frames_of_pairs,
    make_plan,
    make_units,
    tokenise,
)
from savi.training.folder import LOG_FILE, MODEL_FOLDER, TRAIN_FOLDER, DurableCheckpoints, LogFile, Progress, claim, last_checkpoint, save
from savi.training.losses import Logps, reward_sums, step_loss
from savi.training.packing import PackedRow, batches, pack, packed_logps, separate_logps, unwrap
from savi.training.settings import PLAIN_SHARDED, DPOSettings
from savi.training.sharding import Plain, ShardingError, count_cpu_processes, set_up, trainer_options, whole_state
from savi.training.tree_attention import require_branch_attention, text_implementation, use_tree_attention

fix_torchvision()  # Trainer's module looks for torchvision when it is imported

from transformers import PrinterCallback, Trainer, TrainerCallback  # noqa: E402

if TYPE_CHECKING:
    from trl import DPOConfig

    from savi.engine.video_lm import VideoLM
    from savi.families import Family


@dataclass(frozen=True)
class TrainResult:
    """`checkpoint`: folder of the trained weights, a plain checkpoint; `log`: the rows of train/log.jsonl; pairs used and dropped."""

    checkpoint: Path
    log: tuple[dict[str, float], ...]
    steps: int
    pairs_used: int
    pairs_dropped: tuple[DroppedPair, ...]


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
        self.reference: Tensor | None = None
        self._sums: dict[str, float] = defaultdict(float)

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
        return total

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
        batch = pack(rows, self.family, dtype=self._dtype(model), device=self.args.device, branches=self.settings.branch_attention)
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

    # logging

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what was summed since the last row, over all processes, to Trainer's loss, grad_norm and learning_rate."""
        if "loss" in logs:
            keys = sorted(self._sums)
            values = torch.tensor([self._sums[key] for key in keys], dtype=torch.float64, device=self.args.device)
            if self.args.world_size > 1:
                torch.distributed.all_reduce(values)
            sums = dict(zip(keys, values.tolist(), strict=True))
            self._sums.clear()
            pairs, tokens = sums.pop("pairs"), sums.pop("tokens")
            logs |= {key: value / pairs for key, value in sums.items()}
            logs["nll/chosen"] = -sums["logps/chosen"] / tokens
        super().log(logs, start_time)


class _Plan(torch.utils.data.Dataset[Step]):
    def __init__(self, plan: Sequence[Step]) -> None:
        self._plan = plan

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, index: int) -> Step:
        return self._plan[index]


def _only(items: list[Step]) -> Step:
    return items[0]


def train(
    lm: VideoLM,
    pairs: Iterable[PreferencePair],
    settings: DPOSettings,
    out_dir: str | Path,
    *,
    progress: Progress | None = None,
    store: VideoStore | None = None,
) -> TrainResult:
    """Train `lm` on preference pairs (DPO, Rafailov et al. 2023) and write `out_dir`/{train/log.jsonl, model/}.

    The same pairs (in any order), settings and weights give the same bytes on one machine. With `save_steps`, a run that was killed goes
    on from its last checkpoint and ends in the same bytes. `lm` holds the trained weights afterwards (LoRA merged): what it watched
    before is stale. `store` brings videos that are encoded already. Under torchrun every process calls this; the first one writes
    (to a folder that all of them see, where the model is sharded).

    Raises:
        NoPairsError: no pair is left to train on, with the reasons.
        ValueError: settings and pairs do not fit together.
        ShardingError: the model cannot be sharded this way.
        MaskDroppedError: this model cannot be trained packed.
        VideoError: a video's file went away after the pairs were made and was not found missing at the start.
        LockedError: another process is training into `out_dir`.
    """
    with lock_folder(Path(out_dir) / TRAIN_FOLDER):
        return _train(lm, list(pairs), settings, Path(out_dir), progress, store)


def _train(
    lm: VideoLM, given: list[PreferencePair], settings: DPOSettings, out: Path, progress: Progress | None, store: VideoStore | None
) -> TrainResult:
    require_branch_attention(settings.branch_attention, lm.device)
    joined = torch.distributed.is_initialized()
    sharding = trainer_options(settings, lm.model, lm.family)
    examples, dropped = tokenise(lm, given, settings)
    if store is None and examples:
        store = VideoStore(lm, frames_of_pairs(given, settings), keep_mb=settings.features_mb)
        broken = store.load(sorted({example.video for example in examples}))
        dropped += [DroppedPair(example.pair_id, f"video {broken[example.video]}") for example in examples if example.video in broken]
        examples = [example for example in examples if example.video not in broken]
    if not examples or store is None:
        reasons = sorted({pair.reason for pair in dropped})
        raise NoPairsError(f"no pair to train on: {len(given)} given, {len(dropped)} dropped ({'; '.join(reasons) or 'none given'})")
    _check_context(lm, examples, store)

    plan = make_plan(examples, settings)
    if settings.save_steps:
        claim(out / TRAIN_FOLDER, lm, examples, settings)
    plain = Plain.of(lm.model)
    before = text_implementation(lm.model)
    args = settings.trl_config(
        out / TRAIN_FOLDER,
        total_steps=len(plan),
        use_cpu=lm.device.type == "cpu" and settings.sharding != "deepspeed",  # accelerate takes it as a wish against DeepSpeed
        bf16=lm.model.dtype == torch.bfloat16,
        **sharding,
    )
    count_cpu_processes(args)
    log_file = LogFile(out / TRAIN_FOLDER / LOG_FILE, settings, progress)
    model = trainable(lm, settings)
    lm.model.config.use_cache = False
    with contextlib.nullcontext() if settings.engine == "plain" else use_tree_attention(lm.model):
        trainer = PackedDPOTrainer(
            model,
            args,
            settings=settings,
            family=lm.family,
            examples=examples,
            plan=plan,
            store=store,
            callbacks=[log_file, DurableCheckpoints()],
        )
        first = trainer.is_world_process_zero()
        checkpoint = last_checkpoint(out / TRAIN_FOLDER, trainer.sharding, tidy=first)
        with float32_weights(lm.model) if trainer.sharding == "none" else contextlib.nullcontext():  # sharded, the framework keeps them
            if settings.objective.needs_reference:
                trainer.score_reference()
            trainer.train(resume_from_checkpoint=checkpoint)
        state = whole_state(lm.model, plain, settings) if trainer.sharding == "fsdp2" else None
        if state is None and hasattr(model, "merge_and_unload"):
            lm.model = model.merge_and_unload()
    lm.model.config.use_cache = True
    lm.model.requires_grad_(False)
    lm.model.eval()
    if state is not None:  # the model in memory is in shards for good
        lm.model = plain.shell(lm.model)
    if first:
        save(lm, out / MODEL_FOLDER, state)
        for path in (out / TRAIN_FOLDER).glob("checkpoint-*"):
            shutil.rmtree(path)
    trainer.accelerator.wait_for_everyone()
    if state is not None:
        kind = str(plain.dtype).removeprefix("torch.")
        lm.model, _ = load_native_model(out / MODEL_FOLDER, device=str(trainer.args.device), dtype=kind, attn_implementation=before)
        lm.model.requires_grad_(False)
        lm.model.eval()
    if torch.distributed.is_initialized() and not joined:
        torch.distributed.destroy_process_group()  # opened by Trainer; left to the interpreter's end, gloo's threads can abort a process
    return TrainResult(out / MODEL_FOLDER, tuple(log_file.rows(trainer.state)), trainer.state.global_step, len(examples), tuple(dropped))


def trainable(lm: VideoLM, settings: DPOSettings) -> nn.Module:
    """The model with gradients where they belong: adapters on all linear layers of the language model (`lora_r` > 0), or the whole language
    model with its head. Vision tower and projector are frozen, so that their features hold for the whole iteration."""
    from transformers import set_seed

    model = lm.model
    model.requires_grad_(False)
    text = lm.family.text_model(model)
    if settings.lora_r == 0:
        text.requires_grad_(True)
        head = model.get_output_embeddings()
        if head is not None:
            head.requires_grad_(True)
        return model
    from peft import LoraConfig, get_peft_model

    inside = {id(module) for module in text.modules()}
    linear = [name for name, module in model.named_modules() if id(module) in inside and isinstance(module, nn.Linear)]
    set_seed(settings.seed)  # the adapters' first values
    return get_peft_model(model, LoraConfig(r=settings.lora_r, lora_alpha=settings.lora_alpha, target_modules=linear))


@contextlib.contextmanager
def float32_weights(model: nn.Module) -> Iterator[None]:
    """bfloat16 weights that are trained are float32 meanwhile: a step of 1e-6 would be rounded away on most of them. What is computed stays
    bfloat16, by autocast and by handing the embeddings on in it. Adapters are float32 anyway (peft)."""
    half = {id(parameter) for parameter in model.parameters() if parameter.requires_grad and parameter.dtype == torch.bfloat16}
    trained = [parameter for parameter in model.parameters() if id(parameter) in half]
    if not trained:
        yield
        return
    for parameter in trained:
        parameter.data = parameter.data.float()
    embeddings: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    hook = embeddings.register_forward_hook(lambda _module, _inputs, out: out.to(torch.bfloat16))
    try:
        yield
    finally:
        hook.remove()
        for parameter in trained:
            parameter.data = parameter.data.to(torch.bfloat16)


def _check_context(lm: VideoLM, examples: Sequence[Example], store: VideoStore) -> None:
    limit = int(lm.text_config.max_position_embeddings)
    for example in examples:
        tokens = example.tokens
        end = store.next_pos.get(example.video, 0) + len(tokens.question) + max(len(tokens.chosen), len(tokens.rejected))
        if end > limit:
            raise ValueError(
                f"pair {example.pair_id}: {end} positions, but {lm.name} has a context of {limit}; use fewer frames or shorter answers"
            )
