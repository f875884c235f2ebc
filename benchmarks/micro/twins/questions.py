"""The twins' questions: drawn on scenes of the micro world, put into the documents of the six benchmarks.

Each twin has its benchmark's fields, prompt form and number of options. Right positions are dealt evenly, families as evenly as the scenes
allow. Everything follows from the seed; nothing is written here.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.catalog import Benchmark
from benchmarks.data.layout import MVBENCH_FOLDERS, video_file
from benchmarks.micro.world import questions
from benchmarks.micro.world.questions import Form, Question, make_question
from benchmarks.micro.world.videos import scene_rng
from benchmarks.micro.world.world import FPS, FRAMES, SIZE, Scene, make_scene

PER_VIDEO = {"mvbench": 1.1, "perceptiontest": 3.2, "tempcompass": 6.0, "nextqa": 6.0, "egoschema": 1.0, "longvideobench": 1.8}
"""Questions a video as in the real sets, but for TempCompass (13.5) and NExT-QA (8.6): so few videos would say little about a model."""

MVBENCH_FAMILIES: dict[str, tuple[str, int]] = {
    "action_sequence": ("order", 4), "moving_count": ("count", 4), "action_prediction": ("ends", 4), "episodic_reasoning": ("becomes", 4),
    "action_antonym": ("direction", 3), "action_count": ("count", 3), "scene_transition": ("becomes", 4), "object_shuffle": ("ends", 3),
    "object_existence": ("color", 3), "fine_grained_pose": ("shape", 4), "unexpected_action": ("event", 4),
    "moving_direction": ("direction", 4), "state_change": ("becomes", 3), "object_interaction": ("place", 4), "character_order": ("order",
    3),
    "action_localization": ("event", 3),
    "counterfactual_inference": ("place", 3), "fine_grained_action": ("speed", 3), "moving_attribute": ("color", 4),
    "egocentric_navigation": ("direction", 4),
}  # fmt: skip
"""Question family and number of options that stand for each MVBench subtask."""
TEMPCOMPASS_DIMS = {"action": "event", "direction": "direction", "speed": "speed", "order": "order", "attribute_change": "becomes"}
THREE = tuple(f for f in questions.FAMILIES if len(questions.VALUES[f]) >= 3)
FOUR = tuple(f for f in questions.FAMILIES if len(questions.VALUES[f]) >= 4)
FIVE = tuple(f for f in questions.FAMILIES if len(questions.VALUES[f]) >= 5)

_TRIES = 40
"""Draws of a question on one scene before the next scene is tried."""


@dataclass(frozen=True)
class _Item:
    """A question placed on a video: its options with the right one at `answer`."""

    video: int
    question: Question
    options: tuple[str, ...]
    answer: int


@dataclass
class _Pool:
    """Videos that share a folder, and the drawing of questions on them. `capacity`: questions a video may carry."""

    purpose: str
    seed: int
    capacity: int
    scenes: list[Scene] = field(default_factory=list)
    load: Counter[int] = field(default_factory=Counter)
    asked: set[tuple[int, str, tuple[str, ...], str]] = field(default_factory=set)
    families: Counter[str] = field(default_factory=Counter)
    next: int = 0

    def scene(self, i: int) -> Scene:
        while len(self.scenes) <= i:
            self.scenes.append(make_scene(scene_rng(self.seed, len(self.scenes), self.purpose)))
        return self.scenes[i]

    def _draw(
        self, i: int, family: str, form: Form, n_options: int, rng: random.Random, want: Callable[[Question], bool]
    ) -> Question | None:
        for _ in range(_TRIES):
            q = make_question(self.scene(i), rng, family, form, n_options)
            if q is None:
                return None
            if want(q) and (i, q.family, q.args, form) not in self.asked:
                return q
        return None

    def take(
        self, choices: Sequence[str], form: Form, n_options: int, rng: random.Random, want: Callable[[Question], bool]
    ) -> tuple[int, Question]:
        """A question of the family asked least so far that fits some video with room, videos in turn; new videos are made when none
        fits."""
        size = len(self.scenes)
        order = [(self.next + k) % size for k in range(size)] if size else []
        for i in [*order, *range(size, size + 10_000)]:
            if self.load[i] >= self.capacity:
                continue
            shuffled = rng.sample(list(choices), len(choices))
            for family in sorted(shuffled, key=lambda f: self.families[f]):
                q = self._draw(i, family, form, n_options, rng, want)
                if q is not None:
                    self.asked.add((i, q.family, q.args, form))
                    self.load[i] += 1
                    self.families[family] += 1
                    self.next = i + 1
                    return i, q
        raise AssertionError(f"no scene fits a question of {choices}")


class _Balance:
    """Deals right positions so that each is right equally often among questions with the same number of options."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._given: dict[int, Counter[int]] = defaultdict(Counter)

    def position(self, k: int) -> int:
        given = self._given[k]
        least = min(given[i] for i in range(k))
        p = self._rng.choice([i for i in range(k) if given[i] == least])
        given[p] += 1
        return p


def _any(_: Question) -> bool:
    return True


def _choice(pool: _Pool, families: Sequence[str], n_options: int, rng: random.Random, balance: _Balance) -> _Item:
    def full(q: Question) -> bool:
        return len(q.options) >= min(n_options, len(questions.VALUES[q.family]))

    i, q = pool.take(families, "choice", n_options, rng, full)
    wrong = [o for k, o in enumerate(q.options) if k != q.answer]
    p = balance.position(len(q.options))
    return _Item(i, q, (*wrong[:p], q.value, *wrong[p:]), p)


def _yes_no(pool: _Pool, families: Sequence[str], rng: random.Random, balance: _Balance) -> _Item:
    p = balance.position(2)
    i, q = pool.take(families, "yes_no", 2, rng, lambda q: q.answer == p)
    return _Item(i, q, q.options, p)


def _captions(pool: _Pool, families: Sequence[str], rng: random.Random, balance: _Balance) -> _Item:
    i, q = pool.take(families, "choice", 2, rng, _any)
    wrong = q.options[1 - q.answer]
    p = balance.position(2)
    both = [q.caption(wrong)]
    both.insert(p, q.caption(q.value))
    return _Item(i, q, tuple(both), p)


@dataclass(frozen=True)
class Twin:
    """One benchmark's twin before it is written: rows of each configuration, and scenes by path relative to HF_HOME."""

    rows: dict[str, list[dict[str, Any]]]
    media: dict[str, Scene]


def _finish(b: Benchmark, rows: dict[str, list[dict[str, Any]]], scene_of: dict[str, Scene]) -> Twin:
    used = {video_file(b, t, r) for t, c in zip(b.tasks, b.configs, strict=True) for r in rows[c]}
    return Twin(rows, {v: scene_of[v] for v in sorted(used)})


def _mvbench(b: Benchmark, seed: int, n: int) -> Twin:
    rows: dict[str, list[dict[str, Any]]] = {}
    scene_of: dict[str, Scene] = {}
    pools: dict[str, _Pool] = {}
    for subtask in b.configs:
        folder = MVBENCH_FOLDERS[subtask]
        pool = pools.setdefault(folder, _Pool(f"twin/mvbench/{folder}", seed, 2))
        fresh = math.ceil(n / PER_VIDEO["mvbench"])
        pool.next = len(pool.scenes)
        pool.scene(len(pool.scenes) + fresh - 1)
        rng = scene_rng(seed, 0, f"twin/mvbench/{subtask}")
        balance = _Balance(rng)
        family, k = MVBENCH_FAMILIES[subtask]
        timed = subtask in ("action_sequence", "action_prediction", "object_interaction", "action_localization", "episodic_reasoning")
        rows[subtask] = []
        for _ in range(n):
            it = _choice(pool, (family,), k, rng, balance)
            row: dict[str, Any] = {
                "video": f"clip_{it.video:04d}.mp4",
                "question": it.question.text,
                "candidates": list(it.options),
                "answer": it.question.value,
            }
            if timed:
                row |= {"start": 0.0, "end": FRAMES / FPS}
            rows[subtask].append(row)
            scene_of[f"{b.data_dir}/{folder}/{row['video']}"] = pool.scene(it.video)
    return _finish(b, rows, scene_of)


def _pool(b: Benchmark, seed: int, n: int) -> _Pool:
    per = PER_VIDEO[b.name]
    pool = _Pool(f"twin/{b.name}", seed, math.ceil(per))
    pool.scene(math.ceil(n / per) - 1)
    return pool


def _perceptiontest(b: Benchmark, seed: int, n: int) -> Twin:
    pool, rng = _pool(b, seed, n), scene_rng(seed, 0, "twin/perceptiontest/questions")
    balance = _Balance(rng)
    rows = []
    for i in range(n):
        it = _choice(pool, THREE, 3, rng, balance)
        reasoning = "descriptive" if it.question.kind == "spatial" else "explanatory"
        rows.append(
            {
                "video_name": f"video_{it.video}",
                "question": it.question.text,
                "question_id": str(i),
                "options": list(it.options),
                "answer_id": str(it.answer),
                "area": "physics",
                "reasoning": reasoning,
                "tag": [it.question.family],
            }
        )
    config = b.configs[0]
    return _finish(b, {config: rows}, {f"{b.data_dir}/videos/video_{i}.mp4": s for i, s in enumerate(pool.scenes)})


def _tempcompass(b: Benchmark, seed: int, n: int) -> Twin:
    pool = _pool(b, seed, 3 * n)
    rows: dict[str, list[dict[str, Any]]] = {}
    dims = list(TEMPCOMPASS_DIMS.items())
    for config in b.configs:
        rng = scene_rng(seed, 0, f"twin/tempcompass/{config}")
        balance = _Balance(rng)
        rows[config] = []
        for i in range(n):
            dim, family = dims[i % len(dims)]
            if config == "yes_no":
                it = _yes_no(pool, (family,), rng, balance)
                question, answer = it.question.text, it.options[it.answer]
            elif config == "multi-choice":
                it = _choice(pool, (family,), 4, rng, balance)
                lines = [f"{'ABCD'[k]}. {o}" for k, o in enumerate(it.options)]
                question, answer = "\n".join([it.question.text, *lines]), lines[it.answer]
            else:
                it = _captions(pool, (family,), rng, balance)
                lines = [f"Caption {'AB'[k]}: {o}" for k, o in enumerate(it.options)]
                question, answer = "\n".join(["Which caption matches the video better?", *lines]), lines[it.answer]
            rows[config].append({"video_id": str(1000 + it.video), "question": question, "answer": answer, "dim": dim})
    return _finish(b, rows, {f"{b.data_dir}/videos/{1000 + i}.mp4": s for i, s in enumerate(pool.scenes)})


def _nextqa(b: Benchmark, seed: int, n: int) -> Twin:
    pool, rng = _pool(b, seed, n), scene_rng(seed, 0, "twin/nextqa/questions")
    balance = _Balance(rng)
    first = 4_010_000_000
    rows = []
    for i in range(n):
        it = _choice(pool, FIVE, 5, rng, balance)
        kind = "DL" if it.question.kind == "spatial" else "TN"
        rows.append(
            {
                "video": first + it.video,
                "frame_count": FRAMES,
                "width": SIZE,
                "height": SIZE,
                "question": it.question.text,
                "answer": it.answer,
                "qid": i,
                "type": kind,
                **{f"a{k}": o for k, o in enumerate(it.options)},
            }
        )
    config = b.configs[0]
    return _finish(b, {config: rows}, {f"{b.data_dir}/NExTVideo/{first + i}.mp4": s for i, s in enumerate(pool.scenes)})


def _egoschema(b: Benchmark, seed: int, n: int) -> Twin:
    pool, rng = _pool(b, seed, n), scene_rng(seed, 0, "twin/egoschema/questions")
    balance = _Balance(rng)

    def name(i: int) -> str:
        return hashlib.sha256(f"twin/egoschema/{seed}/{i}".encode()).hexdigest()[:32]

    rows = []
    for i in range(n):
        it = _choice(pool, FIVE, 5, rng, balance)
        option = [f"{'ABCDE'[k]}. {o}" for k, o in enumerate(it.options)]
        rows.append(
            {"question_idx": str(i), "question": it.question.text, "video_idx": name(it.video), "option": option, "answer": str(it.answer)}
        )
    config = b.configs[0]
    return _finish(b, {config: rows}, {f"{b.data_dir}/videos/{name(i)}.mp4": s for i, s in enumerate(pool.scenes)})


def _longvideobench(b: Benchmark, seed: int, n: int) -> Twin:
    pool, rng = _pool(b, seed, n), scene_rng(seed, 0, "twin/longvideobench/questions")
    balance = _Balance(rng)
    rows = []
    for i in range(n):
        # As in the real set, about a third of the questions have four options and an "N/A" pad.
        it = _choice(pool, FOUR if i % 3 == 0 else FIVE, 4 if i % 3 == 0 else 5, rng, balance)
        v = f"clip{it.video:04d}"
        category = "S2O" if it.question.kind == "spatial" else "E3E"
        rows.append(
            {
                "video_id": v,
                "question": it.question.text,
                "question_wo_referring_query": it.question.text,
                "correct_choice": it.answer,
                "position": [0, FRAMES],
                "topic_category": "micro",
                "question_category": category,
                "level": "L1-Perception" if it.question.kind == "spatial" else "L2-Relation",
                "id": f"{v}_{i}",
                "video_path": f"{v}.mp4",
                "subtitle_path": f"{v}_en.json",
                "duration_group": 15,
                "starting_timestamp_for_subtitles": 0.0,
                "duration": FRAMES / FPS,
                "view_count": 0,
                **{f"option{k}": it.options[k] if k < len(it.options) else "N/A" for k in range(5)},
            }
        )
    config = b.configs[0]
    return _finish(b, {config: rows}, {f"{b.data_dir}/videos/clip{i:04d}.mp4": s for i, s in enumerate(pool.scenes)})


MAKERS: dict[str, Callable[[Benchmark, int, int], Twin]] = {
    "mvbench": _mvbench, "perceptiontest": _perceptiontest, "tempcompass": _tempcompass, "nextqa": _nextqa, "egoschema": _egoschema,
    "longvideobench": _longvideobench,
}  # fmt: skip
