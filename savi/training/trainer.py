"""`savi.train`: from preference pairs to a trained checkpoint.

Prepares pairs and videos, runs `PackedDPOTrainer` from the last checkpoint on, and leaves a plain checkpoint in a folder and in memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from savi.base.errors import SaviError, UsageError
from savi.base.lock import lock_folder
from savi.base.processes import Processes, joined
from savi.cards.model_card import Trained, sources
from savi.engine.model_folder import load_native_model
from savi.loop.preferences import PreferencePair
from savi.training.callbacks import DivergedError, LogFile, Progress, Trackers, largest, wrong_weight
from savi.training.checkpointing import needs_checkpointing
from savi.training.checkpoints import last_checkpoint, plan_digest, read_sums, remove_checkpoints
from savi.training.examples import (
    DroppedPair,
    Example,
    NoPairsError,
    VideoStore,
    frames_of_pairs,
    make_plan,
    system_of_pairs,
    tokenise,
)
from savi.training.folder import LOG_FILE, MODEL_FOLDER, TRAIN_FOLDER, TrainResult, begin, finished, made_from, save, write_result
from savi.training.packed_trainer import Keeper, PackedDPOTrainer
from savi.training.settings import SPEED_ONLY, DPOSettings
from savi.training.sharding import Plain, count_cpu_processes, trainer_options, whole_state
from savi.training.trackers import run_name
from savi.training.tree_attention import text_implementation, use_tree_attention

if TYPE_CHECKING:
    from savi.engine.video_lm import VideoLM


T = TypeVar("T")


def train(
    lm: VideoLM,
    pairs: Iterable[PreferencePair],
    settings: DPOSettings,
    out_dir: str | Path,
    *,
    progress: Progress | None = None,
    store: VideoStore | None = None,
    report_to: Sequence[str] = (),
) -> TrainResult:
    """Train `lm` on preference pairs (DPO, Rafailov et al. 2023) and write `out_dir`/{train/log.jsonl, train/result.json, model/}.

    The same pairs (in any order), settings and weights give the same bytes on one machine. With `save_steps`, a run that was killed goes
    on from its last checkpoint and ends in the same bytes; one that is finished is not done again. `lm` holds the trained weights
    afterwards (LoRA merged): what it watched before is stale. `store` brings videos that are encoded already. `report_to` names trackers
    (`savi.training.trackers`) that transformers' own callbacks report to. Under torchrun every process
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
    sharding = dict(trainer_options(settings, lm.model, lm.family))
    if report_to:
        sharding |= {"report_to": list(report_to), "run_name": run_name(Path(out_dir))}
    with joined(folder := Path(out_dir) / TRAIN_FOLDER) as processes, contextlib.ExitStack() as held:
        processes.by_first(lambda: held.enter_context(lock_folder(folder)))
        return _train(lm, list(pairs), settings, Path(out_dir), sharding, progress, store, processes)


def _train(
    lm: VideoLM,
    given: list[PreferencePair],
    settings: DPOSettings,
    out: Path,
    sharding: Mapping[str, Any],
    progress: Progress | None,
    store: VideoStore | None,
    processes: Processes,
) -> TrainResult:
    inputs = made_from(lm.fingerprint, given, settings)
    plain, implementation = Plain.of(lm.model), text_implementation(lm.model)
    if done := processes.by_first(lambda: finished(out, inputs)):
        _reload(lm, out / MODEL_FOLDER, lm.device, plain.dtype, implementation)
        return done
    already = torch.distributed.is_initialized()
    try:
        with lm.system_message(system_of_pairs(given)):
            examples, dropped, store = _prepare(lm, given, settings, store)
            trainer, log, state = _run(lm, examples, store, settings, out, inputs, plain, sharding, progress)
        if state is not None:  # the model in memory is in shards for good
            lm.model = plain.shell(lm.model)
        result = TrainResult(out / MODEL_FOLDER, log, trainer.state.global_step, len(examples), tuple(dropped))
        if trainer.is_world_process_zero():
            made = Trained(result.pairs_used, len(result.pairs_dropped), result.steps, sources(settings, SPEED_ONLY))
            save(lm, out / MODEL_FOLDER, made, fingerprint=str(inputs["model"]), state=state)
            write_result(out, inputs, result)
            remove_checkpoints(out / TRAIN_FOLDER)
        trainer.accelerator.wait_for_everyone()
        if state is not None:
            _reload(lm, out / MODEL_FOLDER, trainer.args.device, plain.dtype, implementation)
    finally:
        lm.model.config.use_cache = True
        lm.model.requires_grad_(False)
        lm.model.eval()
    if torch.distributed.is_initialized() and not already:
        torch.distributed.destroy_process_group()  # opened by Trainer; left to the interpreter's end, gloo's threads can abort a process
    return result


def _prepare(
    lm: VideoLM, pairs: Sequence[PreferencePair], settings: DPOSettings, store: VideoStore | None
) -> tuple[list[Example], list[DroppedPair], VideoStore]:
    """Tokens of the pairs that can be trained on, those that cannot, and their videos, encoded as far as memory allows."""
    if store is not None and lm.chat.system is not None:
        raise ValueError("the videos were encoded without the pairs' system message: leave `store` out")
    examples, dropped = tokenise(lm, pairs, settings)
    if store is None and examples:
        store = VideoStore(lm, frames_of_pairs(pairs, settings), keep_mb=settings.features_mb)
        broken = store.load(sorted({example.video for example in examples}))
        dropped += [DroppedPair(example.pair_id, f"video {broken[example.video]}") for example in examples if example.video in broken]
        examples = [example for example in examples if example.video not in broken]
    if not examples or store is None:
        reasons = sorted({pair.reason for pair in dropped})
        raise NoPairsError(f"no pair to train on: {len(pairs)} given, {len(dropped)} dropped ({'; '.join(reasons) or 'none given'})")
    long = _too_long(lm, examples, store)
    dropped += [DroppedPair(name, reason) for name, reason in long.items()]
    return [example for example in examples if example.pair_id not in long], dropped, store


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
    lm.decoders.release()
    model = trainable(lm, settings)
    settings = settings.model_copy(update={"gradient_checkpointing": needs_checkpointing(lm, model, examples, store, settings)})
    args = settings.trl_config(
        out / TRAIN_FOLDER,
        total_steps=len(plan),
        use_cpu=lm.device.type == "cpu" and settings.sharding != "deepspeed",  # accelerate takes it as a wish against DeepSpeed
        bf16=lm.model.dtype == torch.bfloat16,
        **sharding,
    )
    count_cpu_processes(args)
    trackers, args.report_to = [Trackers(args.report_to)] if args.report_to else [], []  # Trainer's own would end it where they fail
    log_file, keeper = LogFile(out / LOG_FILE, settings, progress), Keeper(plan_digest(inputs, examples))
    limit = torch.finfo(lm.store_dtype or lm.model.dtype).max
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
            callbacks=[log_file, keeper, *trackers],
        )
        if trainer.is_world_process_zero():
            begin(out, inputs)
        checkpoint = _from_first(trainer, lambda: last_checkpoint(out / TRAIN_FOLDER, keeper.plan, trainer.sharding))
        if checkpoint is not None:
            trainer.go_on_with(read_sums(checkpoint))
        with masters_in_float32(lm.model, model) if trainer.sharding == "none" else contextlib.nullcontext():  # else the framework's
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
def masters_in_float32(inner: nn.Module, policy: nn.Module) -> Iterator[None]:
    """What is trained of a bfloat16 model is kept in float32 and computed in bfloat16: autocast rounds the weights, once a forward pass.

    Adapters take their inputs as they are: peft would make float32 of them first, which autocast then rounds back to the same numbers.
    """
    from peft.helpers import disable_input_dtype_casting

    with disable_input_dtype_casting(policy, active=inner.dtype == torch.bfloat16), float32_weights(inner):  # type: ignore[arg-type]
        yield


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


def _too_long(lm: VideoLM, examples: Sequence[Example], store: VideoStore) -> dict[str, str]:
    """Pairs that the model's context cannot hold, and why. A video that is not encoded yet is not known to be too long.

    Raises:
        UsageError: all of them are.
    """
    limit = int(lm.text_config.max_position_embeddings)
    found = {}
    for example in examples:
        tokens = example.tokens
        end = store.next_pos.get(example.video, 0) + len(tokens.question) + max(len(tokens.chosen), len(tokens.rejected))
        if end > limit:
            found[example.pair_id] = f"{end} positions, but {lm.name} has a context of {limit}; use fewer frames or shorter answers"
    if found and len(found) == len(examples):
        name = next(iter(found))
        raise UsageError(f"pair {name}: {found[name]}")
    return found
