"""What a micro base has to be able to do before self-alignment is tried on it, and what a given one can do.

Measured on twins and videos of a seed that no result is reported on, with the micro scale's own settings: six benchmarks by lmms-eval's
tasks, the base's own questions, and its answers before and after critique.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from savi.base.errors import FileFormatError
from savi.base.files import write_text_atomic

if TYPE_CHECKING:
    from savi.engine.video_lm import VideoLM

CHECK_SEED = 77
"""Of the twins and videos a base is checked on; the study reports on others."""
VIDEOS = 200
OVER_CHANCE, READABLE, CRITIQUE = 10.0, 85.0, 85.0
"""Limits: points over chance on each twin; percent of its questions that can be read; percent of its revised answers that are right."""
RESULT_FILE = "check.json"


@dataclass(frozen=True)
class Twin:
    """Strict score on a twin, and what guessing earns there (0-100)."""

    score_pct: float
    chance_pct: float


@dataclass(frozen=True)
class Measured:
    """What a base can do (0-100). `readable_pct` of its `questions` can be read, `valid_pct` of the rest has one right answer; of those
    `direct_pct` are answered rightly at once and `revised_pct` after critique."""

    twins: dict[str, Twin]
    questions: int
    readable_pct: float
    valid_pct: float
    direct_pct: float
    revised_pct: float

    @property
    def mean_pct(self) -> float:
        """Mean over the twins."""
        return sum(t.score_pct for t in self.twins.values()) / len(self.twins)

    @property
    def gap(self) -> float:
        """How much better reasoning answers than answering at once, in points: what the method lives on."""
        return self.revised_pct - self.direct_pct

    @property
    def limits(self) -> Iterator[Limit]:
        """Every limit with what was measured."""
        for name, twin in self.twins.items():
            yield Limit(f"{name}: points over chance ({twin.chance_pct:.1f} %)", twin.score_pct - twin.chance_pct, OVER_CHANCE)
        yield Limit("questions that can be read, %", self.readable_pct, READABLE)
        yield Limit("revised answers that are right, %", self.revised_pct, CRITIQUE)

    @property
    def passed(self) -> bool:
        """Whether every limit is met."""
        return all(limit.met for limit in self.limits)


_MEASURED = TypeAdapter(Measured)


@dataclass(frozen=True)
class Limit:
    """A limit by its name: `measured` has to be `least` or more."""

    name: str
    measured: float
    least: float

    @property
    def met(self) -> bool:
        return self.measured >= self.least


def write_measured(path: Path, measured: Measured) -> None:
    """Keep what was measured, with the verdict."""
    more = {"mean_pct": round(measured.mean_pct, 2), "gap": round(measured.gap, 2), "passed": measured.passed}
    write_text_atomic(path, json.dumps({**asdict(measured), **more}, indent=1) + "\n")


def read_measured(path: Path) -> Measured:
    """What `write_measured` kept.

    Raises:
        FileFormatError: the file is none of these.
        OSError: it cannot be read.
    """
    try:
        return _MEASURED.validate_json(path.read_bytes())
    except ValidationError as error:
        raise FileFormatError(f"{path}: not the result of a check ({error.error_count()} faults); delete it and check again") from error


def twins_home(work: Path) -> Path:
    """Where the check's twins lie."""
    return work / "hf_home"


def prepare(work: Path) -> None:
    """Make the twins and the videos that bases are checked on; those that are there stay."""
    from benchmarks.micro.twins.twins import build_twins
    from benchmarks.micro.world.videos import build_videos

    build_twins(twins_home(work), seed=CHECK_SEED, size="micro")
    build_videos(work / "videos", VIDEOS, seed=CHECK_SEED)


def measure(base: Path, work: Path, out: Path) -> Measured:
    """Measure the base in folder `base`, with what `prepare` made in `work`; what is finished in `out` is not measured again.

    The process needs `reproduce.paper.launch.worker_environment(twins_home(work), ...)`.
    """
    from harness.run.evaluate import evaluate
    from reproduce.scale import load_scale
    from savi.engine.video_lm import VideoLM

    scale = load_scale("micro")
    lm = VideoLM.from_pretrained(base, device="cpu")
    found = evaluate(
        lm,
        hf_home=twins_home(work).resolve(),
        out=out / "eval",
        num_frames=scale.evaluation.num_frames.value,
        scale=scale.name,
        replace=True,
    )
    twins = {name: Twin(round(e.score.strict_pct, 2), round(e.score.chance_pct, 2)) for name, e in found.items()}
    return _with_questions(twins, lm, work / "videos", out)


def _with_questions(twins: dict[str, Twin], lm: VideoLM, videos: Path, out: Path) -> Measured:
    """What the base asks and answers on the videos, judged against the truth."""
    from benchmarks.micro.analysis import judge_pairs
    from reproduce.paper.experiment import align_settings
    from reproduce.scale import load_scale
    from savi.base.files import FailureLog
    from savi.loop.journal import read_counts, read_unchanged
    from savi.loop.preferences import read_pairs
    from savi.loop.propose import propose

    pairs, dropped = out / "pairs.jsonl", out / "dropped.jsonl"
    settings, failures = align_settings(load_scale("micro"), 1), FailureLog(out / "failures.jsonl")
    for _ in propose(lm, sorted(videos.glob("*.mp4")), settings, out=pairs, dropped=dropped, failures=failures):
        pass
    counts = read_counts(pairs)
    judged = judge_pairs([asdict(p) for p in read_pairs(pairs)], [asdict(p) for p in read_unchanged(dropped)], CHECK_SEED)
    readable = 100 * (1 - counts.dropped.get("unreadable question", 0) / counts.questions)
    return Measured(
        twins, counts.questions, round(readable, 2), judged.valid_pct or 0.0, judged.initial_pct or 0.0, judged.revised_pct or 0.0
    )
