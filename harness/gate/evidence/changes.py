"""Which questions changed between two runs: the difference that a verdict rests on, question by question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.gate.decision import Changed
from harness.records import Key, QuestionRecord, index_records

Kind = Literal["lost", "gained", "answer"]


@dataclass(frozen=True)
class Change:
    """A question answered otherwise: strict credit lost or gained, or (`answer`) another answer of equal credit."""

    kind: Kind
    key: Key
    before: QuestionRecord
    after: QuestionRecord

    @property
    def name(self) -> str:
        """`TASK/DOCUMENT on VIDEO`."""
        return f"{self.before.task}/{self.before.doc_id} on {self.before.video_id}"


def changes(after: Sequence[QuestionRecord], before: Sequence[QuestionRecord]) -> list[Change]:
    """Every question of both whose answer changed, in task and document order."""
    mine = index_records(after)
    out = []
    for key, r in index_records(before).items():
        m = mine.get(key)
        if m is not None and (m.strict != r.strict or m.answer != r.answer):
            out.append(Change("lost" if m.strict < r.strict else "gained" if m.strict > r.strict else "answer", key, r, m))
    return out


def changed_questions(after: Sequence[QuestionRecord], before: Sequence[QuestionRecord]) -> Changed:
    """The names of the questions gained and lost."""
    found = changes(after, before)
    return Changed([c.name for c in found if c.kind == "gained"], [c.name for c in found if c.kind == "lost"])
