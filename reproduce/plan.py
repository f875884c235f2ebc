"""What a run would cost, before any data or GPU is there: videos, prompts, tokens, floating point operations, hours, disk.

Counts follow the engine: a video's prefix is computed once for all that is asked of it. Lengths that only a run knows (prompts,
replies) are assumed and said so. A plan is an estimate, not a promise; it is right to a factor, not to a percent.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from benchmarks.catalog import select
from reproduce.scale import Scale, load_scale, scale_names

PROMPT_TOKENS = 80
"""A question with its options or instructions (ours; the benchmarks' mean is near it)."""
EVALUATION_REPLY_TOKENS = 8
REPLY_SHARE = 0.5
"""Share of a reply's token limit that is used on average (ours)."""
BACKWARD = 2
"""A backward pass costs about two forward passes."""


@dataclass(frozen=True)
class Cost:
    """One kind of stage over the whole run. `hours` at the scale's assumed throughput."""

    stage: str
    videos: int
    prompts: int
    tokens_m: float
    pflop: float
    hours: float
    disk_gb: float


@dataclass(frozen=True)
class Plan:
    """All stages of a run and their sum."""

    scale: str
    title: str
    needs: str
    costs: list[Cost]
    assumptions: list[str]

    @property
    def total(self) -> Cost:
        names = [f.name for f in fields(Cost) if f.name != "stage"]
        return Cost("all", **{name: sum(getattr(c, name) for c in self.costs) for name in names})

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "total": asdict(self.total)}


class _Counter:
    """Floating point operations of one model, and what they cost."""

    def __init__(self, scale: Scale) -> None:
        a = scale.architecture
        self.weights = a.language_params_b.value * 1e9
        self.attention = 4.0 * a.layers.value * a.hidden.value  # a token looking at one key: scores and values
        self.vision = a.vision_params_b.value * 1e9 * 2 * a.vision_tokens.value
        self.visual_tokens = a.visual_tokens.value
        self.flops_per_hour = scale.machine.tflops.value * 1e12 * 3600

    def prefix_tokens(self, frames: int) -> int:
        return frames * self.visual_tokens + PROMPT_TOKENS // 2

    def prefix(self, frames: int) -> float:
        tokens = self.prefix_tokens(frames)
        return frames * self.vision + 2 * self.weights * tokens + self.attention * tokens * tokens / 2

    def branch(self, frames: int, tokens: float) -> float:
        return tokens * (2 * self.weights + self.attention * self.prefix_tokens(frames))

    def cost(self, stage: str, videos: float, prompts: float, tokens: float, flop: float, disk_gb: float) -> Cost:
        return Cost(stage, round(videos), round(prompts), tokens / 1e6, flop / 1e15, flop / self.flops_per_hour, disk_gb)


def make_plan(scale: Scale) -> Plan:
    """The plan of a run at `scale`, with its settings as they are (iterations, limit, benchmarks)."""
    count = _Counter(scale)
    questions, videos, data = _data(scale, count)
    needs = f"a CUDA GPU with {scale.machine.gpu_gb.value:.0f} GB" if scale.machine.gpu_gb.value else "2 CPU cores, 4 GB of memory"
    if scale.data == "real":
        needs += f", {_loop_videos(scale):,} unlabelled videos (--videos DIR)"
    base = count.cost("base model", 0, 0, 0, 0, scale.architecture.weight_gb.value * (2 if scale.data == "real" else 0))
    costs = [data, base, _evaluate(scale, count, questions, videos), _propose(scale, count), _train(scale, count)]
    assumptions = [
        f"throughput {scale.machine.tflops.value:g} TFLOP/s ({scale.machine.tflops.source})",
        f"a question has {PROMPT_TOKENS} tokens, a benchmark's answer {EVALUATION_REPLY_TOKENS}",
        f"other replies use {REPLY_SHARE:.0%} of their limit",
        "a video's prefix is computed once for all that is asked of it; every proposed question gives a pair",
        "disk: data sets as published, the base model as published and converted, one checkpoint an iteration",
    ]
    return Plan(scale.name, scale.title, needs, costs, assumptions)


def _data(scale: Scale, count: _Counter) -> tuple[int, int, Cost]:
    """(questions, videos) of one evaluation, and the cost of having them."""
    chosen = select(scale.evaluation.benchmarks.value or None)
    limit, size = scale.evaluation.limit.value, scale.evaluation.twins.value
    questions = videos = 0
    for b in chosen:
        sizes = b.sizes if size is None else (b.twin_task(size),) * len(b.tasks)
        n = sum(task if limit is None else min(task, limit) for task in sizes)
        questions += n
        videos += min(b.videos if size is None else math.ceil(sum(sizes) / b.twin_per_video), n)
    if size is not None:
        return questions, videos, count.cost("twins", videos, 0, 0, 0, 0.02)
    whole = count.cost("data sets", sum(b.videos for b in chosen), 0, 0, 0, sum(b.download_gb for b in chosen))
    return questions, videos, whole


def _evaluate(scale: Scale, count: _Counter, questions: int, videos: int) -> Cost:
    """The base and every iteration, measured."""
    frames, rounds = scale.evaluation.num_frames.value, scale.loop.iterations.value + 1
    per_question = PROMPT_TOKENS + EVALUATION_REPLY_TOKENS
    flop = rounds * (videos * count.prefix(frames) + questions * count.branch(frames, per_question))
    tokens = rounds * (videos * count.prefix_tokens(frames) + questions * per_question)
    return count.cost("evaluate", rounds * videos, rounds * questions, tokens, flop, rounds * questions * 1.5e-6)


def _loop_videos(scale: Scale) -> int:
    return scale.loop.iterations.value * scale.loop.videos_per_iteration.value


def _propose(scale: Scale, count: _Counter) -> Cost:
    loop, n = scale.loop, _loop_videos(scale)
    frames, rows = loop.num_frames.value, 2 * loop.questions_per_kind.value
    replies = REPLY_SHARE * (loop.ask_tokens.value + loop.answer_tokens.value + loop.critique_tokens.value + loop.revise_tokens.value)
    context = PROMPT_TOKENS * 4 + REPLY_SHARE * (loop.answer_tokens.value * 2 + loop.critique_tokens.value)
    flop = n * (count.prefix(frames) + rows * count.branch(frames, replies + context))
    tokens = n * (count.prefix_tokens(frames) + rows * (replies + context))
    return count.cost("propose", n, n * rows * 4, tokens, flop, n * rows * 3e-6)


def _train(scale: Scale, count: _Counter) -> Cost:
    loop, n = scale.loop, _loop_videos(scale)
    frames, rows = loop.num_frames.value, 2 * loop.questions_per_kind.value
    branch = 2 * (PROMPT_TOKENS + REPLY_SHARE * loop.answer_tokens.value)
    one_pass = count.prefix(frames) + rows * count.branch(frames, branch)
    recompute = 1 if scale.training.gradient_checkpointing.value else 0
    passes = 1 + scale.training.epochs.value * (1 + BACKWARD + recompute)  # the reference's one pass, then the policy's
    tokens = n * (count.prefix_tokens(frames) + rows * branch) * passes
    return count.cost("train", n, n * rows, tokens, n * one_pass * passes, loop.iterations.value * scale.architecture.weight_gb.value)


def all_plans() -> list[Plan]:
    """A plan for each scale as shipped."""
    return [make_plan(load_scale(name)) for name in scale_names()]


def hours_text(hours: float) -> str:
    """Hours, or minutes below two hours."""
    return (
        f"{hours:,.0f} h" if hours >= 10 else f"{hours:.1f} h" if hours >= 2 else f"{hours * 60:.0f} min" if hours * 60 >= 1 else "< 1 min"
    )
