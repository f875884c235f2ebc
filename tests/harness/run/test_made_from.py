"""Answers of an evaluation that was not finished are not lost to another one in the same folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.catalog import CATALOG
from benchmarks.data.layout import MediaIndex
from harness.run.journal import Answer, Journal
from harness.run.made_from import OtherResultError, Plan, finished

EGO = CATALOG["egoschema"]
WANTED: dict[str, Any] = {
    "weights": "a",
    "data": "d",
    "num_frames": 8,
    "scale": "micro",
    "limit": None,
    "seed": 0,
    "max_new_tokens": 48,
    "reading": 4,
    "versions": {"torch": "2.13.0"},
}


def look(out: Path, **changes: Any) -> object:
    plan = Plan("mine", "a", out, out, 8, "micro", None, 0, 48)
    replace = changes.pop("replace", False)
    return finished(plan, EGO, {**WANTED, **changes}, MediaIndex(out), replace=replace, tell=pytest.fail)


def begin(out: Path, answers: int) -> Path:
    journal = Journal(out / EGO.name, made_by={"code": "x"}, inputs=WANTED)
    journal.add([Answer(f"k{i}", "B", 1, True, 8) for i in range(answers)])
    journal.close()
    return journal.path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"limit": 3}, "limit: none there, 3 here"),
        ({"weights": "b"}, "weights: a there, b here"),
        ({"num_frames": 16}, "num_frames: 8 there, 16 here"),
    ],
)
def test_another_evaluation_is_refused_while_answers_wait(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    kept = begin(tmp_path, 2)
    before = kept.read_bytes()
    with pytest.raises(OtherResultError, match=f"not finished.*{said}.*--replace"):
        look(tmp_path, **change)
    assert kept.read_bytes() == before
    assert look(tmp_path, **change, replace=True) is None


def test_the_same_evaluation_goes_on_also_after_an_upgrade(tmp_path: Path) -> None:
    begin(tmp_path, 2)
    assert look(tmp_path) is None
    assert look(tmp_path, versions={"torch": "2.14.0"}, reading=5) is None  # the journal itself sets other versions' answers aside


def test_where_nothing_is_said_or_answered_nothing_is_refused(tmp_path: Path) -> None:
    assert look(tmp_path, limit=3) is None
    journal = Journal(tmp_path / EGO.name)  # of before inputs were noted
    journal.add([Answer("k", "B", 1, True, 8)])
    journal.close()
    assert look(tmp_path, limit=3) is None
    (tmp_path / EGO.name / "journal.jsonl").write_text('{"made_by": {}, "inputs": {"limit": 5}}\n')  # killed before its first answer
    assert look(tmp_path, limit=3) is None
