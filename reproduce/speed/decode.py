"""A step of decoding: rows on one video or many, against the eager decoder, stock `generate` and the memory limit.

A step reads the weights once, each video's prefix once and every row's branch: no decoder is faster than that many bytes at the device's
copy speed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from reproduce.speed.case import Case, Preset
from reproduce.speed.generation import alone_inputs, reply_alone
from reproduce.speed.model import make_frames, make_text, shared_model
from reproduce.speed.peaks import copy_gb_per_s, synchronise

if TYPE_CHECKING:
    from savi.engine.decoding import Branch
    from savi.engine.prefix import Prefix
    from savi.engine.video_lm import VideoLM

MOST_EAGER_ROWS = 96
"""Above it the eager decoder, which reads one video after the other, is not timed."""


def decode_case(preset: Preset, name: str) -> Case:
    """`decode-16x6`: seconds of one step for 6 prompts on each of 16 videos; as many videos as memory holds."""
    asked, prompts = map(int, name.removeprefix("decode-").split("x"))
    lm = shared_model(preset.shape, preset.device)
    video = make_frames(preset.frames, preset.shape.image)
    first = lm.watch(video).prefix
    videos = min(asked, _videos_that_fit(lm, first))
    prefixes = [first, *(_copied(first) for _ in range(videos - 1))]
    texts = [make_text(preset.question - 2, seed) for seed in range(prompts)]
    ids, pixels = alone_inputs(lm, video, texts[:1])
    rows, new = _rows(lm, prefixes, texts), preset.decode_tokens
    found: dict[str, list[float]] = {"static": [], "eager": []}

    def ours(kind: str) -> float:
        found[kind].append(_step_s(lambda n: _decode(lm, rows, n, kind), new, preset.device))
        return found[kind][-1]

    def stock() -> float:
        clock = _Clock()
        reply_alone(lm, ids[0], pixels, new, streamer=clock)
        return clock.step_s * len(rows)

    limit_s = _step_bytes(lm, prefixes, len(rows) * (preset.question + new // 2)) / copy_gb_per_s(preset.device) / 1e9

    def extras() -> dict[str, float]:
        step = statistics.median(found["static"])
        return {
            "ms a step": step * 1e3,
            "ms by memory": limit_s * 1e3,
            "times the memory limit": step / limit_s,
            "tokens a second": len(rows) / step,
        }

    ways: dict[str, Callable[[], float | None]] = {"static decoder": lambda: ours("static"), "stock generate": stock}
    if len(rows) <= MOST_EAGER_ROWS:
        ways["eager decoder"] = lambda: ours("eager")
    return Case(
        name,
        f"a decoding step, {videos} {'video' if videos == 1 else 'videos'} x {prompts} prompts",
        ways,
        "static decoder",
        tuple(way for way in ways if way != "static decoder"),
        None,
        lengths={"prefix": first.length, "question": preset.question, "new": new},
        notes=(
            "stock generate: one prompt's step, times the rows",
            *((f"{asked} videos do not fit in memory",) if videos < asked else ()),
        ),
        extras=extras,
    )


class _Clock:
    """A streamer of `generate` that keeps when each token came: reading the video is no part of a step."""

    def __init__(self) -> None:
        self.came: list[float] = []

    def put(self, value: Any) -> None:
        """A token, on the host: the device is done with it."""
        self.came.append(time.perf_counter())

    def end(self) -> None:
        """Nothing more comes."""

    @property
    def step_s(self) -> float:
        """Median seconds between two tokens; the prompt, which is handed over first, does not count."""
        return statistics.median(after - before for before, after in pairwise(self.came[1:]))


def _decode(lm: VideoLM, rows: list[Branch], new: int, kind: str) -> None:
    from savi.engine.decoder.either import Decoders
    from savi.engine.sampling import GenerationSettings

    if lm.decoders.asked != kind:
        lm.decoders = Decoders(kind)  # type: ignore[arg-type]
    lm.decoders.generate(lm, rows, GenerationSettings(max_new_tokens=new), [-1])


def _step_s(generate: Callable[[int], None], new: int, device: str) -> float:
    """Seconds of a step: what `new` tokens take over what the first one takes, the least of three times each; the shapes met before."""
    generate(new)
    took = {1: float("inf"), new: float("inf")}
    for tokens in (1, new) * 3:
        synchronise(device)
        start = time.perf_counter()
        generate(tokens)
        synchronise(device)
        took[tokens] = min(took[tokens], time.perf_counter() - start)
    return max((took[new] - took[1]) / (new - 1), 1e-9)


def _rows(lm: VideoLM, prefixes: list[Prefix], texts: list[str]) -> list[Branch]:
    from savi.engine.decoding import Branch

    return [Branch(prefix, ids) for prefix in prefixes for ids in lm.chat.prompt_ids(texts)]


def _copied(prefix: Prefix) -> Prefix:
    """Another video's prefix, as far as speed can tell: the same numbers elsewhere in memory."""
    return replace(prefix, kv=[(keys.clone(), values.clone()) for keys, values in prefix.kv])


def _videos_that_fit(lm: VideoLM, prefix: Prefix) -> int:
    """A video's prefix is held by the caller and, stacked, by the decoder."""
    from savi.engine.memory import budget_bytes

    return max(1, int(budget_bytes(lm.device) // (2.2 * _bytes(prefix.kv))))


def _step_bytes(lm: VideoLM, prefixes: list[Prefix], branch_tokens: int) -> float:
    text: Any = lm.family.text_model(lm.model)
    weights = sum(p.numel() * p.element_size() for layer in text.layers for p in layer.parameters())
    head: Any = lm.model.get_output_embeddings()
    weights += sum(p.numel() * p.element_size() for p in head.parameters())
    prefix = _bytes(prefixes[0].kv)
    return weights + prefix * len(prefixes) + prefix / prefixes[0].length * branch_tokens


def _bytes(kv: Any) -> float:
    return float(sum(part.numel() * part.element_size() for pair in kv for part in pair))
