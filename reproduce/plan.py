"""What a run would cost, before any data or GPU is there: videos, prompts, tokens, floating point operations, hours, disk.

Counts follow the engine: a video's prefix is computed once for all that is asked of it. Lengths that only a run knows (prompts,
replies) are assumed and said so. A plan is an estimate, not a promise; it is right to a factor, not to a percent.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
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
        c = self.costs
        return Cost(
            "all",
            sum(x.videos for x in c),
            sum(x.prompts for x in c),
            sum(x.tokens_m for x in c),
            sum(x.pflop for x in c),
            sum(x.hours for x in c),
            sum(x.disk_gb for x in c),
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "total": asdict(self.total)}


class _Counter:
    """Floating point operations of one model."""

    def __init__(self, scale: Scale) -> None:
        a = scale.architecture
        self.weights = a.language_params_b.value * 1e9
        self.attention = 4.0 * a.layers.value * a.hidden.value  # a token looking at one key: scores and values
        self.vision = a.vision_params_b.value * 1e9 * 2 * a.vision_tokens.value
        self.visual_tokens = a.visual_tokens.value

    def prefix_tokens(self, frames: int) -> int:
        return frames * self.visual_tokens + PROMPT_TOKENS // 2

    def prefix(self, frames: int) -> float:
        p = self.prefix_tokens(frames)
        return frames * self.vision + 2 * self.weights * p + self.attention * p * p / 2

    def branch(self, frames: int, tokens: float) -> float:
        return tokens * (2 * self.weights + self.attention * self.prefix_tokens(frames))


def make_plan(scale: Scale) -> Plan:
    """The plan of a run at `scale`, with its settings as they are (iterations, limit, benchmarks)."""
    count = _Counter(scale)
    loop, e = scale.loop, scale.evaluation
    flops_per_hour = scale.machine.tflops.value * 1e12 * 3600

    def cost(stage: str, videos: float, prompts: float, tokens: float, flop: float, disk_gb: float) -> Cost:
        return Cost(stage, round(videos), round(prompts), tokens / 1e6, flop / 1e15, flop / flops_per_hour, disk_gb)

    chosen = select(e.benchmarks.value or None)
    costs: list[Cost] = []
    limit = e.limit.value
    if scale.data == "real":
        costs.append(cost("data sets", sum(b.videos for b in chosen), 0, 0, 0, sum(b.download_gb for b in chosen)))
        sizes = {b.name: b.sizes for b in chosen}
        whole = {b.name: b.videos for b in chosen}
    else:
        sizes = {b.name: (b.twin_questions[e.twins.value or "micro"],) * len(b.tasks) for b in chosen}
        whole = {b.name: math.ceil(sum(sizes[b.name]) / b.twin_per_video) for b in chosen}
    questions = {name: sum(n if limit is None else min(n, limit) for n in tasks) for name, tasks in sizes.items()}
    videos = {name: min(n, questions[name]) for name, n in whole.items()}
    if scale.data != "real":
        costs.append(cost("twins", sum(videos.values()), 0, 0, 0, 0.02))
    costs.append(cost("base model", 0, 0, 0, 0, scale.architecture.weight_gb.value * (2 if scale.data == "real" else 0)))

    frames = e.num_frames.value
    rounds = loop.iterations.value + 1
    asked, seen = sum(questions.values()), sum(videos.values())
    per_question = PROMPT_TOKENS + EVALUATION_REPLY_TOKENS
    flop = rounds * (seen * count.prefix(frames) + asked * count.branch(frames, per_question))
    tokens: float = rounds * (seen * count.prefix_tokens(frames) + asked * per_question)
    costs.append(cost("evaluate", rounds * seen, rounds * asked, tokens, flop, rounds * asked * 1.5e-6))

    frames = loop.num_frames.value
    n_videos = loop.iterations.value * loop.videos_per_iteration.value
    rows = 2 * loop.questions_per_kind.value
    replies = REPLY_SHARE * (loop.ask_tokens.value + loop.answer_tokens.value + loop.critique_tokens.value + loop.revise_tokens.value)
    context = PROMPT_TOKENS * 4 + REPLY_SHARE * (loop.answer_tokens.value * 2 + loop.critique_tokens.value)
    flop = n_videos * (count.prefix(frames) + rows * count.branch(frames, replies + context))
    tokens = n_videos * (count.prefix_tokens(frames) + rows * (replies + context))
    costs.append(cost("propose", n_videos, n_videos * rows * 4, tokens, flop, n_videos * rows * 3e-6))

    branch = 2 * (PROMPT_TOKENS + REPLY_SHARE * loop.answer_tokens.value)
    one_pass = count.prefix(frames) + rows * count.branch(frames, branch)
    recompute = 1 if scale.training.gradient_checkpointing.value else 0
    passes = 1 + scale.training.epochs.value * (1 + BACKWARD + recompute)  # the reference's one pass, then the policy's
    flop = n_videos * one_pass * passes
    tokens = n_videos * (count.prefix_tokens(frames) + rows * branch) * passes
    costs.append(cost("train", n_videos, n_videos * rows, tokens, flop, loop.iterations.value * scale.architecture.weight_gb.value))

    needs = f"a CUDA GPU with {scale.machine.gpu_gb.value:.0f} GB" if scale.machine.gpu_gb.value else "2 CPU cores, 4 GB of memory"
    if scale.data == "real":
        needs += f", {n_videos:,} unlabelled videos (--videos DIR)"
    return Plan(
        scale.name,
        scale.title,
        needs,
        costs,
        [
            f"throughput {scale.machine.tflops.value:g} TFLOP/s ({scale.machine.tflops.source})",
            f"a question has {PROMPT_TOKENS} tokens, a benchmark's answer {EVALUATION_REPLY_TOKENS}",
            f"other replies use {REPLY_SHARE:.0%} of their limit",
            "a video's prefix is computed once for all that is asked of it; every proposed question gives a pair",
            "disk: data sets as published, the base model as published and converted, one checkpoint an iteration",
        ],
    )


def all_plans() -> list[Plan]:
    """A plan for each scale as shipped."""
    return [make_plan(load_scale(name)) for name in scale_names()]


def hours_text(hours: float) -> str:
    """Hours, or minutes below two hours."""
    return (
        f"{hours:,.0f} h" if hours >= 10 else f"{hours:.1f} h" if hours >= 2 else f"{hours * 60:.0f} min" if hours * 60 >= 1 else "< 1 min"
    )
