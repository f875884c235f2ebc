"""From preference pairs to the steps of a training run: tokens, encoded videos, and which pairs are in which step.

All of it is a function of the set of pairs, the seed and the settings: not of the pairs' order, of the number of processes, or of memory.
The module knows no loss.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from savi.base.errors import ExitCode, SaviError
from savi.loop.preferences import PreferencePair
from savi.training.packing import PairTokens, VideoPrefix
from savi.training.settings import DPOSettings
from savi.video.frames import Frames, VideoError
from savi.video.prefetch import prefetch

if TYPE_CHECKING:
    from savi.engine.video_lm import VideoLM
    from savi.families.base import VideoFeatures


class NoPairsError(SaviError, ValueError):
    """There is nothing to train on: says how many pairs came in and why each was left out."""

    exit_code = ExitCode.FAIL


@dataclass(frozen=True)
class DroppedPair:
    """A pair that is not trained on, and why."""

    pair_id: str
    reason: str


@dataclass(frozen=True)
class Example:
    """A pair ready for training."""

    pair_id: str
    video: str
    tokens: PairTokens


@dataclass(frozen=True)
class Unit:
    """Pairs of one video that are trained in the same step: numbers of examples."""

    video: str
    examples: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One optimiser step: its epoch (from 0), its units, and what its loss is divided by, over all processes."""

    epoch: int
    units: tuple[Unit, ...]
    pairs: int
    chosen_tokens: int


def tokenise(lm: VideoLM, pairs: Iterable[PreferencePair], settings: DPOSettings) -> tuple[list[Example], list[DroppedPair]]:
    """Tokens of pairs, in an order of their own (by video and pair_id), and the pairs that cannot be trained on.

    Dropped are a second pair of the same pair_id, one whose chosen answer is empty, and one whose two answers have the same tokens: without
    an NLL term its gradient is nothing but rounding noise, which Adam would make steps of. With one (`rpo_alpha`, or method "sft") such a
    pair teaches its answer.
    """
    examples: list[Example] = []
    dropped: list[DroppedPair] = []
    seen: set[str] = set()
    ordered = sorted(pairs, key=lambda pair: (pair.video, pair.pair_id))
    questions = lm.chat.prompt_ids([[*(text for turn in pair.history for text in turn), pair.prompt] for pair in ordered])
    replies = lm.chat.response_ids([text for pair in ordered for text in (pair.chosen, pair.rejected)])
    for pair, question, *both in zip(ordered, questions, replies[::2], replies[1::2], strict=True):
        chosen, rejected = map(tuple, both)
        if pair.pair_id in seen:
            dropped.append(DroppedPair(pair.pair_id, "a second pair of the same pair_id"))
        elif not pair.chosen.strip():
            dropped.append(DroppedPair(pair.pair_id, "chosen is empty: it would teach the model to say nothing"))
        elif chosen == rejected and not settings.objective.nll_weight:
            dropped.append(DroppedPair(pair.pair_id, "chosen and rejected are the same tokens"))
        else:
            tokens = PairTokens(tuple(question), chosen, () if settings.method == "sft" else rejected)
            examples.append(Example(pair.pair_id, pair.video, tokens))
        seen.add(pair.pair_id)
    return examples, dropped


class VideoStore:
    """Videos encoded for training, each once as long as they fit into `keep_mb` megabytes; beyond that the least recently used are encoded
    again when needed. Vision tower and projector are frozen, so their features are those of the whole iteration.
    """

    def __init__(self, lm: VideoLM, num_frames: int, *, keep_mb: float = 4096.0, batch: int = 32) -> None:
        self._lm = lm
        self._num_frames = num_frames
        self._keep_bytes = keep_mb * 2**20
        self._batch = batch
        self._held: OrderedDict[str, VideoPrefix] = OrderedDict()
        self._bytes = 0.0
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="savi-store")  # no thread before the first expect()
        self._ahead: dict[str, Future[Frames | VideoError]] = {}
        self.next_pos: dict[str, int] = {}
        """The position at which text goes on after each video encoded so far, held or not."""
        self.lengths: dict[str, int] = {}
        """Tokens of each such video's prefix."""

    def add_frames(self, videos: Sequence[tuple[str, Frames]]) -> None:
        """Encode decoded videos together where their shapes agree."""
        shapes: dict[tuple[int, ...], list[int]] = {}
        for i, (_, frames) in enumerate(videos):
            shapes.setdefault(frames.pixels.shape, []).append(i)
        encoded: dict[int, VideoFeatures] = {}
        for members in shapes.values():
            encoded.update(zip(members, self._lm.features_many([videos[i][1] for i in members]), strict=True))
        for i, (video, _) in enumerate(videos):
            features = _on_cpu(encoded[i])
            ids = self._lm.prefix_ids(features)
            positions, next_pos = self._lm.family.positions(ids, features)
            self._hold(video, VideoPrefix(ids, positions, next_pos, features))

    def _hold(self, video: str, prefix: VideoPrefix) -> None:
        self._held[video] = prefix
        self.next_pos[video], self.lengths[video] = prefix.next_pos, prefix.length
        self._bytes += _size(prefix)
        while self._bytes > self._keep_bytes and len(self._held) > 1:
            _, old = self._held.popitem(last=False)
            self._bytes -= _size(old)

    def load(self, videos: Sequence[str], progress: Callable[[int, int], None] | None = None) -> dict[str, str]:
        """Decode and encode videos ahead until memory is full, and return what is wrong with those that cannot be read (video -> reason).

        Of those that no longer fit it is only asked whether they are there: they are decoded when they are needed.
        """
        broken: dict[str, str] = {}
        waiting: list[tuple[str, Frames]] = []
        decoded = 0
        for video, (_, frames) in zip(videos, prefetch(videos, num_frames=self._num_frames, depth=self._batch), strict=False):
            decoded += 1
            if isinstance(frames, VideoError):
                broken[video] = frames.reason
            else:
                waiting.append((video, frames))
            if progress is not None:
                progress(decoded, len(videos))
            if len(waiting) >= self._batch:
                self.add_frames(waiting)
                waiting = []
                if self._bytes > self._keep_bytes / 2 and self._bytes * (1 + self._batch / decoded) > self._keep_bytes:
                    break
        if waiting:
            self.add_frames(waiting)
        broken |= {video: "no such file" for video in videos[decoded:] if not Path(video).is_file()}
        return broken

    def expect(self, videos: Iterable[str]) -> None:
        """Start decoding videos that will be asked for next, while the model works; what was expected before and not taken is forgotten."""
        wanted = [video for video in videos if video not in self._held]
        self._ahead = {video: self._ahead.get(video) or self._pool.submit(self._decode, video) for video in wanted}

    def _decode(self, video: str) -> Frames | VideoError:
        return next(iter(prefetch([video], num_frames=self._num_frames, depth=1)))[1]

    def get(self, video: str) -> VideoPrefix:
        """The encoded video.

        Raises:
            VideoError: the file cannot be read (any more).
        """
        if video not in self._held:
            coming = self._ahead.pop(video, None)
            frames = self._decode(video) if coming is None else coming.result()
            if isinstance(frames, VideoError):
                raise frames
            self.add_frames([(video, frames)])
        self._held.move_to_end(video)
        return self._held[video]


def _on_cpu(features: VideoFeatures) -> VideoFeatures:
    """Features wait in the host's memory: at the paper's size a video's are 67 MB, and an iteration has thousands of videos."""
    return replace(features, embeds=features.embeds.cpu(), deepstack=tuple(part.cpu() for part in features.deepstack))


def _size(prefix: VideoPrefix) -> float:
    tensors = [prefix.ids, prefix.positions, prefix.features.embeds, *prefix.features.deepstack]
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def make_units(examples: Sequence[Example], pairs_per_step: int) -> list[Unit]:
    """Examples grouped by video, at most `pairs_per_step` in a unit, in the order of the examples."""
    by_video: dict[str, list[int]] = {}
    for number, example in enumerate(examples):
        by_video.setdefault(example.video, []).append(number)
    return [
        Unit(video, tuple(numbers[start : start + pairs_per_step]))
        for video, numbers in by_video.items()
        for start in range(0, len(numbers), pairs_per_step)
    ]


def make_plan(examples: Sequence[Example], settings: DPOSettings) -> list[Step]:
    """The steps of all epochs. Each epoch shuffles the units with its own seed and fills steps with as many whole units as
    `pairs_per_step` allows, so that the pairs of a video share its prefix; every pair is in each epoch once."""
    plan: list[Step] = []
    for epoch in range(settings.epochs):
        units = make_units(examples, settings.pairs_per_step)
        random.Random(f"{settings.seed}/{epoch}").shuffle(units)
        group: list[Unit] = []
        count = 0
        for unit in units:
            if group and count + len(unit.examples) > settings.pairs_per_step:
                plan.append(_step(epoch, group, examples))
                group, count = [], 0
            group.append(unit)
            count += len(unit.examples)
        if group:
            plan.append(_step(epoch, group, examples))
    return plan


def _step(epoch: int, units: Sequence[Unit], examples: Sequence[Example]) -> Step:
    numbers = [number for unit in units for number in unit.examples]
    return Step(epoch, tuple(units), len(numbers), sum(len(examples[number].tokens.chosen) for number in numbers))


def system_of_pairs(pairs: Iterable[PreferencePair]) -> str | None:
    """The system message of the pairs, None for the model's own.

    Raises:
        ValueError: they have several: a video is encoded under one.
    """
    found = list(dict.fromkeys(pair.system for pair in pairs))
    if len(found) > 1:
        shown = " and ".join("none" if text is None else repr(text[:40]) for text in found[:2])
        raise ValueError(f"the pairs have {len(found)} system messages ({shown}): train on a file for each")
    return found[0] if found else None


def frames_of_pairs(pairs: Sequence[PreferencePair], settings: DPOSettings) -> int:
    """The number of frames a video is watched with in training: the settings', else the pairs' own (`meta["num_frames"]`).

    Raises:
        ValueError: the pairs do not say, or not all the same, and the settings do not decide.
    """
    if settings.num_frames is not None:
        return settings.num_frames
    found = {pair.meta.get("num_frames") for pair in pairs}
    if len(found) == 1 and isinstance(number := next(iter(found)), int):
        return number
    raise ValueError(f"the pairs were made with num_frames {sorted(map(str, found))}: say with how many frames to train (--num-frames)")
