"""What a run ends with and its report shows: what the study over base models found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.tables.study import STUDY_DIR, SUMMARY_FILE, read_study


def summary(verdict: str, effect: dict[str, Any] | None, scale: str = "micro") -> str:
    claim = {"id": "gain", "claim": "", "effect": effect, "verdict": verdict}
    return json.dumps({"scale": scale, "runs": 12, "gains": {"dpo": [effect] * 4}, "claims": [claim]})


OTHER_SCALE = summary("holds", {"n": 2, "points": 1, "low": 0, "high": 2}, "smoke")


@pytest.mark.parametrize(
    ("verdict", "said"), [("holds", "a gain"), ("does not hold", "no gain worth having"), ("not decided", "a gain is not established")]
)
def test_it_says_the_effect_over_bases_and_its_verdict(tmp_path: Path, verdict: str, said: str) -> None:
    (tmp_path / SUMMARY_FILE).write_text(summary(verdict, {"n": 12, "points": 1.26, "low": -0.31, "high": 2.8, "df": 9.0}))
    study = read_study("micro", tmp_path)
    assert study is not None
    assert f"over 12 base models: +1.3 points [-0.3, +2.8] after 4 iterations: {said} (" in study.line


@pytest.mark.parametrize("text", ["", "{}", "[1]", summary("holds", None), OTHER_SCALE])
def test_no_study_of_this_scale_no_line(tmp_path: Path, text: str) -> None:
    assert read_study("micro", tmp_path) is None
    (tmp_path / SUMMARY_FILE).write_text(text)
    assert read_study("micro", tmp_path) is None


def test_the_shipped_study_can_be_read() -> None:
    if (STUDY_DIR / SUMMARY_FILE).is_file():
        assert read_study("micro")
