"""What a report tells of a run: stages, verdicts, pairs, failures, timings, settings, and what could not be read.

Values only; `read` fills them from a folder. Nothing here knows files, HTML, torch or lmms-eval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.catalog import CATALOG
from harness.gate.decision import GateResult
from harness.records import Evaluation
from harness.tables.study import Study
from savi.base.errors import ExitCode, SaviError

Json = dict[str, object]


class ReportError(SaviError, ValueError):
    """A folder no report can be made of: names the folder and what was looked for."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True)
class Gate:
    """One comparison: an iteration against the one before (`previous`), the base model (`base`) or the paper (`paper`)."""

    against: str
    result: GateResult


@dataclass(frozen=True)
class PairRow:
    """One question that the model asked itself: the pair that came of it, or the reason why none did. Texts are empty where there are
    none."""

    id: str
    kind: str
    video: str
    """As in the file: relative to its folder."""
    question: str
    outcome: Literal["pair", "unchanged", "dropped"]
    reason: str
    detail: str
    initial: str
    critique: str
    revision: str
    """Of a dropped question; a pair has `chosen` and `rejected`."""
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Pairs:
    """What self-alignment made of the videos in one iteration. Lengths are words, means."""

    n: int
    videos: int
    kinds: dict[str, int]
    dropped: dict[str, int]
    words: dict[str, float]
    rows: list[PairRow]


@dataclass(frozen=True)
class Stage:
    """The base model or one iteration."""

    key: str
    """Folder name: `base`, `iter-1`."""
    title: str
    short: str
    evaluations: dict[str, Evaluation]
    gates: list[Gate] = field(default_factory=list)
    pairs: Pairs | None = None
    log: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class FailureGroup:
    """Failures of one kind: the stage, the reason with its particulars taken out, how many, and one example."""

    stage: str
    why: str
    count: int
    example: str


@dataclass(frozen=True)
class Timing:
    """Wall time of one stage, seconds, with whatever else was noted beside it."""

    stage: str
    wall_s: float
    extra: str


@dataclass(frozen=True)
class Setting:
    """One resolved setting and where it comes from (paper, release, related work, ours)."""

    name: str
    value: str
    source: str


@dataclass(frozen=True)
class PaperRows:
    """The paper's base and aligned rows for one scale, percentages by benchmark; a missing number is left out, and a row that the paper
    does not have is empty."""

    base_label: str
    aligned_label: str
    base: dict[str, float]
    aligned: dict[str, float]


@dataclass(frozen=True)
class RunData:
    """Everything a report shows."""

    path: Path
    name: str
    scale: str
    synthetic: bool
    stages: list[Stage]
    failures: list[FailureGroup] | None
    timings: list[Timing] | None
    settings: list[Setting]
    facts: list[tuple[str, str]]
    run: Json | None
    published: PaperRows | None
    problems: list[str]
    study: Study | None = None
    """What this project's study says of runs of this scale."""

    @property
    def measured(self) -> list[Stage]:
        """Stages with at least one evaluation, in order."""
        return [s for s in self.stages if s.evaluations]

    @property
    def benchmarks(self) -> list[str]:
        """Benchmarks measured in any stage, in catalog order, unknown ones last."""
        seen = {b for s in self.stages for b in s.evaluations}
        return [b for b in CATALOG if b in seen] + sorted(seen - set(CATALOG))


def side_by_side(path: Path, name: str, stages: list[Stage]) -> RunData:
    """Stages of any runs as if they were one run's, for a page that compares them. `path`: the folder of the last one's run."""
    scores = [e.score for s in stages for e in s.evaluations.values()]
    scales = sorted({s.scale for s in scores})
    return RunData(
        path=path,
        name=name,
        scale=" and ".join(scales) or "unknown",
        synthetic=any(s.synthetic for s in scores),
        stages=stages,
        failures=None,
        timings=None,
        settings=[],
        facts=[],
        run=None,
        published=None,
        problems=[f"scores of several scales: {', '.join(scales)}"] if len(scales) > 1 else [],
    )


def title_of(benchmark: str) -> str:
    """The benchmark's name as its authors write it."""
    return CATALOG[benchmark].title if benchmark in CATALOG else benchmark


def number(value: object) -> float | None:
    """A finite float, or None for anything else (bool, NaN, text)."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def provenance_differences(stages: Sequence[Stage]) -> list[str]:
    """Where two stages' scores on one benchmark rest on other media, prompts, frames or generation settings."""
    out: list[str] = []
    if len(stages) < 2:
        return out
    first = stages[0]
    for s in stages[1:]:
        for b, e in s.evaluations.items():
            if b in first.evaluations:
                p, q = first.evaluations[b].score.provenance, e.score.provenance
                out += [
                    f"{title_of(b)}: {k} differ between {first.title.lower()} and {s.title.lower()}"
                    for k in ("media", "prompts", "frames", "generation", "seed")
                    if getattr(p, k) != getattr(q, k)
                ]
    return out
