"""The questions that decided a verdict: candidate against reference, question by question, as text or JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from harness.gate.evidence.changes import Change
from harness.gate.output.ci import plain

KINDS = {"lost": "questions lost", "gained": "questions gained", "answer": "answered otherwise, same credit"}
MAX_TEXT = 300


def diff_json(found: Mapping[str, Sequence[Change]]) -> dict[str, Any]:
    """Every change with both records, by benchmark."""
    return {
        name: [{"kind": c.kind, "question": c.name, "before": asdict(c.before), "after": asdict(c.after)} for c in changes]  # type: ignore[call-overload]
        for name, changes in found.items()
    }


def diff_text(found: Mapping[str, Sequence[Change]], *, limit: int) -> str:
    """Counts of each benchmark and its first `limit` questions: where, what was asked, the right answer, both answers."""
    out = []
    for name, changes in found.items():
        counts = ", ".join(
            f"{sum(c.kind == k for c in changes):,} {text}" for k, text in KINDS.items() if any(c.kind == k for c in changes)
        )
        out.append(f"{plain(name)}: {counts or 'nothing changed'}")
        for c in changes[:limit]:
            out.append(f"  {c.kind} {plain(c.name)}")
            out.append(f"    {_line(c.before.prompt)}")
            out.append(f"    right: {_line(c.before.target)}; before: {_line(c.before.answer)}; now: {_line(c.after.answer)}")
        if len(changes) > limit:
            out.append(f"  and {len(changes) - limit:,} more (--limit, --json)")
    return "\n".join(out)


def _line(text: str) -> str:
    return " ".join(plain(text, MAX_TEXT).split()) or "(empty)"
