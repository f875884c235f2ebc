"""Drawing of a twin's questions on scenes of the micro world, for the benchmarks' own files to put into their documents.

Right positions are dealt evenly, families as evenly as the scenes allow. Everything follows from the seed; nothing is written here, and
no benchmark is known.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.micro.world import questions
from benchmarks.micro.world.questions import Form, Question, make_question
from benchmarks.micro.world.world import Scene, make_scene, scene_rng

THREE = tuple(f for f in questions.FAMILIES if len(questions.VALUES[f]) >= 3)
FOUR = tuple(f for f in questions.FAMILIES if len(questions.VALUES[f]) >= 4)
FIVE = tuple(f for f in questions.FAMILIES if len(questions.VALUES[f]) >= 5)
"""Question families with that many values or more, so that many options."""

_TRIES = 40
"""Draws of a question on one scene before the next scene is tried."""


@dataclass(frozen=True)
class Item:
    """A question placed on a video: its options with the right one at `answer`."""

    video: int
    question: Question
    options: tuple[str, ...]
    answer: int


@dataclass
class Pool:
    """Videos that share a folder, and the drawing of questions on them. `capacity`: questions a video may carry."""

    purpose: str
    seed: int
    capacity: int
    scenes: list[Scene] = field(default_factory=list)
    load: Counter[int] = field(default_factory=Counter)
    asked: set[tuple[int, str, tuple[str, ...], str]] = field(default_factory=set)
    families: Counter[str] = field(default_factory=Counter)
    next: int = 0

    def scene(self, video: int) -> Scene:
        while len(self.scenes) <= video:
            self.scenes.append(make_scene(scene_rng(self.seed, len(self.scenes), self.purpose)))
        return self.scenes[video]

    def _draw(
        self, video: int, family: str, form: Form, n_options: int, rng: random.Random, want: Callable[[Question], bool]
    ) -> Question | None:
        for _ in range(_TRIES):
            q = make_question(self.scene(video), rng, family, form, n_options)
            if q is None:
                return None
            if want(q) and (video, q.family, q.args, form) not in self.asked:
                return q
        return None

    def take(
        self, choices: Sequence[str], form: Form, n_options: int, rng: random.Random, want: Callable[[Question], bool]
    ) -> tuple[int, Question]:
        """A question of the family asked least so far that fits some video with room, videos in turn; new videos are made when none
        fits."""
        size = len(self.scenes)
        order = [(self.next + k) % size for k in range(size)] if size else []
        for video in [*order, *range(size, size + 10_000)]:
            if self.load[video] >= self.capacity:
                continue
            shuffled = rng.sample(list(choices), len(choices))
            for family in sorted(shuffled, key=lambda f: self.families[f]):
                q = self._draw(video, family, form, n_options, rng, want)
                if q is not None:
                    self.asked.add((video, q.family, q.args, form))
                    self.load[video] += 1
                    self.families[family] += 1
                    self.next = video + 1
                    return video, q
        raise AssertionError(f"no scene fits a question of {choices}")


class Dealer:
    """Draws whole questions; each position is right equally often among questions with the same number of options."""

    def __init__(self, pool: Pool, rng: random.Random) -> None:
        self.pool, self._rng = pool, rng
        self._given: dict[int, Counter[int]] = defaultdict(Counter)

    def _position(self, n_options: int) -> int:
        given = self._given[n_options]
        least = min(given[i] for i in range(n_options))
        position = self._rng.choice([i for i in range(n_options) if given[i] == least])
        given[position] += 1
        return position

    def choice(self, families: Sequence[str], n_options: int) -> Item:
        """A question with `n_options` options (fewer where a family has no more values)."""

        def full(question: Question) -> bool:
            return len(question.options) >= min(n_options, len(questions.VALUES[question.family]))

        video, q = self.pool.take(families, "choice", n_options, self._rng, full)
        wrong = [o for k, o in enumerate(q.options) if k != q.answer]
        right = self._position(len(q.options))
        return Item(video, q, (*wrong[:right], q.value, *wrong[right:]), right)

    def yes_no(self, families: Sequence[str]) -> Item:
        """A question to be answered with yes or no."""
        right = self._position(2)
        video, q = self.pool.take(families, "yes_no", 2, self._rng, lambda q: q.answer == right)
        return Item(video, q, q.options, right)

    def captions(self, families: Sequence[str]) -> Item:
        """Two captions, one of them right."""
        video, q = self.pool.take(families, "choice", 2, self._rng, lambda _: True)
        both = [q.caption(q.options[1 - q.answer])]
        right = self._position(2)
        both.insert(right, q.caption(q.value))
        return Item(video, q, tuple(both), right)


@dataclass(frozen=True)
class Twin:
    """One benchmark's twin before it is written: rows of each configuration, and scenes by video name below the benchmark's folder of
    videos (a scene that no row names is not written)."""

    rows: dict[str, list[dict[str, Any]]]
    scenes: dict[str, Scene]


def shared_pool(benchmark: str, seed: int, questions_in_all: int, per_video: float) -> Pool:
    """Videos enough for that many questions."""
    pool = Pool(f"twin/{benchmark}", seed, math.ceil(per_video))
    pool.scene(math.ceil(questions_in_all / per_video) - 1)
    return pool


def dealer(pool: Pool, benchmark: str, seed: int, part: str = "questions") -> Dealer:
    """A dealer with a random stream of its own."""
    return Dealer(pool, scene_rng(seed, 0, f"twin/{benchmark}/{part}"))
