"""lmms-eval's requests in the form in which they are asked: rows, grouped by video, in chunks, dealt out over processes.

Knows no model: what is here says what is asked together, and which process asks it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.run.journal import Answer
from savi.base.files import file_bytes
from savi.base.processes import deal_by_weight

ROWS_OF_A_VIDEO = 8
"""What encoding a video costs, in answers to questions on it (32 frames and short answers; roughly)."""
SMALL_ROWS, BIG_ROWS = 384, 8
"""Questions a batch for small and for big models, where nothing else is asked for."""


@dataclass
class Row:
    """One request: where it came from, what is asked, how, and under which key it is journalled."""

    index: int
    task: str
    doc_id: int
    prompt: str
    settings: Any
    """`savi.engine.sampling.GenerationSettings`: rows of equal settings are asked in one batch."""
    video: str
    """Path, or a name for frames that lmms-eval hands over as pictures."""
    pictures: list[Any] | None
    question: str
    key: str = ""
    answer: Answer | None = None

    def fail(self, error: str) -> None:
        """There is no answer, and this is why."""
        self.answer = Answer(self.key, "", 0, False, 0, error=error)


@dataclass
class Group:
    """The rows on one video, and the decoder that read it."""

    video: str
    rows: list[Row] = field(default_factory=list)
    decoder: str = ""


Chunk = list[Group]


def chunked(rows: Sequence[Row], at_least: int, processes: int = 1) -> list[Chunk]:
    """Whole videos, in the order of their first question, until a chunk has `at_least` questions (fewer where a process would get none)."""
    groups: dict[str, Group] = {}
    for row in rows:
        groups.setdefault(row.video, Group(row.video)).rows.append(row)
    enough = min(at_least, math.ceil(len(rows) / processes)) if processes > 1 else at_least
    return list(_chunks(list(groups.values()), enough))


def _chunks(groups: Sequence[Group], at_least: int) -> Iterator[Chunk]:
    chunk: Chunk = []
    count = 0
    for group in groups:
        chunk.append(group)
        count += len(group.rows)
        if count >= at_least:
            yield chunk
            chunk, count = [], 0
    if chunk:
        yield chunk


def deal(chunks: Sequence[Chunk], processes: int) -> list[list[int]]:
    """Numbers of chunks for each process, by what their videos and questions cost: a video is decoded and encoded, half of
    `ROWS_OF_A_VIDEO` each where its file is of mean length."""
    if processes == 1:
        return [list(range(len(chunks)))]
    lengths = {group.video: file_bytes(Path(group.video)) for chunk in chunks for group in chunk}
    mean = sum(lengths.values()) / max(len(lengths), 1) or 1.0

    def cost(group: Group) -> float:
        return ROWS_OF_A_VIDEO / 2 * (1 + lengths[group.video] / mean) + len(group.rows)

    return deal_by_weight([sum(map(cost, chunk)) for chunk in chunks], processes)
