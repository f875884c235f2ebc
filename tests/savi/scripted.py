"""Small clips, pairs about them and a scripted model, for the tests of the loop."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from savi.engine.sampling import GenerationSettings
from savi.engine.video_lm import Reply
from savi.loop.preferences import PreferencePair, make_pair_id
from savi.video.frames import Frames
from tests.savi.clips import write_clip
from tests.savi.tiny import tiny_frames, tiny_prompts

FRAMES = 4


def write_clips(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Real mp4 files of random blocks."""
    folder.mkdir(parents=True, exist_ok=True)
    return [write_clip(folder / f"clip{i:02}.mp4", list(tiny_frames(1000 * seed + i, 6))) for i in range(count)]


def random_pairs(videos: Sequence[Path], per_video: int = 2, seed: int = 0) -> list[PreferencePair]:
    """Pairs of random words of the tiny vocabulary."""
    count = per_video * len(videos)
    questions, chosen, rejected = tiny_prompts(count, seed + 1), tiny_prompts(count, seed + 2, 3), tiny_prompts(count, seed + 3, 4)
    made = []
    for i in range(count):
        video = videos[i // per_video]
        made.append(
            PreferencePair(
                pair_id=make_pair_id(video.name, "spatial", i % per_video, questions[i]),
                video=str(video),
                question=questions[i],
                kind="spatial",
                initial=rejected[i],
                critique="",
                chosen=chosen[i] if chosen[i] != rejected[i] else f"{chosen[i]} {chosen[i]}",
                rejected=rejected[i],
                meta={"num_frames": FRAMES},
            )
        )
    return made


@dataclass
class ScriptedLM:
    """Stands for a `VideoLM` in the loop: replies come from a function of (video, prompt, key), and every batch is recorded."""

    reply: Callable[[str, str, str], str]
    fingerprint: str = "scripted"
    unfinished: tuple[str, ...] = ()
    batches: list[list[str]] = field(default_factory=list)
    seeds: set[int] = field(default_factory=set)

    def watch_batch(self, videos: Sequence[Frames]) -> list[str]:
        assert all(isinstance(video.pixels, np.ndarray) for video in videos)
        return [Path(video.path).name for video in videos]

    def ask(self, items: Sequence[tuple[Any, str]], settings: GenerationSettings, *, keys: Sequence[str]) -> list[Reply]:
        self.batches.append(list(keys))
        self.seeds.add(settings.seed)
        texts = [self.reply(video, prompt, key) for (video, prompt), key in zip(items, keys, strict=True)]
        return [Reply(text, len(text.split()) + 1, key not in self.unfinished) for text, key in zip(texts, keys, strict=True)]


def micro_reply(video: str, prompt: str, key: str) -> str:
    """What a micro model says, drawn from the row's key alone: choice and yes/no questions, critiques, revisions that often differ."""
    draw = np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode(errors="surrogatepass")).digest()[:8], "little"))
    colour, shape = draw.choice(["red", "green", "blue"]), draw.choice(["circle", "square", "cross"])
    if prompt.startswith("ask "):
        if draw.random() < 0.2:
            return "the red"
        if draw.random() < 0.5:
            return f"is the {colour} object a {shape} ?"
        return f"what shape is the {colour} object ? A circle B square C cross"
    answer = str(draw.choice(["A", "B", "C"] if " A circle" in prompt else ["yes", "no"]))
    return f"the object is a {shape} so {answer}" if prompt.endswith("critique") else answer
