"""What a run would cost, before any data or GPU is there: videos, prompts, tokens, floating point operations, hours, disk.

Counts follow the engine: a video's prefix is computed once for all that is asked of it. Time is counted by what bounds each part: reading a
prefix and training by operations, a decoding step by memory and by what every layer costs anyway (`figures`), frames by the cores that
decode them beside the model. Lengths that only a run knows (prompts, replies) are assumed and said so. A plan is an estimate.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from benchmarks.catalog import select
from harness.run.requests import BIG_ROWS, SMALL_ROWS
from reproduce.plan.figures import Figures, figures_for
from reproduce.plan.memory import Way, ways_to_train
from reproduce.scale import Scale, load_scale, scale_names

PROMPT_TOKENS = {"real": 80, "micro": 20}
"""A question with its options or instructions (ours; the benchmarks' mean is near it, and so is that of the synthetic ones)."""
EVALUATION_REPLY_TOKENS = 8
REPLY_SHARE = 0.5
"""Share of a reply's token limit that is used on average (ours)."""
LONGEST_SHARE = 0.6
"""Share of it that the longest reply of a batch uses: so many steps are taken (ours)."""
BACKWARD = 2
"""A backward pass costs about two forward passes; of frozen weights (LoRA) only one."""
KV_SHARE = 0.25
"""Width of keys (and of values) in hidden sizes: a key head for four query heads, as in InternVL2.5-8B."""
BYTES = 2
"""Of a weight, key or value: 16 bits."""


@dataclass(frozen=True)
class Cost:
    """One kind of stage over the whole run, `hours` by the machine's figures."""

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
    gpus: int = 1
    memory: list[Way] = field(default_factory=list)
    """What training needs on each GPU; empty where no GPU is needed."""

    @property
    def total(self) -> Cost:
        names = [f.name for f in fields(Cost) if f.name != "stage"]
        return Cost("all", **{name: sum(getattr(c, name) for c in self.costs) for name in names})

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "total": asdict(self.total), "memory": [way.to_dict() for way in self.memory]}


class _Counter:
    """Operations and bytes of one model, and what they take."""

    def __init__(self, scale: Scale, figures: Figures, gpus: int = 1) -> None:
        a = scale.architecture
        self.figures, self.layers, self.prompt = figures, a.layers.value, PROMPT_TOKENS[scale.data]
        self.weights = a.language_params_b.value * 1e9
        self.attention = 4.0 * a.layers.value * a.hidden.value  # a token looking at one key: scores and values
        self.vision = a.vision_params_b.value * 1e9 * 2 * a.vision_tokens.value
        self.visual_tokens = a.visual_tokens.value
        self.processes = gpus if scale.machine.device.value == "cuda" else 1 if scale.machine.processes.value == 1 else 2
        self.token_bytes = 2 * BYTES * a.layers.value * a.hidden.value * KV_SHARE

    def prefix_tokens(self, frames: int) -> int:
        return frames * self.visual_tokens + self.prompt // 2

    def prefix(self, frames: int) -> float:
        """The language model over a video."""
        tokens = self.prefix_tokens(frames)
        return 2 * self.weights * tokens + self.attention * tokens * tokens / 2

    def branch(self, frames: int, tokens: float) -> float:
        return tokens * (2 * self.weights + self.attention * self.prefix_tokens(frames))

    def watch_s(self, frames: int) -> float:
        """Seconds to encode a video."""
        return frames * self.vision / (self.figures.vision * 1e12) + self.prefix(frames) / (self.figures.prefill * 1e12)

    def step_s(self, frames: int, videos: float, rows: float) -> float:
        """Seconds of a decoding step."""
        return self.figures.step_s(
            weight_bytes=self.weights * BYTES, prefix_bytes=self.prefix_tokens(frames) * self.token_bytes, videos=videos, rows=rows,
            row_flop=self.branch(frames, 1), layers=self.layers,
        )  # fmt: skip

    def read_s(self, flop: float) -> float:
        """Seconds to read prompts of so many operations."""
        return flop / (self.figures.prefill * 1e12)

    def frames_s(self, videos: float, frames: int) -> float:
        """Seconds the cores take to decode videos, beside the model."""
        return videos * frames * self.figures.frame_ms / 1e3 / self.figures.cores

    def cost(self, stage: str, videos: float, prompts: float, tokens: float, flop: float, disk_gb: float, seconds: float = 0.0) -> Cost:
        return Cost(stage, round(videos), round(prompts), tokens / 1e6, flop / 1e15, seconds / 3600, disk_gb)


def make_plan(scale: Scale, figures: Figures | None = None, *, gpus: int = 1) -> Plan:
    """The plan of a run at `scale`, with its settings as they are (iterations, limit, benchmarks); `figures`: by default this machine's.

    `gpus` share the work, each with as many cores as `figures` says; a scale for a CPU takes no notice of them.
    """
    given = scale.machine.tflops
    figures = figures or figures_for(scale.machine.device.value)
    if given.source.startswith("command line"):
        figures = replace(figures, prefill=given.value, vision=given.value, train=given.value, measured_on=given.source)
    count = _Counter(scale, figures, gpus)
    questions, videos, data = _data(scale, count)
    needs = f"a CUDA GPU with {scale.machine.gpu_gb.value:.0f} GB" if scale.machine.gpu_gb.value else "2 CPU cores, 4 GB of memory"
    if scale.data == "real":
        needs += f", {_loop_videos(scale):,} unlabelled videos (--videos DIR)"
    base = count.cost("base model", 0, 0, 0, 0, scale.architecture.weight_gb.value * (2 if scale.data == "real" else 0))
    costs = [data, base, _evaluate(scale, count, questions, videos), _propose(scale, count), _train(scale, count)]
    assumptions = [
        f"figures of {figures.measured_on}: {figures.prefill:.3g} TFLOP/s reading, {figures.train:.3g} training, "
        f"{figures.read_gb_s:,.0f} GB/s; "
        f"frames decoded beside it, {figures.frame_ms:.3g} ms of a core each, on {figures.cores}; --calibrate measures this machine's",
        f"a question has {count.prompt} tokens, a benchmark's answer {EVALUATION_REPLY_TOKENS}",
        f"other replies use {REPLY_SHARE:.0%} of their limit, the longest of a batch {LONGEST_SHARE:.0%}",
        "a video's prefix is computed once for all that is asked of it; every proposed question gives a pair",
        *_shared(scale, count),
        "disk: data sets as published, the base model as published and converted, one checkpoint an iteration",
    ]
    if scale.machine.device.value != "cuda":
        return Plan(scale.name, scale.title, needs, costs, assumptions)
    return Plan(scale.name, scale.title, needs, costs, assumptions, gpus, _memory(scale, count, gpus))


def _shared(scale: Scale, count: _Counter) -> list[str]:
    """How processes share the work, in words."""
    if count.processes == 1:
        return []
    if scale.machine.device.value == "cpu":
        return ["proposing and evaluating in two processes, training in one"]
    units = _units_a_step(scale)
    few = f"; a training step has work for {units}" if units < count.processes else ""
    return [f"work dealt out over {count.processes} GPUs{few}; what they tell each other is hidden behind computing"]


def _units_a_step(scale: Scale) -> int:
    """Videos whose pairs are trained on in one step: as many processes have work in it."""
    return max(1, scale.training.pairs_per_step.value // (2 * scale.loop.questions_per_kind.value))


def _memory(scale: Scale, count: _Counter, gpus: int) -> list[Way]:
    """Training's memory: a video with its branches at their full length, or as many as `max_batch_tokens` takes."""
    loop, frames = scale.loop, scale.loop.num_frames.value
    rows, answer = 2 * loop.questions_per_kind.value, loop.answer_tokens.value
    row = count.prefix_tokens(frames) + rows * (count.prompt + 2 * answer)
    videos = max(1, scale.training.max_batch_tokens.value // row)
    return ways_to_train(scale, tokens=videos * row, scored=videos * rows * 2 * answer, gpus=gpus)


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
    per_question = count.prompt + EVALUATION_REPLY_TOKENS
    flop = rounds * (videos * (frames * count.vision + count.prefix(frames)) + questions * count.branch(frames, per_question))
    tokens = rounds * (videos * count.prefix_tokens(frames) + questions * per_question)
    a_video = questions / max(videos, 1)
    batch = max(1.0, (SMALL_ROWS if scale.data == "micro" else BIG_ROWS) / a_video)
    steps = videos / batch * (EVALUATION_REPLY_TOKENS - 1) * count.step_s(frames, batch, batch * a_video)
    model = videos * count.watch_s(frames) + count.read_s(questions * count.branch(frames, count.prompt)) + steps
    seconds = rounds * max(model, count.frames_s(videos, frames)) / count.processes
    return count.cost("evaluate", rounds * videos, rounds * questions, tokens, flop, rounds * questions * 1.5e-6, seconds)


def _loop_videos(scale: Scale) -> int:
    return scale.loop.iterations.value * scale.loop.videos_per_iteration.value


def _propose(scale: Scale, count: _Counter) -> Cost:
    loop, n = scale.loop, _loop_videos(scale)
    frames, rows = loop.num_frames.value, len(loop.kinds.value) * loop.questions_per_kind.value
    limits = [loop.ask_tokens.value, loop.answer_tokens.value, loop.critique_tokens.value, loop.revise_tokens.value]
    replies = REPLY_SHARE * sum(limits)
    context = count.prompt * 4 + REPLY_SHARE * (loop.answer_tokens.value * 2 + loop.critique_tokens.value)
    flop = n * (frames * count.vision + count.prefix(frames) + rows * count.branch(frames, replies + context))
    tokens = n * (count.prefix_tokens(frames) + rows * (replies + context))
    batch = min(loop.chunk_videos.value, loop.videos_per_iteration.value)
    running = batch * rows * REPLY_SHARE / LONGEST_SHARE  # on average: rows that are done leave
    steps = n / batch * sum(max(LONGEST_SHARE * limit - 1, 0) for limit in limits) * count.step_s(frames, batch, running)
    model = n * count.watch_s(frames) + count.read_s(n * rows * count.branch(frames, context)) + steps
    seconds = max(model, count.frames_s(n, frames)) / count.processes
    return count.cost("propose", n, n * rows * 4, tokens, flop, n * rows * 3e-6, seconds)


def _train(scale: Scale, count: _Counter) -> Cost:
    loop, n = scale.loop, _loop_videos(scale)
    frames, rows = loop.num_frames.value, len(loop.kinds.value) * loop.questions_per_kind.value
    branch = count.prompt + 2 * REPLY_SHARE * loop.answer_tokens.value  # a question, its chosen and its rejected answer
    tokens = count.prefix_tokens(frames) + rows * branch
    looking = count.attention * (count.prefix_tokens(frames) ** 2 / 2 + rows * branch * count.prefix_tokens(frames))
    recompute = 1 if scale.training.gradient_checkpointing.value else 0
    backward = 1 if scale.training.lora_r.value else BACKWARD
    reference, epochs = 2 * count.weights * tokens + looking, scale.training.epochs.value
    step = 2 * count.weights * tokens * (1 + backward + recompute) + looking * (1 + BACKWARD + recompute)
    flop = n * (frames * count.vision + reference + epochs * step)
    model = n * (
        frames * count.vision / (count.figures.vision * 1e12) + count.read_s(reference) + epochs * step / (count.figures.train * 1e12)
    )
    shared = min(count.processes, _units_a_step(scale)) if scale.machine.device.value == "cuda" else 1
    seconds = max(model, count.frames_s(n, frames)) / shared
    disk = loop.iterations.value * scale.architecture.weight_gb.value
    return count.cost("train", n, n * rows, n * tokens * (1 + epochs), flop, disk, seconds)


def all_plans(gpus: int = 1) -> list[Plan]:
    """A plan for each scale as shipped."""
    return [make_plan(load_scale(name), gpus=gpus) for name in scale_names()]


def hours_text(hours: float) -> str:
    """Hours, or minutes below two hours."""
    return (
        f"{hours:,.0f} h" if hours >= 10 else f"{hours:.1f} h" if hours >= 2 else f"{hours * 60:.0f} min" if hours * 60 >= 1 else "< 1 min"
    )
