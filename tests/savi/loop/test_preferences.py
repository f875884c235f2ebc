"""Pairs, their file and the exchange formats."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from savi.base.files import FileFormatError
from savi.loop.preferences import PreferencePair, export_pairs, import_pairs, make_pair_id, read_pairs, write_pairs


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


@pytest.mark.parametrize("style", ["conversational", "messages"])
def test_exchange_loses_nothing(tmp_path: Path, style: str) -> None:
    pairs = [make(tmp_path, i) for i in range(3)] + [make(tmp_path, 3, meta={})]
    path = export_pairs(tmp_path / "out" / f"{style}.jsonl", pairs, style)  # type: ignore[arg-type]
    assert import_pairs(path) == pairs


def test_the_conversational_format_is_trls(tmp_path: Path) -> None:
    """TRL's own helper knows it as a conversational preference example, and the prompt is what the model was asked."""
    from savi.base.torchvision import fix_torchvision

    fix_torchvision()
    from trl.data_utils import is_conversational, maybe_extract_prompt

    pair = make(tmp_path)
    explicit = json.loads(export_pairs(tmp_path / "a.jsonl", [pair]).read_text())
    implicit = json.loads(export_pairs(tmp_path / "b.jsonl", [pair], "messages").read_text())
    assert is_conversational(explicit)
    extracted = maybe_extract_prompt(implicit)
    assert {key: extracted[key] for key in ("prompt", "chosen", "rejected")} == {
        key: explicit[key] for key in ("prompt", "chosen", "rejected")
    }
    assert explicit["prompt"][0]["content"][1]["text"] == pair.prompt
    assert pair.prompt.startswith(pair.question)
    assert pair.prompt != pair.question


def test_pairs_made_elsewhere(tmp_path: Path) -> None:
    """Plain TRL rows, with plain-string answers."""
    row = {
        "prompt": [{"role": "user", "content": [{"type": "video", "path": "v.mp4"}, {"type": "text", "text": "What falls?"}]}],
        "chosen": [{"role": "assistant", "content": "the cup"}],
        "rejected": [{"role": "assistant", "content": "the plate"}],
    }
    path = tmp_path / "theirs.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (pair,) = import_pairs(path)
    assert (pair.question, pair.prompt, pair.chosen, pair.rejected, pair.initial) == (
        "What falls?",
        "What falls?",
        "the cup",
        "the plate",
        "the plate",
    )
    assert Path(pair.video) == tmp_path / "v.mp4"
    row["prompt"][0]["content"] = "What falls?"  # type: ignore[index]
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(FileFormatError, match=r"theirs\.jsonl:1"):
        import_pairs(path)


def test_pair_ids() -> None:
    """They depend on the video's name, not on where it is, and tell questions apart."""
    assert make_pair_id("v.mp4", "spatial", 0, "q?") == make_pair_id("v.mp4", "spatial", 0, "q?")
    ids = {
        make_pair_id("v.mp4", kind, index, question) for kind in ("spatial", "temporal") for index in (0, 1) for question in ("q?", "r?")
    }
    assert len(ids) == 8
