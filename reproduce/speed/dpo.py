"""A DPO step, packed, against the step of TRL's DPOTrainer on the same rows: same images, same tokens, same loss.

TRL gets what a user can give it and more: pixels are collated beforehand, its head scores completion positions only (its CUDA behaviour,
switched on here for the CPU too), and the better of batch size 1 and all pairs counts. It takes images only, doubles the prompt for chosen
and rejected, and refuses precomputed reference log-probabilities for vision. Ours is what the trainer does: features and reference once for
the iteration; the way that pays for both within the step is shown beside it.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from reproduce.speed.case import Case, Preset
from reproduce.speed.flops import dpo_flops
from reproduce.speed.model import EIGHT_B, Shape, make_frames, make_model, make_text

if TYPE_CHECKING:
    from savi.engine.video_lm import VideoLM

TARGETS = {(1, True): 2.6, (1, False): 2.5, (6, True): 11.0, (6, False): 10.0}


def dpo_case(preset: Preset, name: str, pairs: int, *, lora: bool) -> Case:
    """Pairs of one video, LoRA or full fine-tuning of the language model."""
    return dpo_setup(preset, name, pairs, lora=lora)[0]


def dpo_setup(preset: Preset, name: str, pairs: int, *, lora: bool) -> tuple[Case, Any]:
    """The case, and the model in which every way of it accumulates gradients."""
    import torch

    from savi.training.losses import Logps, step_loss
    from savi.training.packing import PackedRow, VideoPrefix, pack, packed_logps
    from savi.training.settings import DPOSettings
    from savi.training.trainer import trainable
    from savi.training.tree_attention import use_tree_attention

    shape = preset.training
    lm = make_model(shape, preset.device)
    settings = DPOSettings(lora_r=16 if lora else 0, lora_alpha=32, pairs_per_step=pairs, gradient_checkpointing=preset.checkpointing)
    frames = make_frames(preset.frames, shape.image)
    rows = _rows(preset, frames, pairs)
    reference = None if lora else copy.deepcopy(lm.model).requires_grad_(False)
    policy = trainable(lm, settings)
    if preset.checkpointing:  # as Trainer does when it begins to train
        lm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trainer = _trl_trainer(lm, policy, reference, rows, settings, preset, shape)
    timed = min(pairs, preset.most_opponent_pairs)
    sizes = sorted({min(size, pairs) for size in preset.trl_batches})
    collated = {size: _batches(trainer, rows, size, lm.device) for size in {*sizes, pairs}}
    together = collated[pairs][0]
    features = lm.features(frames)
    prefix_length = _prefix_length(lm, together)
    ids = together["input_ids"][0, :prefix_length].cpu()
    prefix = VideoPrefix(ids, torch.arange(prefix_length), prefix_length, features)
    tokens = _pair_tokens(together, prefix_length, pairs)
    batch = pack([PackedRow(prefix, tokens)], lm.family, dtype=getattr(torch, shape.dtype), device=lm.device)

    def reference_logps(packed: Any) -> Any:
        model = lm.model if reference is None else reference
        off = policy.disable_adapter() if lora else contextlib.nullcontext()
        with use_tree_attention(model), off, torch.no_grad(), as_trained(policy, shape):
            return packed_logps(policy if lora else model, packed, lm.family)

    once = reference_logps(batch)

    def packed_step(*, all_in_the_step: bool) -> None:
        policy.zero_grad(set_to_none=True)
        packed, known = batch, once
        if all_in_the_step:
            again = VideoPrefix(ids, prefix.positions, prefix.next_pos, lm.features(frames))
            packed = pack([PackedRow(again, tokens)], lm.family, dtype=getattr(torch, shape.dtype), device=lm.device)
            known = reference_logps(packed)
        with use_tree_attention(lm.model), as_trained(policy, shape):
            policy.train()
            logps = packed_logps(policy, packed, lm.family)
            chosen = int(packed.lengths[:, 0].sum())
            step_loss(Logps(logps, known, packed.lengths), settings.objective, step_pairs=pairs, step_chosen_tokens=chosen).backward()

    ways: dict[str, Callable[[], None]] = {
        "packed": lambda: packed_step(all_in_the_step=False),
        "packed, reference and features in the step": lambda: packed_step(all_in_the_step=True),
    }
    for size in sizes:
        some = collated[size][: timed if size == 1 else None]
        ways[f"TRL, batch {size}"] = partial(_trl_step, trainer, policy, some)
    return _case(preset, name, pairs, ways, lora=lora, prefix=prefix_length), policy


def _batches(trainer: Any, rows: list[dict[str, Any]], size: int, device: Any) -> list[dict[str, Any]]:
    """TRL's batches of so many pairs."""
    groups = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [_on(trainer.data_collator([dict(row) for row in group]), device) for group in groups]


def _case(preset: Preset, name: str, pairs: int, ways: dict[str, Callable[[], None]], *, lora: bool, prefix: int) -> Case:
    """The ways with their FLOPs and targets; `prefix` is in tokens."""
    others = tuple(way for way in ways if way.startswith("TRL"))
    counted = {"frames": preset.frames, "prefix": prefix, "question": preset.question, "answer": preset.answer, "pairs": pairs}
    ours, theirs = dpo_flops(preset.training, **counted, lora=lora, reference=False)
    stricter, _ = dpo_flops(preset.training, **counted, lora=lora, reference=True)
    big_ours, big_theirs = dpo_flops(EIGHT_B, **counted, lora=lora, reference=False)
    true_lengths = preset.training.image == EIGHT_B.image
    timed = min(pairs, preset.most_opponent_pairs)
    notes = [f"by FLOPs at 8B, same lengths: {big_theirs / big_ours:.1f}x"]
    if preset.checkpointing:
        notes.append("gradient checkpointing on both sides; its second forward pass is in no FLOPs")
    if timed < pairs:
        notes.append(f"TRL, batch 1: {timed} of {pairs} equal pairs timed, times {pairs / timed:g}")
    return Case(
        name,
        f"DPO step against TRL, {pairs} {'pair' if pairs == 1 else 'pairs'} a video, {'LoRA' if lora else 'full'}",
        ways,
        "packed",
        others,
        TARGETS.get((pairs, lora)) if true_lengths else None,
        times={"TRL, batch 1": pairs / timed},
        limit=theirs / ours,
        flops={"packed": ours, "packed, reference and features in the step": stricter, **dict.fromkeys(others, theirs)},
        lengths={"prefix": prefix, "question": preset.question, "answer": preset.answer},
        notes=tuple(notes),
        memory=("packed", *others),
        memory_target=8.0 if pairs == 6 and true_lengths and preset.device == "cpu" else None,
        memory_against=others[-1],  # the whole step at once, as ours; batch 1 holds a pair at a time
    )


@contextlib.contextmanager
def as_trained(policy: Any, shape: Shape) -> Iterator[None]:
    """How the trainer computes: float32 masters, bfloat16 products (`savi.training.trainer.masters_in_float32`)."""
    import torch
    from peft.helpers import disable_input_dtype_casting

    half, device = shape.dtype == "bfloat16", next(policy.parameters()).device.type
    with disable_input_dtype_casting(policy, active=half), torch.autocast(device, torch.bfloat16, enabled=half):
        yield


def _rows(preset: Preset, frames: Any, pairs: int) -> list[dict[str, Any]]:
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    video = " ".join(f"Frame{i + 1} <img>" for i in range(len(images)))
    return [
        {
            "images": images,
            "prompt": f"<bos> <user> {video} {make_text(preset.question - 2, i)} <assistant>",
            "chosen": f" {make_text(preset.answer - 1, 100 + i)} <eos>",
            "rejected": f" {make_text(preset.answer - 1, 200 + i)} <eos>",
        }
        for i in range(pairs)
    ]


def _trl_trainer(lm: VideoLM, policy: Any, reference: Any, rows: list[dict[str, Any]], settings: Any, preset: Preset, shape: Shape) -> Any:
    import trl.trainer.utils as utils
    from datasets import Dataset
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor
    from trl import DPOTrainer

    utils._use_triton = lambda device: True  # its head on completion positions only, as on CUDA
    size = {"height": shape.image, "width": shape.image}
    mean, std = lm.preprocessing.mean, lm.preprocessing.std
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, crop_to_patches=False, image_mean=list(mean), image_std=list(std)),
        tokenizer=copy.deepcopy(lm.tokenizer),
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=shape.frame_tokens,
    )
    folder = tempfile.mkdtemp(prefix="speed-trl-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    arguments = settings.trl_config(folder, total_steps=1, use_cpu=preset.device == "cpu", bf16=shape.dtype == "bfloat16")
    arguments.precompute_ref_log_probs = False  # TRL refuses it for vision
    arguments.max_length = None
    dataset = Dataset.from_list([{**row, "images": row["images"][:1]} for row in rows])  # only its columns are looked at
    return DPOTrainer(model=policy, ref_model=reference, args=arguments, train_dataset=dataset, processing_class=processor)


def _trl_step(trainer: Any, policy: Any, batches: list[dict[str, Any]]) -> None:
    policy.zero_grad(set_to_none=True)
    policy.train()
    for one in batches:
        with trainer.compute_loss_context_manager():  # autocast, as when it trains
            loss = trainer.compute_loss(policy, dict(one))
        (loss / len(batches)).backward()


def _on(batch: dict[str, Any], device: Any) -> dict[str, Any]:
    return {key: value.to(device) if hasattr(value, "to") else value for key, value in batch.items()}


def _prefix_length(lm: VideoLM, batch: dict[str, Any]) -> int:
    """Up to and with the last frame's closing token."""
    return int((batch["input_ids"][0] == lm.tokenizer.convert_tokens_to_ids("<close>")).nonzero()[-1]) + 1


def _pair_tokens(batch: dict[str, Any], prefix_length: int, pairs: int) -> tuple[Any, ...]:
    """TRL's batch ([chosen; rejected], prompts doubled) as pairs that follow one prefix."""
    from savi.training.packing import PairTokens

    ids, seen, completion = batch["input_ids"], batch["attention_mask"].bool(), batch["completion_mask"].bool()
    return tuple(
        PairTokens(
            tuple(ids[i][seen[i] & ~completion[i]][prefix_length:].tolist()),
            tuple(ids[i][seen[i] & completion[i]].tolist()),
            tuple(ids[i + pairs][seen[i + pairs] & completion[i + pairs]].tolist()),
        )
        for i in range(pairs)
    )
