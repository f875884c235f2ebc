"""The questions that decided a verdict: candidate against reference, question by question, as text or JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from harness.gate.evidence.changes import Change
from harness.gate.output.ci import plain

KINDS = {"lost": "questions lost", "gained": "questions gained", "answer": "answered otherwise, same credit"}
MAX_TEXT = 300

LinkOf = Callable[[str, Change], str | None]
"""Where a benchmark's changed question is shown in a report; None where there is none."""


def diff_json(found: Mapping[str, Sequence[Change]], link: LinkOf) -> dict[str, Any]:
    """Every change with both records and its link, by benchmark."""
    return {
        name: [
            {"kind": c.kind, "question": c.name, "link": link(name, c), "before": asdict(c.before), "after": asdict(c.after)}  # type: ignore[call-overload]
            for c in changes
        ]
        for name, changes in found.items()
    }


def diff_text(found: Mapping[str, Sequence[Change]], link: LinkOf, *, limit: int, only_one: Mapping[str, int]) -> str:
    """Counts of each benchmark and its first `limit` questions: where, what was asked, the right answer, both answers, the link.

    `only_one`: questions of each benchmark that only one side was asked.
    """
    out = []
    for name, changes in found.items():
        counts = [f"{sum(c.kind == k for c in changes):,} {text}" for k, text in KINDS.items() if any(c.kind == k for c in changes)]
        counts += [f"{only_one[name]:,} questions asked on one side only"] if only_one.get(name) else []
        out.append(f"{plain(name)}: {', '.join(counts) or 'nothing changed'}")
        for c in changes[:limit]:
            out.append(f"  {c.kind} {plain(c.name)}")
            out.append(f"    {_line(c.before.prompt)}")
            out.append(f"    right: {_line(c.before.target)}; before: {_line(c.before.answer)}; now: {_line(c.after.answer)}")
            if (address := link(name, c)) is not None:
                out.append(f"    {plain(address)}")
        if len(changes) > limit:
            out.append(f"  and {len(changes) - limit:,} more (--show, --json)")
    return "\n".join(out)


def _line(text: str) -> str:
    return " ".join(plain(text, MAX_TEXT).split()) or "(empty)"
