"""What the micro main job does, as the speed table times it: proposing, training and evaluating with the shipped base, real mp4 files and
the settings of scales/micro.yaml. Inputs are made when first needed and go with the process. Nothing is timed here.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.benchmark import LETTERS, Benchmark, lettered
from harness.run.requests import SMALL_ROWS

if TYPE_CHECKING:
    from reproduce.scale import Scale
    from savi.engine.video_lm import Reply, VideoLM
    from savi.loop.preferences import PreferencePair
    from savi.training.trainer import TrainResult

SEED = 5
"""Of videos, questions and draws: not the one that results are reported on."""


@dataclass(frozen=True)
class Sizes:
    """How much is timed: `videos` proposed on (`alone_videos` of them the old way), `pairs` trained on (both ways), twins' questions with
    `questions` in each benchmark (every `alone_every`-th the old way)."""

    videos: int
    alone_videos: int
    pairs: int
    questions: int
    alone_every: int


@dataclass(frozen=True)
class Asked:
    """A question of a twin as it is asked: its video's file and the prompt's text."""

    benchmark: str
    video: Path
    prompt: str


@dataclass
class Bench:
    """The base, the videos and the questions, made when first needed; `sizes` says how much."""

    sizes: Sizes

    @cached_property
    def folder(self) -> Path:
        """Gone with the process."""
        folder = Path(tempfile.mkdtemp(prefix="speed-micro-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder

    @cached_property
    def scale(self) -> Scale:
        """scales/micro.yaml."""
        from reproduce.scale import load_scale

        return load_scale("micro")

    @cached_property
    def lm(self) -> VideoLM:
        """The shipped base."""
        from reproduce.paper.experiment import shipped_base
        from savi.engine.video_lm import VideoLM

        return VideoLM.from_pretrained(shipped_base(), device="cpu")

    @cached_property
    def weights(self) -> dict[str, Any]:
        """The base's weights, to train from them again."""
        return {key: value.clone() for key, value in self.lm.model.state_dict().items()}

    @cached_property
    def videos(self) -> list[Path]:
        """Unlabelled videos."""
        from benchmarks.micro.world.videos import build_videos

        return build_videos(self.folder / "videos", self.sizes.videos, SEED)

    @cached_property
    def proposed(self) -> tuple[list[PreferencePair], int]:
        """What the base proposes on all videos, and how many prompts that took."""
        counted = Counted(self.lm)
        return propose(counted, self.videos, self.scale), counted.asked

    @property
    def pairs(self) -> list[PreferencePair]:
        """The pairs that are trained on."""
        return self.proposed[0][: self.sizes.pairs]

    @cached_property
    def questions(self) -> dict[str, list[Asked]]:
        """The twins' questions by benchmark, with the micro scale's number of questions a video."""
        return twin_questions(self.folder / "twins", self.sizes.questions)

    @property
    def some_questions(self) -> list[Asked]:
        """Those that are asked the old way: every so many-th, over all benchmarks."""
        return [row for rows in self.questions.values() for row in rows][:: self.sizes.alone_every]

    @property
    def num_frames(self) -> int:
        """Frames a video."""
        return self.scale.evaluation.num_frames.value


class Counted:
    """A `VideoLM` whose prompts are counted."""

    def __init__(self, lm: VideoLM) -> None:
        self.lm, self.asked = lm, 0
        self.fingerprint, self.watch_batch = lm.fingerprint, lm.watch_batch

    def ask(self, items: Sequence[Any], *args: Any, **kwargs: Any) -> list[Reply]:
        """Answer, and count."""
        self.asked += len(items)
        return self.lm.ask(items, *args, **kwargs)


@cache
def bench(sizes: Sizes) -> Bench:
    """One of each size in a process: the four cases share it."""
    return Bench(sizes)


def twin_questions(folder: Path, count: int) -> dict[str, list[Asked]]:
    """About `count` questions of each benchmark's twin, dealt to videos as in the whole twin, with their videos on disk.

    The prompts are question and lettered options, near the length of lmms-eval's, which is not imported here.
    """
    from benchmarks.catalog import select
    from benchmarks.micro.world.videos import write_mp4
    from benchmarks.micro.world.world import render

    out: dict[str, list[Asked]] = {}
    for b in select(None):
        twin = b.twin(SEED, max(1, count // len(b.configs)))
        rows = [(task, doc) for task, config in zip(b.tasks, b.configs, strict=True) for doc in twin.rows[config]]
        for video in sorted({b.video_name(task, doc) for task, doc in rows}):
            write_mp4(folder / b.video_folder / video, render(twin.scenes[video]))
        out[b.name] = [Asked(b.name, folder / b.video_file(task, doc), prompt_of(b, task, doc)) for task, doc in rows]
    return out


def prompt_of(benchmark: Benchmark, task: str, doc: dict[str, Any]) -> str:
    """Question and options of a document, the options in the form they are asked for."""
    document, form = benchmark.document(task, doc), benchmark.form(task)
    options = lettered(document.options) if form == "letter" else []
    if form == "caption":
        options = [f"Caption {letter}: {caption}" for letter, caption in zip(LETTERS, document.options, strict=False)]
    return "\n".join([document.question, *options])


def propose(lm: Any, videos: Sequence[Path], scale: Scale) -> list[PreferencePair]:
    """`savi.propose` with the micro settings of iteration 1; `lm` is a `VideoLM` or has its methods."""
    import savi
    from reproduce.paper.experiment import align_settings

    return list(savi.propose(lm, videos, align_settings(scale, 1)))


def train(setup: Bench, pairs: Sequence[PreferencePair], engine: str) -> TrainResult:
    """`savi.train` with the micro settings of iteration 1, from the base's weights; the result's log is both ways' own."""
    import savi
    from reproduce.paper.experiment import dpo_settings

    setup.lm.model.load_state_dict(setup.weights)
    settings = dpo_settings(setup.scale, 1).model_copy(update={"engine": engine})
    folder = Path(tempfile.mkdtemp(dir=setup.folder))
    try:
        return savi.train(setup.lm, pairs, settings, folder)
    finally:
        shutil.rmtree(folder)
        setup.lm.model.load_state_dict(setup.weights)


def evaluate(lm: VideoLM, asked: dict[str, list[Asked]], num_frames: int) -> list[str]:
    """All questions as the harness asks them: one benchmark after the other, whole videos in batches, frames decoded ahead."""
    from harness.run.made_from import SMALL_MAX_NEW_TOKENS
    from savi.engine.sampling import GenerationSettings
    from savi.video.frames import VideoError
    from savi.video.prefetch import FramePrefetcher

    settings = GenerationSettings(max_new_tokens=SMALL_MAX_NEW_TOKENS)
    said: list[str] = []
    for rows in asked.values():
        replies: dict[Asked, str] = {}
        groups: dict[Path, list[Asked]] = {}
        for row in rows:
            groups.setdefault(row.video, []).append(row)
        with FramePrefetcher(list(groups), num_frames=num_frames, depth=8) as frames:
            for chunk in _chunks(list(groups.values())):
                seen = []
                for _ in chunk:
                    video = next(frames)[1]
                    if isinstance(video, VideoError):
                        raise video
                    seen.append(video)
                items = [(row, watched) for group, watched in zip(chunk, lm.watch_batch(seen), strict=True) for row in group]
                found = lm.ask([(watched, row.prompt) for row, watched in items], settings)
                replies |= {row: reply.text for (row, _), reply in zip(items, found, strict=True)}
        said += [replies[row] for row in rows]
    return said


def evaluate_alone(lm: VideoLM, asked: Sequence[Asked], num_frames: int) -> list[str]:
    """The same questions in the order given, each with its video decoded and encoded for itself."""
    from harness.run.made_from import SMALL_MAX_NEW_TOKENS
    from reproduce.speed.before import OnePromptAtATime
    from savi.engine.sampling import GenerationSettings
    from savi.video.read import read_frames

    old, settings = OnePromptAtATime(lm), GenerationSettings(max_new_tokens=SMALL_MAX_NEW_TOKENS)
    said = []
    for row in asked:
        video = old.watch_batch([read_frames(row.video, num_frames=num_frames)])[0]
        said.append(old.ask([(video, row.prompt)], settings)[0].text)
    return said


def _chunks(groups: Sequence[list[Asked]]) -> Iterator[list[list[Asked]]]:
    """Whole videos until a chunk has at least `SMALL_ROWS` questions."""
    chunk: list[list[Asked]] = []
    for group in groups:
        chunk.append(group)
        if sum(map(len, chunk)) >= SMALL_ROWS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
