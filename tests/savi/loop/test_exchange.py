"""The formats of other trainers: the way there and back loses nothing, and what a pair has no place for is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from savi.base.errors import FileFormatError
from savi.loop.exchange import export_pairs, from_exchange, import_pairs
from tests.savi.loop.test_preferences import make


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


def user(text: str, *media: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": [*media, {"type": "text", "text": text}]}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


VIDEO = {"type": "video", "path": "v.mp4"}
ASKED = user("where is the cup?", VIDEO)
EARLIER = [user("how many cups?", VIDEO), assistant("two")]
SYSTEM = {"role": "system", "content": "Answer in French."}
LEFT, RIGHT = assistant("left"), assistant("right")
PLAIN = {"prompt": [ASKED], "chosen": [LEFT], "rejected": [RIGHT]}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "earlier turns, one conversation": (
        {"chosen": [*EARLIER, user("where?"), LEFT], "rejected": [*EARLIER, user("where?"), RIGHT]},
        "turns before the question",
    ),
    "earlier turns, a prompt": ({**PLAIN, "prompt": [*EARLIER, user("where?")]}, "turns before the question"),
    "two questions": ({**PLAIN, "prompt": [user("how many?"), ASKED]}, "2 turns before the answer"),
    "a prompt without anything": ({**PLAIN, "prompt": []}, "0 turns before the answer"),
    "conversations that part early": (
        {"chosen": [ASKED, LEFT, user("sure?"), LEFT], "rejected": [ASKED, RIGHT, user("sure?"), RIGHT]},
        "do not answer the same prompt",
    ),
    "a system message": ({**PLAIN, "prompt": [SYSTEM, ASKED]}, "role 'system'"),
    "a system message, one conversation": ({"chosen": [SYSTEM, ASKED, LEFT], "rejected": [SYSTEM, ASKED, RIGHT]}, "role 'system'"),
    "an answer in two turns": ({**PLAIN, "chosen": [LEFT, user("go on"), LEFT]}, "chosen has 3 turns (assistant, user, assistant)"),
    "an answer by the user": ({**PLAIN, "rejected": [user("right")]}, "rejected has 1 turns (user)"),
    "two videos": ({**PLAIN, "prompt": [user("which?", VIDEO, VIDEO)]}, "2 videos in the prompt"),
    "no video": ({**PLAIN, "prompt": [user("which?")]}, "0 videos in the prompt"),
    "a picture beside it": ({**PLAIN, "prompt": [user("which?", {"type": "image", "path": "r.jpg"}, VIDEO)]}, "type 'image'"),
    "a picture in the answer": ({**PLAIN, "chosen": [user("left", {"type": "image", "path": "r.jpg"}) | {"role": "assistant"}]}, "'image'"),
    "a tool call": ({**PLAIN, "chosen": [{**LEFT, "tool_calls": [{"name": "look"}]}]}, "has tool_calls"),
    "frames of its own": ({**PLAIN, "prompt": [user("which?", {**VIDEO, "fps": 2})]}, "the video has fps"),
    "a video without a path": ({**PLAIN, "prompt": [user("which?", {"type": "video"})]}, "has no path"),
    "text around the video": (
        {**PLAIN, "prompt": [{"role": "user", "content": [{"type": "text", "text": "In"}, VIDEO, {"type": "text", "text": "who?"}]}]},
        "both sides of the video",
    ),
    "no question": ({**PLAIN, "prompt": [user(" ", VIDEO)]}, "without a question"),
    "ms-swift": ({"messages": [ASKED, LEFT], "rejected_response": "right", "videos": ["v.mp4"]}, "ms-swift's format"),
    "media in a column": ({"prompt": "where?", "chosen": "left", "rejected": "right", "videos": ["v.mp4"]}, "a column of videos"),
    "plain strings": ({"prompt": "where?", "chosen": "left", "rejected": "right"}, "not a list of messages"),
    "tools": ({**PLAIN, "tools": [{"name": "look"}]}, "a column of tools"),
    "nothing": ({}, "not a list of messages"),
    "null content": ({**PLAIN, "chosen": [{"role": "assistant", "content": None}]}, "neither text nor a list"),
    "savi is text": ({**PLAIN, "savi": "x"}, "'savi' is not an object"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_a_pair_has_no_place_for_is_refused_by_name(case: str, tmp_path: Path) -> None:
    row, said = REFUSED[case]
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(PLAIN) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(FileFormatError, match=r"pairs\.jsonl:2: ") as caught:
        import_pairs(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_processors_take_is_taken_too(tmp_path: Path) -> None:
    """`video` beside `path`; the question before the video; other columns are kept."""
    other = {**PLAIN, "prompt": [user("where is the cup?", {"type": "video", "video": "v.mp4"})], "source": "us", "score_chosen": 8.5}
    turned = {**PLAIN, "prompt": [{"role": "user", "content": ASKED["content"][::-1]}]}
    plain, taken, first = (from_exchange(row, tmp_path) for row in (PLAIN, other, turned))
    assert (
        (taken.video, taken.prompt, taken.pair_id)
        == (plain.video, plain.prompt, plain.pair_id)
        == (first.video, first.prompt, first.pair_id)
    )
    assert taken.meta == {"columns": {"source": "us", "score_chosen": 8.5}}
    path = export_pairs(tmp_path / "again.jsonl", [taken])
    assert import_pairs(path) == [taken]


def test_a_prompt_that_was_edited_is_not_ignored(tmp_path: Path) -> None:
    path = export_pairs(tmp_path / "out.jsonl", [make(tmp_path)])
    path.write_text(path.read_text().replace("left of the cup", "right of the cup", 1))
    with pytest.raises(FileFormatError, match="delete that part"):
        import_pairs(path)
