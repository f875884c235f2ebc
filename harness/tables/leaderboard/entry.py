"""What a leaderboard is made of: entries with their scores and, where they are known, the answers. Values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from savi.base.errors import ExitCode, SaviError

UNSTATED = "unstated"
"""Scale of a stock result folder, which does not say it, unless the caller does."""

Kind = Literal["run", "lmms-eval", "published"]
Key = tuple[str, int]


class LeaderboardError(SaviError, ValueError):
    """Something that may not enter: names the file and what is wrong. `usage` where the caller asked for what is not there."""

    exit_code = ExitCode.USAGE

    def __init__(self, message: str, *, usage: bool = False) -> None:
        super().__init__(message)
        self.usage = usage


@dataclass(frozen=True)
class Answers:
    """Per-question credits (0-1) of one model on one benchmark, in key order.

    `content` tells whether the same keys mean the same questions: our question ids, or (stock results keep no more) the right answers, as
    `content_kind` says; only contents of one kind can be compared. `videos` are the clusters, None where the source does not say them.
    """

    keys: tuple[Key, ...]
    credits: tuple[float, ...]
    content: tuple[str, ...]
    content_kind: Literal["question ids", "targets"]
    videos: tuple[str, ...] | None


@dataclass(frozen=True)
class EntryScore:
    """A model's score on a benchmark, in percent."""

    pct: float
    n: int | None
    n_expected: int | None
    answers: Answers | None = None
    note: str = ""
    seeds: Mapping[int, float] = field(default_factory=dict)
    """Percent by loop seed, where a study keeps scores but no answers: what its ranks are decided on."""


@dataclass(frozen=True)
class Entry:
    """A model at one scale, however it was measured."""

    label: str
    kind: Kind
    scale: str
    scores: Mapping[str, EntryScore]
    place: str
    """Where it was read, as a path below what the caller gave."""
    link: str | None = None
    notes: tuple[str, ...] = ()
    marks: str = ""
    """Shown after the label (a dagger for a published row on other questions)."""
    synthetic: bool = False
    """Measured on the synthetic twins."""
    study: str = ""
    """The study it is of: a study's entries have a table of their own, since only they share base model and seeds."""


def answers_of(rows: Sequence[tuple[Key, float, str, str | None]], place: str, content: Literal["question ids", "targets"]) -> Answers:
    keys = tuple(r[0] for r in rows)
    twice = next((k for k, after in pairwise(keys) if k == after), None)
    if twice is not None:
        raise LeaderboardError(f"{place}: question {twice[1]} of {twice[0]} is there twice")
    videos = tuple(str(r[3]) for r in rows) if all(r[3] is not None for r in rows) else None
    return Answers(keys, tuple(r[1] for r in rows), tuple(r[2] for r in rows), content, videos)
