"""The order of a proposing run: what is left to ask, who asks it, and how what came of it gets into the files.

Chunks of videos are worked on together and written in the order of the videos, whoever asked them. The module knows neither prompts nor
models: `ask` is given.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from savi.base.files import FailureLog, file_bytes
from savi.base.processes import deal_by_weight
from savi.base.watch import working_on
from savi.engine.watched import ContextError
from savi.loop.journal import AlignCounts, Journal
from savi.loop.parts import Made, PartWriter, delete_parts, read_parts, rewrite_parts
from savi.loop.preferences import PreferencePair
from savi.server.usage import Usage
from savi.video.frames import Frames, VideoError
from savi.video.prefetch import decoders, prefetch

STAGE = "propose"
"""The stage named in failures.jsonl."""
TOO_LONG = "too long"
"""Why a video failed, or a question was dropped, that the model's context cannot hold."""

Ask = Callable[[Sequence[tuple[str, Path, Frames | VideoError]]], dict[str, Made]]
"""All steps over a chunk of (key, video, frames) -> what came of each video, by key."""


@dataclass
class Run:
    """`path_of`: the videos by their keys, in order; `chunks`: what is left to do; `made`: what parts hold of it; `again`: videos that
    could not be read before and are tried again; `fits`: some video was asked about."""

    path_of: Mapping[str, Path]
    ask: Ask
    num_frames: int
    chunk_videos: int
    failures: FailureLog | None = None
    progress: Callable[[int, int], None] | None = None
    chunks: list[list[str]] = field(default_factory=list)
    made: dict[str, Made] = field(default_factory=dict)
    again: set[str] = field(default_factory=set)
    journal: Journal | None = None
    fits: bool = False

    def __post_init__(self) -> None:
        self.chunks = in_chunks(list(self.path_of), self.chunk_videos)

    def open(self, journal: Journal, retry_failed: bool) -> None:
        """Go on with a journal and the parts beside it."""
        keys = list(self.path_of)
        self.journal = journal
        self.fits = journal.videos_done > len(journal.failures)
        list_failures(journal.failures, self.failures)
        failed = {failure["what"] for failure in journal.failures} if retry_failed else set()
        again = [key for key in keys[: journal.videos_done] if key in failed]
        self.again = set(again)
        self.chunks = in_chunks(again, self.chunk_videos) + in_chunks(keys[journal.videos_done :], self.chunk_videos)
        self.made = read_parts(journal.out, journal.header, warnings.warn)
        if retry_failed and any(made.broken for made in self.made.values()):
            self.made = {key: made for key, made in self.made.items() if not made.broken}
            rewrite_parts(journal.out, journal.header, self.made)

    @property
    def header(self) -> Mapping[str, str]:
        """What the run is made from."""
        return {} if self.journal is None else self.journal.header

    def deal(self, hands: int) -> list[list[list[str]]]:
        """What is left to ask, for each process: whole chunks, smaller ones where some process would get none."""
        left = [rest for chunk in self.chunks if (rest := [key for key in chunk if key not in self.made])]
        if hands == 1:
            return [left]
        if len(left) < hands:
            keys = [key for chunk in left for key in chunk]
            left = in_chunks(keys, max(1, math.ceil(len(keys) / hands)))
        lengths = {key: file_bytes(self.path_of[key]) for chunk in left for key in chunk}
        mean = sum(lengths.values()) / max(len(lengths), 1) or 1.0
        dealt = deal_by_weight([sum(1 + lengths[key] / mean for key in chunk) for chunk in left], hands)
        return [[left[i] for i in hand] for hand in dealt]

    def make_part(self, chunks: Sequence[Sequence[str]], out: Path, header: Mapping[str, str]) -> None:
        """This process's share, into a part of its own."""
        keys = [key for chunk in chunks for key in chunk]
        frames = self._frames(keys)
        done = 0
        with PartWriter(out, header) as part:
            for chunk in chunks:
                part.add(self._ask(chunk, frames))
                done += len(chunk)
                if self.progress is not None:
                    self.progress(done, len(keys))

    def work_through(self) -> Iterator[PreferencePair]:
        """All chunks in order, from the parts as far as they go: into the files, and out."""
        if self.journal is not None:
            yield from self.journal.stored_pairs()
            self.made = read_parts(self.journal.out, self.journal.header, warnings.warn)
        frames = self._frames([key for chunk in self.chunks for key in chunk if key not in self.made])
        done = self.journal.videos_done if self.journal is not None else 0
        for chunk in self.chunks:
            found = self.made | self._ask([key for key in chunk if key not in self.made], frames)
            retried = [key for key in chunk if key in self.again]
            done += len(chunk) - len(retried)
            yield from self._keep([found[key] for key in chunk], done, retried)
        if self.journal is not None:
            self.journal.finish()
            delete_parts(self.journal.out)

    def _frames(self, keys: Sequence[str]) -> Iterator[tuple[Path, Frames | VideoError]]:
        paths = [self.path_of[key] for key in keys]
        return prefetch(paths, num_frames=self.num_frames, depth=max(self.chunk_videos, decoders()), workers=decoders())

    def _ask(self, chunk: Sequence[str], frames: Iterator[tuple[Path, Frames | VideoError]]) -> dict[str, Made]:
        videos = []
        for key in chunk:
            working_on(f"video {self.path_of[key]} ({STAGE})")
            videos.append((key, *next(frames)))
        made = self.ask(videos) if videos else {}
        self._refuse_too_long(made)
        return made

    def _refuse_too_long(self, made: Mapping[str, Made]) -> None:
        """Stop where nothing fits, before all videos are gone through for nothing.

        Raises:
            ContextError: not one video so far fits into the model's context.
        """
        rows = [row for one in made.values() for row in one.dropped]
        why = [row["detail"] for row in rows if row["reason"] == TOO_LONG]
        why += [row["why"].removeprefix(f"{TOO_LONG}: ") for one in made.values() for row in one.broken if row["why"].startswith(TOO_LONG)]
        self.fits = self.fits or any(row["reason"] != TOO_LONG for row in rows) or any(one.pairs for one in made.values())
        if why and not self.fits:
            raise ContextError(why[0])

    def _keep(self, made: Sequence[Made], done: int, retried: Sequence[str]) -> list[PreferencePair]:
        """Write what came of a chunk; `retried`: those of its videos that had failed before."""
        pairs = [pair for one in made for pair in one.pairs]
        dropped = [row for one in made for row in one.dropped]
        broken = [failure for one in made for failure in one.broken]
        counts = AlignCounts(
            videos=len(made) - len(retried),
            broken=len(broken) - len(retried),
            questions=len(pairs) + len(dropped),
            pairs=len(pairs),
            dropped=dict(sorted(Counter(row["reason"] for row in dropped).items())),
            equal=sum(pair.chosen == pair.rejected for pair in pairs),
        )
        if self.journal is not None:
            who = dict.fromkeys(name for one in made for name in one.usage)
            usage = {name: sum((one.usage.get(name, Usage()) for one in made), Usage()) for name in who}
            self.journal.add(pairs, dropped, broken, done, counts, retried, usage)
        if self.failures is not None:
            self.failures.forget(retried, STAGE)
        list_failures(broken, self.failures)
        if self.progress is not None:
            self.progress(done, len(self.path_of))
        return pairs


def in_chunks(keys: Sequence[str], size: int) -> list[list[str]]:
    """Keys in order, `size` at a time."""
    return [list(keys[start : start + size]) for start in range(0, len(keys), size)]


def list_failures(broken: Sequence[dict[str, str]], failures: FailureLog | None) -> None:
    """Add failures to a list, where there is one."""
    if failures is not None:
        for failure in broken:
            failures.add(**failure)
