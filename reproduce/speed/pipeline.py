"""Proposing and evaluating as they are run, from files on disk: how long the model waits for the next videos.

The loop, the lmms-eval model and the worker processes that decode are the project's own; only what a random model says is replaced by
readable words, so that all four steps of proposing are asked at the stated lengths. Before the first chunk there is no work that could hide
decoding, so waiting is shown with it and without.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from reproduce.speed.case import Case, Preset
from reproduce.speed.flops import prefix_flops, reply_flops, vision_flops
from reproduce.speed.generation import make_clip, questions_a_video
from reproduce.speed.model import Shape, make_text, shared_model

if TYPE_CHECKING:
    from savi.engine.sampling import GenerationSettings
    from savi.engine.video_lm import VideoLM
    from savi.engine.watched import Reply, Watched
    from savi.video.frames import Frames

BUSY_TARGET_PCT = 90.0
"""Of the time, on a GPU: the share in which it has work."""
BUSY = "GPU busy_pct"
CLIPS = 4
"""Different videos on disk; each has several names."""
REPLY_SHARE = 0.5
"""Of its limit, what a reply uses (`reproduce.plan` takes the same share)."""
TASK = "speed"


@dataclass
class Stopwatch:
    """A run's seconds, and those of them spent waiting for frames, in all and from the end of the first chunk on."""

    began: float = 0.0
    waited_before: float = 0.0
    first: tuple[float, float] | None = None
    wall_s: float = 0.0
    waited_s: float = 0.0

    def start(self) -> None:
        """Begin a run."""
        from savi.video.prefetch import waited_s

        self.began, self.waited_before, self.first = time.perf_counter(), waited_s(), None

    def progress(self, done: int, total: int) -> None:
        """A chunk is done."""
        if done and self.first is None:
            self.first = self._now()

    def stop(self) -> None:
        """The run is over."""
        self.wall_s, self.waited_s = self._now()

    def _now(self) -> tuple[float, float]:
        from savi.video.prefetch import waited_s

        return time.perf_counter() - self.began, waited_s() - self.waited_before

    def shares(self) -> dict[str, float]:
        """Percentages of the time that the model waits for frames: after the first chunk, and with it."""
        first_s, first_waited_s = self.first or (self.wall_s, self.waited_s)
        later_s = self.wall_s - first_s
        later = {"waits for frames_pct": 100 * (self.waited_s - first_waited_s) / later_s} if later_s > 0 else {}
        return {**later, "waits with the first chunk_pct": 100 * self.waited_s / self.wall_s}


@dataclass
class Readable:
    """A model with the methods that `propose` calls: its work is done, its words are replaced by readable ones of the same length.

    `flops` counts the matrix products of what was asked.
    """

    lm: VideoLM
    shape: Shape
    flops: float = 0.0
    fingerprint: str = "speed"

    def watch_batch(self, videos: Sequence[Frames]) -> list[Watched]:
        """Encode videos."""
        watched = self.lm.watch_batch(videos)
        self.flops += sum(vision_flops(self.shape, one.frames) + prefix_flops(self.shape, one.prefix.length) for one in watched)
        return watched

    def ask(self, items: Sequence[tuple[Watched, str]], settings: GenerationSettings, *, keys: Sequence[str] | None = None) -> list[Reply]:
        """Replies that every parser reads; `keys` end in the step."""
        from savi.engine.video_lm import Reply

        replies = self.lm.ask(items, settings, keys=keys)
        for (watched, prompt), reply in zip(items, replies, strict=True):
            self.flops += reply_flops(self.shape, watched.prefix.length, len(self.lm.prompt_ids(prompt)), reply.tokens)
        return [Reply(_words(key, reply.tokens), reply.tokens, finished=True) for key, reply in zip(keys or [], replies, strict=True)]


def _words(key: str, tokens: int) -> str:
    """A question ("…/ask") or a sentence of so many tokens, another for each key."""
    return make_text(max(tokens - 1, 3), zlib.crc32(key.encode())) + ("?" if key.endswith("/ask") else ".")


@contextmanager
def gpu_busy(device: str) -> Iterator[Callable[[], float | None]]:
    """Yields a call that gives, after the block, the percentage of its time in which the GPU had work, as its driver counts; None without
    a GPU or its tool. LOCAL_RANK's GPU is looked at."""
    tool = shutil.which("nvidia-smi") if device == "cuda" else None
    found: list[float] = []
    if tool is None:
        yield lambda: None
        return
    query = [
        tool,
        f"--id={os.environ.get('LOCAL_RANK', '0')}",
        "--query-gpu=utilization.gpu",
        "--format=csv,noheader,nounits",
        "-lms",
        "250",
    ]
    with subprocess.Popen(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield lambda: statistics.fmean(found) if found else None
        finally:
            process.terminate()
            said = process.communicate()[0]
            found += [float(line) for line in said.splitlines() if re.fullmatch(r"\s*\d+\s*", line)]


@dataclass
class _Run:
    """Runs a pipeline, and what it left: its stopwatch and how busy the GPU was."""

    device: str
    watch: Stopwatch = field(default_factory=Stopwatch)
    busy: float | None = None

    def __call__(self, work: Callable[[Stopwatch], object]) -> float:
        with gpu_busy(self.device) as busy:
            self.watch.start()
            work(self.watch)
            self.watch.stop()
        self.busy = busy()
        return self.watch.wall_s


def pipeline_case(preset: Preset, name: str) -> Case:
    """`pipeline-propose`, `pipeline-evaluate`: as many videos as the preset says, decoded meanwhile or, by calculation, in turn."""
    from savi.video.prefetch import decoders
    from savi.video.read import read_frames

    lm = shared_model(preset.shape, preset.device)
    videos = make_videos(preset)
    flops: dict[str, float] = {}
    work = _proposing(preset, lm, videos, flops) if name == "pipeline-propose" else _evaluating(preset, lm, videos, flops)
    run = _Run(preset.device)
    decoding: list[float] = []

    def in_turn() -> float:
        start = time.perf_counter()
        for path in videos[:CLIPS]:
            read_frames(path, num_frames=preset.frames)
        decoding.append((time.perf_counter() - start) / CLIPS)
        return run.watch.wall_s - run.watch.waited_s + decoding[-1] * len(videos)

    def extras() -> dict[str, float]:
        busy = {} if run.busy is None else {BUSY: run.busy}
        each = {"s to decode a video": statistics.median(decoding), "videos a second": len(videos) / run.watch.wall_s}
        return {**run.watch.shares(), **busy, **each}

    what = "proposing, four steps" if name == "pipeline-propose" else "evaluation by the lmms-eval model"
    return Case(
        name,
        f"pipeline: {what}",
        {"decoded meanwhile": lambda: run(work), "decoded in turn": in_turn},
        "decoded meanwhile",
        ("decoded in turn",),
        None,
        flops=flops,
        lengths={"videos": len(videos), "frames": preset.frames},
        extras=extras,
        notes=(
            f"{len(videos)} videos, worker processes that decode: {decoders()}; in turn: the time without waiting and that of decoding one "
            "video after the other; waiting: from the end of the first chunk on",
        ),
    )


def make_videos(preset: Preset) -> list[Path]:
    """Files to decode: a few clips under as many names as the preset has videos."""
    clips = [make_clip(preset, seed, frames=preset.clip_frames) for seed in range(CLIPS)]
    folder = Path(tempfile.mkdtemp(prefix="speed-videos-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    paths = [folder / f"{number:04d}.mp4" for number in range(preset.pipeline_videos)]
    for number, path in enumerate(paths):
        shutil.copyfile(clips[number % CLIPS], path)
    return paths


def _proposing(preset: Preset, lm: VideoLM, videos: list[Path], flops: dict[str, float]) -> Callable[[Stopwatch], object]:
    """The loop's first half with the 8b scale's questions a video; replies as long as the plan takes them for, or the preset."""
    from dataclasses import replace

    from reproduce.paper.experiment import align_settings
    from reproduce.scale import load_scale
    from savi.loop.prompts import STEPS
    from savi.loop.propose import propose

    settings = align_settings(load_scale("8b"), 1)
    asked = {step: getattr(settings, step) for step in STEPS}
    said = {step: preset.pipeline_tokens or round(REPLY_SHARE * generation.max_new_tokens) for step, generation in asked.items()}
    steps = {step: replace(generation, max_new_tokens=said[step]) for step, generation in asked.items()}
    settings = replace(settings, num_frames=preset.frames, chunk_videos=preset.pipeline_chunk, **steps)

    def work(watch: Stopwatch) -> None:
        asker = Readable(lm, preset.shape)
        folder = Path(tempfile.mkdtemp(prefix="speed-pairs-"))
        try:
            made = sum(1 for _ in propose(asker, videos, settings, out=folder / "pairs.jsonl", progress=watch.progress))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        assert made == 2 * settings.questions_per_kind * len(videos), f"{made} pairs: a step was left out"
        flops["decoded meanwhile"] = asker.flops

    return work


def _evaluating(preset: Preset, lm: VideoLM, videos: list[Path], flops: dict[str, float]) -> Callable[[Stopwatch], object]:
    """The model that lmms-eval asks, given requests of lmms-eval's form: as many questions a video as the six benchmarks have."""
    from harness.run.lmms_model import SaviLmms

    docs = [
        {"video": str(path), "question": make_text(preset.question - 2, 100 * number + i)}
        for number, (path, count) in enumerate(zip(videos, _questions(len(videos)), strict=True))
        for i in range(count)
    ]
    settings = {"max_new_tokens": preset.new_tokens[1]}

    def visual(doc: dict[str, str]) -> list[str]:
        return [doc["video"]]

    requests = [
        SimpleNamespace(args=(doc["question"], settings, visual, number, TASK, "test"), metadata=None) for number, doc in enumerate(docs)
    ]
    prefix = preset.frames * (preset.shape.frame_tokens + 3) + 2
    flops["decoded meanwhile"] = len(videos) * (vision_flops(preset.shape, preset.frames) + prefix_flops(preset.shape, prefix)) + len(
        docs
    ) * reply_flops(preset.shape, prefix, preset.question, preset.new_tokens[1])

    def work(watch: Stopwatch) -> None:
        adapter = SaviLmms(lm=lm, num_frames=preset.frames, rows=preset.pipeline_rows)
        adapter.task_dict = {TASK: {"test": docs}}
        adapter.progress = watch.progress
        answers: list[Any] = adapter.generate_until(requests)
        assert len(answers) == len(docs)
        failed = [answer.error for answer in adapter.answers.values() if answer.error]
        assert not failed, failed[0]

    return work


def _questions(videos: int) -> list[int]:
    """Questions on each of so many videos, as the six benchmarks' are spread."""
    spread = [count for count, number in questions_a_video().items() for _ in range(number)]
    return [spread[(2 * i + 1) * len(spread) // (2 * videos)] for i in range(videos)]
