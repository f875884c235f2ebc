"""Training on preference pairs: a small `transformers.Trainer` that runs packed steps, and `train` around it.

Accelerate brings what Trainer brings (several processes, mixed precision, resume); what is ours is the plan of steps, the packed forward
pass and the loss. A step's pairs do not depend on the number of processes, its loss is divided by its global number of pairs, and the
reference is scored once, before the first step, from the same packing. No second model is held in memory.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from savi.base.errors import SaviError
from savi.base.lock import lock_folder
from savi.base.torchvision import fix_torchvision
from savi.engine.model_folder import load_native_model
from savi.loop.preferences import PreferencePair
from savi.training.callbacks import DivergedError, LogFile, Progress, largest, wrong_weight
from savi.training.checkpoints import last_checkpoint, load_weights, plan_digest, read_sums, remove_checkpoints, save_weights, seal
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
from savi.training.folder import LOG_FILE, MODEL_FOLDER, TRAIN_FOLDER, TrainResult, begin, finished, made_from, save, write_result
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


T = TypeVar("T")


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


class _Keeper(TrainerCallback):
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


def train(
    lm: VideoLM,
    pairs: Iterable[PreferencePair],
    settings: DPOSettings,
    out_dir: str | Path,
    *,
    progress: Progress | None = None,
    store: VideoStore | None = None,
) -> TrainResult:
    """Train `lm` on preference pairs (DPO, Rafailov et al. 2023) and write `out_dir`/{train/log.jsonl, train/result.json, model/}.

    The same pairs (in any order), settings and weights give the same bytes on one machine. With `save_steps`, a run that was killed goes
    on from its last checkpoint and ends in the same bytes; one that is finished is not done again. `lm` holds the trained weights
    afterwards (LoRA merged): what it watched before is stale. `store` brings videos that are encoded already. Under torchrun every process
    calls this; the first one writes (to a folder that all of them see, where the model is sharded).

    Raises:
        NoPairsError: no pair is left to train on, with the reasons.
        ValueError: settings and pairs do not fit together.
        ResumeError: `out_dir` holds a model, or checkpoints, of something else.
        DivergedError: loss, gradient or weights left the range of numbers.
        ShardingError: the model cannot be sharded this way.
        MaskDroppedError: this model cannot be trained packed.
        VideoError: a video's file went away after the pairs were made and was not found missing at the start.
        LockedError: another process is training into `out_dir`.
    """
    require_branch_attention(settings.branch_attention, lm.device)
    sharding = trainer_options(settings, lm.model, lm.family)
    with lock_folder(Path(out_dir) / TRAIN_FOLDER):
        return _train(lm, list(pairs), settings, Path(out_dir), sharding, progress, store)


def _train(
    lm: VideoLM,
    given: list[PreferencePair],
    settings: DPOSettings,
    out: Path,
    sharding: Mapping[str, Any],
    progress: Progress | None,
    store: VideoStore | None,
) -> TrainResult:
    inputs = made_from(lm.fingerprint, given, settings)
    plain, implementation = Plain.of(lm.model), text_implementation(lm.model)
    if done := finished(out, inputs):
        _reload(lm, out / MODEL_FOLDER, lm.device, plain.dtype, implementation)
        return done
    examples, dropped, store = _prepare(lm, given, settings, store)
    joined = torch.distributed.is_initialized()
    try:
        trainer, log, state = _run(lm, examples, store, settings, out, inputs, plain, sharding, progress)
        if state is not None:  # the model in memory is in shards for good
            lm.model = plain.shell(lm.model)
        result = TrainResult(out / MODEL_FOLDER, log, trainer.state.global_step, len(examples), tuple(dropped))
        if trainer.is_world_process_zero():
            save(lm, out / MODEL_FOLDER, state)
            write_result(out, inputs, result)
            remove_checkpoints(out / TRAIN_FOLDER)
        trainer.accelerator.wait_for_everyone()
        if state is not None:
            _reload(lm, out / MODEL_FOLDER, trainer.args.device, plain.dtype, implementation)
    finally:
        lm.model.config.use_cache = True
        lm.model.requires_grad_(False)
        lm.model.eval()
    if torch.distributed.is_initialized() and not joined:
        torch.distributed.destroy_process_group()  # opened by Trainer; left to the interpreter's end, gloo's threads can abort a process
    return result


def _prepare(
    lm: VideoLM, pairs: Sequence[PreferencePair], settings: DPOSettings, store: VideoStore | None
) -> tuple[list[Example], list[DroppedPair], VideoStore]:
    """Tokens of the pairs that can be trained on, those that cannot, and their videos, encoded as far as memory allows."""
    examples, dropped = tokenise(lm, pairs, settings)
    if store is None and examples:
        store = VideoStore(lm, frames_of_pairs(pairs, settings), keep_mb=settings.features_mb)
        broken = store.load(sorted({example.video for example in examples}))
        dropped += [DroppedPair(example.pair_id, f"video {broken[example.video]}") for example in examples if example.video in broken]
        examples = [example for example in examples if example.video not in broken]
    if not examples or store is None:
        reasons = sorted({pair.reason for pair in dropped})
        raise NoPairsError(f"no pair to train on: {len(pairs)} given, {len(dropped)} dropped ({'; '.join(reasons) or 'none given'})")
    _check_context(lm, examples, store)
    return examples, dropped, store


def _run(
    lm: VideoLM,
    examples: Sequence[Example],
    store: VideoStore,
    settings: DPOSettings,
    out: Path,
    inputs: Mapping[str, Any],
    plain: Plain,
    sharding: Mapping[str, Any],
    progress: Progress | None,
) -> tuple[PackedDPOTrainer, tuple[dict[str, float], ...], dict[str, Tensor] | None]:
    """All steps, from the last checkpoint on. Leaves the trained weights in `lm`, or returns them whole where the model is in shards."""
    plan = make_plan(examples, settings)
    args = settings.trl_config(
        out / TRAIN_FOLDER,
        total_steps=len(plan),
        use_cpu=lm.device.type == "cpu" and settings.sharding != "deepspeed",  # accelerate takes it as a wish against DeepSpeed
        bf16=lm.model.dtype == torch.bfloat16,
        **sharding,
    )
    count_cpu_processes(args)
    log_file, keeper = LogFile(out / LOG_FILE, settings, progress), _Keeper(plan_digest(inputs, examples))
    limit = torch.finfo(lm.store_dtype or lm.model.dtype).max
    model = trainable(lm, settings)
    lm.model.config.use_cache = False
    with contextlib.nullcontext() if settings.engine == "plain" else use_tree_attention(lm.model):
        keeper.trainer = trainer = PackedDPOTrainer(
            model,
            args,
            settings=settings,
            family=lm.family,
            examples=examples,
            plan=plan,
            store=store,
            weight_limit=limit,
            callbacks=[log_file, keeper],
        )
        if trainer.is_world_process_zero():
            begin(out, inputs)
        checkpoint = _from_first(trainer, lambda: last_checkpoint(out / TRAIN_FOLDER, keeper.plan, trainer.sharding))
        if checkpoint is not None:
            trainer.go_on_with(read_sums(checkpoint))
        with float32_weights(lm.model) if trainer.sharding == "none" else contextlib.nullcontext():  # sharded, the framework keeps them
            if settings.objective.needs_reference:
                trainer.score_reference()
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        state = whole_state(lm.model, plain, settings) if trainer.sharding == "fsdp2" else None
        if state is None and hasattr(model, "merge_and_unload"):
            lm.model = model.merge_and_unload()
    merged = lm.model.parameters() if state is None else state.values()
    if state != {} and (wrong := wrong_weight(float(largest(merged)), limit)):  # {}: the first process holds them
        raise DivergedError(trainer.state.global_step, wrong, settings.learning_rate)
    return trainer, tuple(log_file.rows(trainer.state)), state


def _from_first(trainer: PackedDPOTrainer, call: Callable[[], T]) -> T:
    """What a call gives on the first process, or the error it raises there, on all of them."""
    found: list[Any] = [None, None]
    if trainer.is_world_process_zero():
        try:
            found[0] = call()
        except SaviError as error:
            found[1] = error
    if trainer.args.world_size > 1:
        torch.distributed.broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    return found[0]  # type: ignore[no-any-return]


def _reload(lm: VideoLM, folder: Path, device: torch.device, dtype: torch.dtype, implementation: str) -> None:
    """Put a folder's weights in the place of the model in memory."""
    kind = str(dtype).removeprefix("torch.")
    lm.model, _ = load_native_model(folder, device=str(device), dtype=kind, attn_implementation=implementation)
    lm.model.requires_grad_(False)
    lm.model.eval()


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
