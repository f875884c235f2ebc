"""Measuring what this machine can do, in about a minute, for the plans: `python -m reproduce paper --dry-run --calibrate`.

On a GPU at InternVL2.5-8B's shape cut to four layers (layers are alike), on a CPU with the shipped base. Times on a CPU are processor
seconds, so that waiting for busy neighbours does not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reproduce.plan.figures import TABLE, Figures

if TYPE_CHECKING:
    import numpy as np

    from savi.engine.decoding import Branch
    from savi.engine.video_lm import VideoLM

LAYERS = 4
FRAMES = {"cuda": 32, "cpu": 8}
VIDEOS = {"cuda": 8, "cpu": 48}
"""In the larger of two batches whose steps are measured."""
ROWS_A_VIDEO, QUESTION, ANSWER = 6, 40, 20


def calibrate(device: str, videos: Sequence[Path] = ()) -> Figures:
    """The figures of this machine's GPU, or of one of its cores. `videos`: files to time decoding on; without any it is the table's."""
    return calibrate_with(_model(device), device, videos)


def calibrate_with(lm: VideoLM, device: str, videos: Sequence[Path] = ()) -> Figures:
    """The same with a model of one's own."""
    from reproduce.speed.peaks import copy_gb_per_s

    count = _Sizes.of(lm)
    shown = [_frames(lm, FRAMES[device], seed) for seed in range(VIDEOS[device])]
    some = shown[: 1 if device == "cuda" else None]
    prepared = [lm.family.prepare(*_timed_pixels(video)) for video in some]
    vision_s = _seconds(lambda: _encode(lm, prepared), device)
    features = lm.features_many(some)
    prefix_s = _seconds(lambda: lm._prefixes(features), device)
    tokens = len(lm.prefix_ids(features[0]))
    prefill = len(some) * count.forward(tokens) / prefix_s
    read = copy_gb_per_s(device)
    layer_ms, video_layer_ms = _step_costs(lm, shown, count, device, prefill, read)
    return Figures(
        _name(device),
        prefill / 1e12,
        len(some) * FRAMES[device] * count.vision / vision_s / 1e12,
        _train_flops_per_s(lm, features[0], count, device) / 1e12,
        read,
        layer_ms,
        video_layer_ms,
        _frame_ms(videos, FRAMES[device]) if videos else TABLE[device].frame_ms,
        TABLE[device].cores,
    )


@dataclass(frozen=True)
class _Sizes:
    """A model's sizes, counted as a plan counts them."""

    weights: float
    layers: int
    hidden: int
    vision: float
    element: int

    @classmethod
    def of(cls, lm: VideoLM) -> _Sizes:
        text, config = lm.family.text_model(lm.model), lm.text_config
        embedding = lm.model.get_input_embeddings().weight  # type: ignore[operator]
        weights = sum(p.numel() for p in text.parameters()) - embedding.numel()
        vision: Any = lm.model.config.vision_config
        size, patch = (value if isinstance(value, int) else value[0] for value in (vision.image_size, vision.patch_size))
        tower = sum(p.numel() for p in lm.model.parameters()) - sum(p.numel() for p in text.parameters())
        return cls(
            weights,
            int(config.num_hidden_layers),
            int(config.hidden_size),
            2.0 * tower * ((size // patch) ** 2 + 1),
            embedding.element_size(),
        )

    def forward(self, tokens: float) -> float:
        """Operations of reading a text."""
        return 2 * self.weights * tokens + 2.0 * self.layers * self.hidden * tokens * tokens


def _model(device: str) -> VideoLM:
    from reproduce.speed.model import EIGHT_B, make_model

    if device == "cuda":
        return make_model(replace(EIGHT_B, layers=LAYERS), device)
    from reproduce.paper.experiment import shipped_base
    from savi.engine.video_lm import VideoLM

    return VideoLM.from_pretrained(shipped_base(), device="cpu")


def _name(device: str) -> str:
    import platform

    import torch

    return f"this machine's {torch.cuda.get_device_name()}" if device == "cuda" else f"one core of this machine ({platform.machine()})"


def _frames(lm: VideoLM, frames: int, seed: int) -> np.ndarray:
    from reproduce.speed.model import make_frames

    size = lm.model.config.vision_config.image_size
    return make_frames(frames, size if isinstance(size, int) else size[0], seed)


def _timed_pixels(video: np.ndarray) -> tuple[Any, Any]:
    from savi.families.base import pixels_and_timing

    return pixels_and_timing(video)


def _encode(lm: VideoLM, prepared: Sequence[Any]) -> None:
    import torch

    with torch.no_grad():
        lm.family.encode(lm.model, prepared)


def _seconds(work: Callable[[], object], device: str, rounds: int = 3) -> float:
    """The fastest of a few calls after a first one; processor seconds on a CPU."""
    from reproduce.speed.peaks import synchronise

    clock = time.perf_counter if device == "cuda" else time.process_time
    took = []
    for _ in range(rounds + 1):
        synchronise(device)
        start = clock()
        work()
        synchronise(device)
        took.append(clock() - start)
    return max(min(took[1:]), 1e-6)


def _step_costs(
    lm: VideoLM, shown: Sequence[np.ndarray], count: _Sizes, device: str, prefill: float, read_gb_s: float
) -> tuple[float, float]:
    """Milliseconds a layer and step beside what is read and computed, and those for each video, from a small batch and a large one."""
    from savi.engine.decoding import Branch

    watched = lm.watch_batch(shown)
    prompt = list(range(20, 20 + QUESTION))
    left = []
    for videos in (1, len(watched)):
        rows = [Branch(one.prefix, prompt) for one in watched[:videos] for _ in range(ROWS_A_VIDEO)]
        step = _step_s(lm, rows, device)
        prefix = sum(part.numel() * part.element_size() for kv in watched[0].prefix.kv for part in kv)
        row = 2 * count.weights + 4.0 * count.layers * count.hidden * watched[0].prefix.length
        known = (count.weights * count.element + videos * prefix) / (read_gb_s * 1e9) + len(rows) * row / prefill
        left.append(max(step - known, 0.0) * 1e3 / count.layers)
    each = max(left[1] - left[0], 0.0) / (len(watched) - 1)
    return max(left[0] - each, 0.0), each


def _step_s(lm: VideoLM, rows: Sequence[Branch], device: str) -> float:
    from savi.engine.sampling import GenerationSettings

    def reply(new: int) -> None:
        lm.decoders.generate(lm, rows, GenerationSettings(max_new_tokens=new), [-1])

    return max(_seconds(lambda: reply(ANSWER), device) - _seconds(lambda: reply(1), device), 0.0) / (ANSWER - 1)


def _train_flops_per_s(lm: VideoLM, features: Any, count: _Sizes, device: str) -> float:
    """Operations a second of a packed DPO step with checkpointing, as a plan counts them: LoRA on a GPU, all weights on a CPU."""
    import torch

    from savi.training.losses import Logps, step_loss
    from savi.training.packing import PackedRow, PairTokens, VideoPrefix, pack, packed_logps
    from savi.training.settings import DPOSettings
    from savi.training.trainer import trainable
    from savi.training.tree_attention import use_tree_attention

    lora = device == "cuda"
    settings = DPOSettings(lora_r=64 if lora else 0, lora_alpha=128)
    policy = trainable(lm, settings)
    inner = lm.model
    if lora:
        inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = lm.prefix_ids(features).cpu()
    positions, next_pos = lm.family.positions(ids, features)
    text = tuple(range(20, 20 + QUESTION))
    pairs = tuple(PairTokens(text, text, text[::-1]) for _ in range(ROWS_A_VIDEO))
    rows = [PackedRow(VideoPrefix(ids, positions, next_pos, features), pairs)] * (1 if lora else 16)
    batch = pack(rows, lm.family, dtype=inner.dtype, device=lm.device)
    tokens = batch.input_ids.numel()
    looking = 2.0 * count.layers * count.hidden * tokens * batch.input_ids.shape[1]

    def step() -> None:
        policy.zero_grad(set_to_none=True)
        policy.train()
        with use_tree_attention(inner):
            logps = packed_logps(policy, batch, lm.family)
            known = torch.zeros_like(logps)
            step_loss(Logps(logps, known, batch.lengths), settings.objective, step_pairs=batch.pairs, step_chosen_tokens=1).backward()

    took = _seconds(step, device, rounds=2)
    passes = 2 * count.weights * tokens * 3, looking * (4 if lora else 3)  # LoRA: weights get no gradient, but a second forward pass
    return sum(passes) / took


def _frame_ms(videos: Sequence[Path], frames: int) -> float:
    """One core's milliseconds for a shown frame, over the first few videos that can be read."""
    from savi.video.frames import VideoError
    from savi.video.read import read_frames

    spent, read = 0.0, 0
    for path in videos[:5]:
        start = time.process_time()
        try:
            read_frames(path, num_frames=frames)
        except VideoError:
            continue
        spent += time.process_time() - start
        read += frames
    return 1e3 * spent / read if read else TABLE["cuda"].frame_ms
