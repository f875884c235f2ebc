"""Pairs and their file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from savi.base.files import FileFormatError
from savi.loop.preferences import PreferencePair, make_pair_id, read_pairs, write_pairs


def make(folder: Path, number: int = 0, **changes: object) -> PreferencePair:
    pair = PreferencePair(
        pair_id=f"p{number}",
        video=str(folder / "videos" / f"{number}.mp4"),
        question="What is left of the cup?",
        kind="spatial",
        initial="a plate",
        critique="There is a spoon.",
        chosen="a spoon – été",
        rejected="a plate",
        meta={"index": number, "num_frames": 8, "prompts": "videosavi"},
    )
    return replace(pair, **changes)  # type: ignore[arg-type]


def test_round_trip_and_moving_the_folder(tmp_path: Path) -> None:
    pairs = [make(tmp_path / "run", i) for i in range(3)]
    path = write_pairs(tmp_path / "run" / "iter-1" / "pairs.jsonl", pairs)
    assert read_pairs(path) == pairs
    assert json.loads(path.read_text().splitlines()[0])["video"] == "../videos/0.mp4"
    (tmp_path / "run").rename(tmp_path / "moved")
    assert read_pairs(tmp_path / "moved" / "iter-1" / "pairs.jsonl") == [make(tmp_path / "moved", i) for i in range(3)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": 2}, "schema_version 2"),
        ({"kind": "causal"}, "kind"),
        ({"chosen": None}, "chosen"),
        ({"truth": "B"}, "truth"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, change: dict[str, object], said: str) -> None:
    path = write_pairs(tmp_path / "pairs.jsonl", [make(tmp_path), make(tmp_path, 1)])
    lines = path.read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), **change})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(FileFormatError, match=rf"pairs\.jsonl:2.*{said}"):
        read_pairs(path)


def test_a_missing_field(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs.jsonl", [make(tmp_path)])
    row = json.loads(path.read_text())
    del row["rejected"]
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(FileFormatError, match="rejected"):
        read_pairs(path)


def test_pair_ids() -> None:
    """They depend on the video's name, not on where it is, and tell questions apart."""
    assert make_pair_id("v.mp4", "spatial", 0, "q?") == make_pair_id("v.mp4", "spatial", 0, "q?")
    ids = {
        make_pair_id("v.mp4", kind, index, question) for kind in ("spatial", "temporal") for index in (0, 1) for question in ("q?", "r?")
    }
    assert len(ids) == 8
