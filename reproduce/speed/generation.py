"""Generation, evaluation and prefetch: the shared prefix against one prompt at a time, and a model that waits for frames."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reproduce.speed.case import Case, Preset
from reproduce.speed.flops import generation_flops, prefix_flops
from reproduce.speed.model import EIGHT_B, Shape, make_frames, make_text, shared_model

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from savi.engine.video_lm import VideoLM
    from savi.video.frames import Frames


def reply(lm: VideoLM, video: np.ndarray | Frames, prompts: list[str], new: int) -> None:
    """Our way: watched once, all prompts in one batch; no reply ends early, so that lengths are as stated."""
    from savi.engine.decoding import Branch
    from savi.engine.video_lm import GenerationSettings

    watched = lm.watch(video)
    rows = [Branch(watched.prefix, ids) for ids in lm.chat.prompt_ids(prompts)]
    lm.decoders.generate(lm, rows, GenerationSettings(max_new_tokens=new), [-1])


def reply_alone(lm: VideoLM, ids: Tensor, pixels: Tensor, new: int, **keywords: Any) -> None:
    """The usual way: `generate` with pixels, one prompt."""
    import torch

    with torch.no_grad():
        lm.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels,
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            **keywords,
        )


def alone_inputs(lm: VideoLM, video: np.ndarray, prompts: list[str]) -> tuple[list[Tensor], Tensor]:
    """Ids `[1, L]` of each prompt with its video, and the video's pixels, as stock `generate` takes them."""
    import torch

    from savi.families import Timing

    prepared = lm.family.prepare(video, Timing.every(len(video)))
    prefix = lm.prefix_ids(video).tolist()
    ids = [torch.tensor([[*prefix, *text]], device=lm.device) for text in lm.chat.prompt_ids(prompts)]
    return ids, prepared.pixels.to(lm.device, lm.model.dtype)


def reading_case(preset: Preset) -> Case:
    """The language model over a video's prefix, by the package flash-attn and by torch's own kernel."""
    from savi.base.kernels import ATTENTION_VARIABLE

    lm = shared_model(preset.shape, preset.device)
    features = lm.features_many([make_frames(preset.frames, preset.shape.image)])
    prefix = len(lm.prefix_ids(features[0]))

    def read(kernel: str) -> None:
        before = os.environ.get(ATTENTION_VARIABLE, "")
        os.environ[ATTENTION_VARIABLE] = kernel
        try:
            lm._prefixes(features)
        finally:
            os.environ[ATTENTION_VARIABLE] = before

    ways = {kernel: partial(read, kernel) for kernel in ("flash-attn", "torch")}
    return Case(
        "reading",
        "reading a video, flash-attn against torch",
        ways,
        "flash-attn",
        ("torch",),
        None,
        flops=dict.fromkeys(ways, prefix_flops(preset.shape, prefix)),
        lengths={"prefix": prefix},
    )


TARGETS = {6: 4.3, 18: 10.0}
GPU_TARGETS = {6: 8.0, 18: 10.0}
"""More than sharing the prefix gives by FLOPs (5.4x): stock `generate` waits for launches there."""


def generation_case(preset: Preset, name: str, prompts: int, new: int) -> Case:
    """K prompts on one video."""
    lm = shared_model(preset.shape, preset.device)
    video = make_frames(preset.frames, preset.shape.image)
    texts = [make_text(preset.question - 2, seed) for seed in range(prompts)]
    ids, pixels = alone_inputs(lm, video, texts)
    timed = min(prompts, preset.most_opponent_prompts)
    prefix = len(lm.prefix_ids(video))

    def alone() -> None:
        for one in ids[:timed]:
            reply_alone(lm, one, pixels, new)

    def lengths_of(shape: object) -> tuple[float, float]:
        return generation_flops(
            shape,  # type: ignore[arg-type]
            frames=preset.frames,
            prefix=prefix,
            question=preset.question,
            new=new,
            prompts=prompts,
        )

    shared, one_at_a_time = lengths_of(preset.shape)
    big_shared, big_alone = lengths_of(EIGHT_B)
    true_lengths = preset.shape.image == EIGHT_B.image
    notes = [f"by FLOPs at 8B, same lengths: {big_alone / big_shared:.1f}x"]
    if timed < prompts:
        notes.append(f"one at a time: {timed} of {prompts} equal prompts timed, times {prompts / timed:g}")
    return Case(
        name,
        f"generation, {prompts} prompts a video, {new} new tokens",
        {"shared prefix": lambda: reply(lm, video, texts, new), "one at a time": alone},
        "shared prefix",
        ("one at a time",),
        (GPU_TARGETS if preset.device == "cuda" else TARGETS)[prompts] if true_lengths else None,
        times={"one at a time": prompts / timed},
        limit=one_at_a_time / shared,
        flops={"shared prefix": shared, "one at a time": one_at_a_time},
        lengths={"prefix": prefix, "question": len(ids[0][0]) - prefix, "new": new},
        notes=tuple(notes),
        memory=("shared prefix", "one at a time"),
    )


TEMPCOMPASS_LIKE = 18
"""Questions on the one video of `evaluation-tempcompass`."""


def questions_a_video() -> dict[int, int]:
    """How many videos of the six benchmarks have how many questions: each benchmark's questions dealt evenly to its videos."""
    from benchmarks.catalog import select

    videos: Counter[int] = Counter()
    for benchmark in select(None):
        least, more = divmod(benchmark.n, benchmark.videos)
        videos[least] += benchmark.videos - more
        videos[least + 1] += more
    return {count: number for count, number in sorted(videos.items()) if number}


def evaluation_case(preset: Preset, name: str) -> Case:
    """Questions grouped by video against the stock adapter, which decodes, encodes and answers each by itself at batch 1.

    `evaluation-mix`: the six benchmarks' questions a video, weighed with their numbers of videos (seconds of the whole suite);
    `evaluation-tempcompass`: one video with 18 questions. Real files; decoding is in both.
    """
    from savi.families import Timing
    from savi.video.read import read_frames

    lm = shared_model(preset.shape, preset.device)
    path = make_clip(preset)
    new = preset.new_tokens[1]
    mix = name == "evaluation-mix"
    videos = questions_a_video() if mix else {TEMPCOMPASS_LIKE: 1}
    total = sum(count * number for count, number in videos.items())
    texts = [make_text(preset.question - 2, seed) for seed in range(max(videos))]
    ids, _ = alone_inputs(lm, read_frames(path, num_frames=preset.frames).pixels, texts[:1])
    prefix = ids[0].shape[1] - len(lm.prompt_ids(texts[0]))

    def grouped(count: int) -> float:
        start = time.perf_counter()
        reply(lm, read_frames(path, num_frames=preset.frames), texts[:count], new)
        return time.perf_counter() - start

    def suite() -> float:
        return sum(number * grouped(count) for count, number in videos.items())

    def stock() -> float:
        start = time.perf_counter()
        frames = read_frames(path, num_frames=preset.frames).pixels
        pixels = lm.family.prepare(frames, Timing.every(len(frames))).pixels.to(lm.device, lm.model.dtype)
        reply_alone(lm, ids[0], pixels, new)
        return time.perf_counter() - start

    def counted(shape: Shape) -> tuple[float, float]:
        lengths = {"frames": preset.frames, "prefix": prefix, "question": preset.question, "new": new}
        each = [(number, generation_flops(shape, **lengths, prompts=count)) for count, number in videos.items()]
        return sum(number * flops[0] for number, flops in each), sum(number * flops[1] for number, flops in each)

    ours, theirs = counted(preset.shape)
    big_ours, big_theirs = counted(EIGHT_B)
    return Case(
        name,
        "evaluation, mix of the six benchmarks" if mix else f"evaluation, {TEMPCOMPASS_LIKE} questions a video (TempCompass-like)",
        {"grouped by video": suite, "stock adapter": stock},
        "grouped by video",
        ("stock adapter",),
        (3.0 if mix else 10.0) if preset.shape.image == EIGHT_B.image else None,
        times={"stock adapter": float(total)},
        limit=theirs / ours,
        flops={"grouped by video": ours, "stock adapter": theirs},
        lengths={"prefix": prefix, "question": preset.question, "new": new},
        notes=(
            f"{total} questions on {sum(videos.values())} videos; stock adapter: one question timed a round, times {total}",
            f"by FLOPs at 8B, same lengths: {big_theirs / big_ours:.1f}x; decoding is timed in both ways and in no FLOPs",
        ),
    )


def prefetch_case(preset: Preset) -> Case:
    """Videos in a row with and without the next ones being decoded meanwhile; how long the model waited for frames.

    Before the first video there is no work that could hide its decoding, so waiting is shown with and without it: the first grows smaller
    with every further video, the second is what goes on.
    """
    from savi.video.frames import VideoError
    from savi.video.prefetch import FramePrefetcher
    from savi.video.read import read_frames

    lm = shared_model(preset.shape, preset.device)
    paths = [make_clip(preset, seed) for seed in range(6)]
    texts = [make_text(preset.question - 2, seed) for seed in range(2)]
    new = preset.new_tokens[1]
    spent: dict[str, float] = {}

    def ahead() -> None:
        start = time.perf_counter()
        first_s = 0.0
        with FramePrefetcher(paths, num_frames=preset.frames) as decoded:
            for _, frames in decoded:
                first_s = first_s or decoded.waited_s
                if isinstance(frames, VideoError):
                    raise frames
                reply(lm, frames, texts, new)
            spent.update(waited_s=decoded.waited_s, first_s=first_s, wall_s=time.perf_counter() - start)

    def in_turn() -> None:
        start = time.perf_counter()
        decoding_s = 0.0
        for path in paths:
            began = time.perf_counter()
            frames = read_frames(path, num_frames=preset.frames)
            decoding_s += time.perf_counter() - began
            reply(lm, frames, texts, new)
        # by itself: beside the model on the same core it would seem longer
        spent.update(decoding_s=decoding_s, in_turn_s=time.perf_counter() - start)

    def shares() -> dict[str, float]:
        return {
            "idle_pct": 100 * (spent["waited_s"] - spent["first_s"]) / (spent["wall_s"] - spent["first_s"]),
            "idle with the first video_pct": 100 * spent["waited_s"] / spent["wall_s"],
            "decoding in turn_pct": 100 * spent["decoding_s"] / spent["in_turn_s"],
        }

    return Case(
        "prefetch",
        "prefetch of the next videos",
        {"decoded meanwhile": ahead, "decoded in turn": in_turn},
        "decoded meanwhile",
        ("decoded in turn",),
        None,
        extras=shares,
        notes=(
            f"{len(paths)} videos; idle: share of the wall time the model waits for frames; "
            "its target holds where decoding is at most half of the time",
        ),
    )


def make_clip(preset: Preset, seed: int = 0, *, frames: int | None = None) -> Path:
    """A clip on disk for the time of this process: `frames` of noise, by default twice as many as are shown."""
    from benchmarks.micro.world.videos import write_mp4

    folder = Path(tempfile.mkdtemp(prefix="speed-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / f"{seed}.mp4"
    write_mp4(path, make_frames(frames or 2 * preset.frames, preset.shape.image // 2 * 2, seed))
    return path
