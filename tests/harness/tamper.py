"""What a person with an editor does to an evaluation's files, for tests that it is seen."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def rewrite(path: Path, change: Callable[[Rows], object]) -> None:
    """Edit the rows of a questions.jsonl, leaving every other byte alone."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")


def _reworded(rows: Rows) -> None:
    """Change a right answer's text so that it reads the same."""
    row = next(r for r in rows if r["strict"])
    row["answer"] = row["answer"] + " "


def _turned_right(rows: Rows) -> None:
    """Make the first wrong answer right, credit and reading included."""
    row = next(r for r in rows if not r["strict"])
    row.update(answer=row["target"], parsed=row["target"], strict=1.0, upstream=1.0, status="ok")


EDITS: dict[str, Callable[[Rows], object]] = {
    "answer text that reads the same": _reworded,
    "one question missing": lambda rows: rows.pop(7),
    "other frames": lambda rows: rows[3].update(frames=4),
    "one answer": _turned_right,
}
NAMED = {
    "answer text that reads the same": "questions.jsonl was edited",
    "one question missing": "questions recorded",
    "other frames": "asked on other than 8 frames",
    "one answer": "score.json says strict",
}
"""What a message says of each, the score left as it was."""


def rescore(path: Path) -> None:
    """Make score.json fit its edited records in everything but the checksum: what a tamperer forgets."""
    score = json.loads(path.read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (path.parent / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    tasks: dict[str, Rows] = defaultdict(list)
    for r in rows:
        tasks[r["task"]].append(r)
    means = {k: {t: 100 * sum(r[k] for r in v) / len(v) for t, v in tasks.items()} for k in ("strict", "upstream")}
    score.update({f"{k}_pct": sum(v.values()) / len(v) for k, v in means.items()})
    score.update(subtasks=means["strict"], statuses=dict(Counter(r["status"] for r in rows)))
    score.update(n=len(rows), n_expected=len(rows), videos=len({r["video_id"] for r in rows}))
    path.write_text(json.dumps(score), encoding="utf-8")


def unseal(path: Path) -> None:
    """Take the checksum out of a score.json."""
    score = json.loads(path.read_text(encoding="utf-8"))
    assert len(score.pop("records_sha256")) == 64
    path.write_text(json.dumps(score), encoding="utf-8")
