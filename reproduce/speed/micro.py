"""The micro scale's main job, now and as it was before videos were encoded once: proposing, training, evaluating, and their weighted sum.

The shipped base, real mp4 files, and the settings of scales/micro.yaml. Before: every prompt by itself with its video encoded again
(`reproduce.speed.before`), and DPO one sequence at a time (`DPOSettings.engine` "plain"). Both ways decode ahead, and both read, parse and
write the same; a part of the old way's work is timed and multiplied.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reproduce.speed.case import Case, Preset
from reproduce.speed.main_job import Bench, Sizes, bench, evaluate, evaluate_alone, propose, train

if TYPE_CHECKING:
    from savi.loop.preferences import PreferencePair
    from savi.training.trainer import TrainResult

NOW, BEFORE = "now", "before"
SIZES = {"cpu": Sizes(200, 8, 128, 80, 12), "smoke": Sizes(8, 2, 4, 6, 6)}
"""How much each preset times."""


@dataclass
class Part:
    """One of the job's three kinds of work. `times` is what the old way's seconds are multiplied with; `a_job`: how often the work of one
    timing is in the whole main job. `same`: percent of the old way's results that the new way has too, after a round of both."""

    title: str
    now: Callable[[], Any]
    before: Callable[[], Any]
    times: float
    a_job: float
    notes: tuple[str, ...]
    agree: Callable[[Any, Any], float]
    results: dict[str, Any] = field(default_factory=dict)

    def run(self, way: str) -> None:
        """Do it one way and keep what came out."""
        self.results[way] = self.now() if way == NOW else self.before()

    def seconds(self, way: str) -> float:
        """Seconds of one way, a part of the old way multiplied."""
        start = time.perf_counter()
        self.run(way)
        return (time.perf_counter() - start) * (self.times if way == BEFORE else 1.0)

    def same_pct(self) -> float:
        """Percent of the old way's results that the new way has too."""
        return self.agree(self.results[NOW], self.results[BEFORE])


def proposing(setup: Bench) -> Part:
    """Videos to preference pairs."""
    from reproduce.speed.before import OnePromptAtATime

    few = setup.videos[: setup.sizes.alone_videos]
    first = OnePromptAtATime(setup.lm)
    propose(first, few, setup.scale)
    prompts = setup.proposed[1]

    def agree(now: list[PreferencePair], before: list[PreferencePair]) -> float:
        mine = [pair for pair in now if Path(pair.video) in few]
        return _percent(sum(pair in mine for pair in before), max(len(mine), len(before)))

    loop = setup.scale.loop
    return Part(
        f"micro: proposing pairs on {len(setup.videos)} videos",
        lambda: propose(setup.lm, setup.videos, setup.scale),
        lambda: propose(OnePromptAtATime(setup.lm), few, setup.scale),
        times=prompts / first.asked,
        a_job=loop.iterations.value * loop.videos_per_iteration.value / len(setup.videos),
        notes=(
            f"before: the {first.asked} prompts on {len(few)} of {len(setup.videos)} videos timed, "
            f"times {prompts / first.asked:.1f} ({prompts} prompts in all)",
        ),
        agree=agree,
    )


def training(setup: Bench) -> Part:
    """DPO as at micro scale: the whole model, all epochs, the reference too."""
    pairs, settings = setup.pairs, setup.scale.training
    train(setup, pairs[:2], "packed")  # what the first call imports is neither way's work
    a_video = len(setup.proposed[0]) / len(setup.videos)
    loop = setup.scale.loop

    def agree(now: TrainResult, before: TrainResult) -> float:
        close = [abs(a["loss"] - c["loss"]) <= 1e-4 * abs(c["loss"]) for a, c in zip(now.log, before.log, strict=True)]
        return _percent(sum(close), len(close))

    return Part(
        f"micro: training on {len(pairs)} pairs, {settings.epochs.value} epochs",
        lambda: train(setup, pairs, "packed"),
        lambda: train(setup, pairs, "plain"),
        times=1.0,
        a_job=loop.iterations.value * loop.videos_per_iteration.value * a_video / len(pairs),
        notes=("before: a sequence at a time, two a pair, reference too; the vision tower once a video in both",),
        agree=agree,
    )


def evaluating(setup: Bench) -> Part:
    """The twins' questions."""
    from benchmarks.catalog import select

    n = sum(map(len, setup.questions.values()))
    few = setup.some_questions
    rows = [row for asked in setup.questions.values() for row in asked]
    whole = sum(benchmark.twin_questions["micro"] * len(benchmark.tasks) for benchmark in select(None))
    videos = len({row.video for row in rows})

    def agree(now: list[str], before: list[str]) -> float:
        return _percent(sum(a == c for a, c in zip(now[:: setup.sizes.alone_every], before, strict=True)), len(before))

    return Part(
        f"micro: evaluating {n} of the twins' questions",
        lambda: evaluate(setup.lm, setup.questions, setup.num_frames),
        lambda: evaluate_alone(setup.lm, few, setup.num_frames),
        times=n / len(few),
        a_job=(setup.scale.loop.iterations.value + 1) * whole / n,
        notes=(
            f"{n} questions on {videos} videos, without lmms-eval's own work",
            f"before: {len(few)} questions timed, times {n / len(few):.1f}",
        ),
        agree=agree,
    )


PARTS: dict[str, Callable[[Bench], Part]] = {"micro-propose": proposing, "micro-train": training, "micro-evaluate": evaluating}


def _percent(some: int, of: int) -> float:
    return 100.0 * some / of if of else 100.0


def micro_case(preset: Preset, name: str) -> Case:
    """One part of the main job, or (`micro-job`) all three weighted with how often they are in it.

    Raises:
        KeyError: no such case, or a preset without micro sizes.
    """
    setup = bench(SIZES[preset.name])
    if name != "micro-job":
        part = PARTS[name](setup)
        return Case(
            name,
            part.title,
            {way: partial(part.run, way) for way in (NOW, BEFORE)},
            NOW,
            (BEFORE,),
            None,
            times={BEFORE: part.times},
            notes=part.notes,
            extras=lambda: {"same result_pct": part.same_pct()},
        )
    parts = [make(setup) for make in PARTS.values()]
    loop = setup.scale.loop
    spent: dict[str, dict[str, float]] = {}

    def job(way: str) -> float:
        each = {key: part.a_job * part.seconds(way) for key, part in zip(PARTS, parts, strict=True)}
        spent[way] = each
        return sum(each.values())

    def shares() -> dict[str, float]:
        return {
            f"{way}, {key.removeprefix('micro-')}_pct": 100 * seconds / sum(each.values())
            for way, each in spent.items()
            for key, seconds in each.items()
        }

    pairs = round(parts[1].a_job * len(setup.pairs) / loop.iterations.value)
    return Case(
        name,
        "micro: the whole main job",
        {way: partial(job, way) for way in (NOW, BEFORE)},
        NOW,
        (BEFORE,),
        None,
        notes=(
            f"a weighted sum, not a run: {loop.iterations.value} iterations of {loop.videos_per_iteration.value} videos proposed on and "
            f"about {pairs} pairs trained on, {loop.iterations.value + 1} evaluations of all twins, each part timed as in the three cases "
            "above and multiplied (what is fixed in a training run is multiplied too, in both ways); making videos and twins, loading, "
            "lmms-eval's own work, gates, tables and report are left out",
        ),
        extras=shares,
    )
