"""What a pair has no place for is refused by name, with file and line; a user's file is never called something to delete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from savi.base.errors import FileFormatError, SaviError, UsageError
from savi.formats.table import NAMES, read_any_pairs, write_any_pairs
from tests.savi.loop.test_preferences import make


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
FLAT = {"prompt": "where is the cup?", "chosen": "left", "rejected": "right", "videos": ["v.mp4"]}
SWIFT = {
    "messages": [{"role": "user", "content": "<video>where is the cup?"}, {"role": "assistant", "content": "left"}],
    "rejected_response": "right",
    "videos": ["v.mp4"],
}
SHAREGPT = {
    "conversations": [{"from": "human", "value": "<video>where is the cup?"}],
    "chosen": {"from": "gpt", "value": "left"},
    "rejected": {"from": "gpt", "value": "right"},
    "videos": ["v.mp4"],
}
ALPACA = {"instruction": "where is", "input": "the cup?", "chosen": "left", "rejected": "right", "videos": ["v.mp4"]}
HOUND = {"id": "v_1", "video": "v.mp4", "prompt": "<video>\nwhere is the cup?", "chosen": "left", "rejected": "right", "chosen_score": 5}
IMAGE = {"type": "image", "path": "r.jpg"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "two questions": ({**PLAIN, "prompt": [user("how many?"), ASKED]}, "the prompt is user, user"),
    "a prompt without anything": ({**PLAIN, "prompt": []}, "the prompt is nothing"),
    "conversations that part early": (
        {"chosen": [ASKED, LEFT, user("sure?"), LEFT], "rejected": [ASKED, RIGHT, user("sure?"), RIGHT]},
        "do not answer the same prompt",
    ),
    "a system message later": ({**PLAIN, "prompt": [ASKED, LEFT, SYSTEM, user("sure?")]}, "the prompt is user, assistant, system, user"),
    "an answer in two turns": ({**PLAIN, "chosen": [LEFT, user("go on"), LEFT]}, "chosen has 3 turns (assistant, user, assistant)"),
    "an answer by the user": ({**PLAIN, "rejected": [user("right")]}, "rejected has 1 turns (user)"),
    "two videos": ({**PLAIN, "prompt": [user("which?", VIDEO, VIDEO)]}, "2 videos in the prompt"),
    "no video": ({**PLAIN, "prompt": [user("which?")]}, "0 videos in the prompt"),
    "a video in the second question": ({**PLAIN, "prompt": [user("how many?"), LEFT, ASKED]}, "not in the first question"),
    "a second video later": ({**PLAIN, "prompt": [*EARLIER, ASKED]}, "2 videos in the prompt"),
    "a picture beside it": ({**PLAIN, "prompt": [user("which?", IMAGE, VIDEO)]}, "type 'image'"),
    "a picture in the answer": ({**PLAIN, "chosen": [user("left", IMAGE) | {"role": "assistant"}]}, "'image'"),
    "a tool call": ({**PLAIN, "chosen": [{**LEFT, "tool_calls": [{"name": "look"}]}]}, "has tool_calls"),
    "frames of its own": ({**PLAIN, "prompt": [user("which?", {**VIDEO, "fps": 2})]}, "the video has fps"),
    "a video without a path": ({**PLAIN, "prompt": [user("which?", {**VIDEO, "path": ""})]}, "has no path"),
    "a video with no path in its list": ({**PLAIN, "prompt": [user("which?", {**VIDEO, "path": []})]}, "the video has 0 paths"),
    "text around the video": (
        {**PLAIN, "prompt": [{"role": "user", "content": [{"type": "text", "text": "In"}, VIDEO, {"type": "text", "text": "who?"}]}]},
        "both sides of the video",
    ),
    "no question": ({**PLAIN, "prompt": [user(" ", VIDEO)]}, "has no text"),
    "tools": ({**PLAIN, "tools": [{"name": "look"}]}, "column 'tools'"),
    "pictures": ({**FLAT, "images": ["r.jpg"]}, "column 'images' holds pictures"),
    "texts without a prompt": ({"chosen": "left", "rejected": "right"}, "no prompt"),
    "two videos in a column": ({**FLAT, "videos": ["v.mp4", "w.mp4"]}, "2 videos"),
    "no video anywhere": ({**FLAT, "videos": []}, "0 videos"),
    "frames": ({**FLAT, "videos": [["1.jpg", "2.jpg"]]}, "list of frames"),
    "bytes": ({**FLAT, "videos": [{"path": None, "bytes": "AAAA"}]}, "embedded as bytes"),
    "another video in the message": ({**PLAIN, "videos": ["w.mp4"]}, "not those of the column"),
    "null content": ({**PLAIN, "chosen": [{"role": "assistant", "content": None}]}, "neither text nor a list"),
    "savi is text": ({**PLAIN, "savi": "x"}, "does not hold what `savi export` writes"),
    "ms-swift: another prompt": ({**SWIFT, "rejected_response": None, "rejected_messages": [ASKED, RIGHT]}, "the same prompt"),
    "ms-swift: pictures": ({**SWIFT, "rejected_images": ["r.jpg"]}, "column 'rejected_images'"),
    "sharegpt: tools": ({**SHAREGPT, "tools": "[]"}, "column 'tools'"),
    "sharegpt: a function call": (
        {**SHAREGPT, "conversations": [*SHAREGPT["conversations"], {"from": "function_call", "value": "x"}]},  # type: ignore[misc]
        "the prompt is user, function_call",
    ),
    "alpaca: history": ({**ALPACA, "history": ["how many?"]}, "history is not a list"),
    "no format": ({"question": "where?", "answer": "left"}, "no known format (columns: answer, question)"),
    "a single judged answer": ({"prompt": "where?", "completion": "left", "label": True}, "no known format"),
    "a system message in a column": ({**PLAIN, "system": "Answer in French."}, "column 'system' holds a system message"),
    "earlier turns in a column": ({**FLAT, "history": [["how many?", "two"]]}, "column 'history' holds earlier turns"),
    "sound": ({**FLAT, "audio": "a.wav"}, "column 'audio' holds sound"),
    "frames in a column": ({**FLAT, "frames": ["1.jpg"]}, "column 'frames'"),
    "the mark of a picture": ({**FLAT, "prompt": "<image>\nwhere is the cup?"}, "<image> in its text"),
    "nothing chosen, as pandas writes it": ({**PLAIN, "chosen": float("nan")}, "no known format (columns: prompt, rejected)"),
    "nothing asked, as pandas writes it": ({**FLAT, "prompt": float("nan")}, "no prompt"),
    "ms-swift: the mark of sound": (
        {**SWIFT, "messages": [{"role": "user", "content": "<video>where?<audio>"}, SWIFT["messages"][1]]},  # type: ignore[index]
        "<audio> in its text",
    ),
    "ms-swift: earlier turns in a column": ({**SWIFT, "history": [["how many?", "two"]]}, "column 'history' holds earlier turns"),
    "sharegpt: earlier turns twice": ({**SHAREGPT, "history": [["how many?", "two"]]}, "both conversations and history"),
    "sharegpt: two questions": ({**SHAREGPT, "instruction": "how many?"}, "both conversations and instruction"),
    "llava-hound: two questions": (
        {**HOUND, "conversations": [{"from": "human", "value": "how many?"}, {"from": "gpt", "value": "left"}]},
        "both prompt and conversations",
    ),
    "savi: a prompt set that is not known": (
        {
            "schema_version": 1,
            "pair_id": "x",
            "video": "v.mp4",
            "question": "q",
            "kind": "spatial",
            "initial": "r",
            "critique": "c",
            "chosen": "l",
            "rejected": "r",
            "meta": {"prompts": "mine"},
        },
        "meta: prompts 'mine': unknown",
    ),
    "two formats": ({**FLAT, "video": "v.mp4"}, "may be trl or llava-hound"),
    "nothing": ({}, "columns: none"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_a_pair_has_no_place_for_is_refused_by_name(case: str, tmp_path: Path) -> None:
    row, said = REFUSED[case]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n" + json.dumps(row) + "\n")
    with pytest.raises(FileFormatError, match=r"pairs\.jsonl:2: ") as caught:
        read_any_pairs(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "delete" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": 1}\n{"chosen"\n', "pairs.jsonl:2: not a JSON object"),
        (b"[\n {},\n {,\n]", "pairs.jsonl:3: not a JSON object"),
        (b"[{}\n{}]", "pairs.jsonl:2: the array does not go on here"),
        (b"[1]", "pairs.jsonl:1: not a JSON object but a int"),
        (b"[{}", "does not go on"),
        (b"[" * 100_000, "not a JSON object"),
        ('{"prompt": "é"}'.encode("utf-16"), "not UTF-8 at byte 0"),
        (b"\x1f\x8b\x08", "not UTF-8"),
    ],
)
def test_broken_files(content: bytes, said: str, tmp_path: Path) -> None:
    from savi.formats.rows import file_rows

    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    with pytest.raises(FileFormatError) as caught:
        list(file_rows(path))
    assert said in str(caught.value)
    assert "delete" not in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_missing_as_pandas_writes_it_is_no_column(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({**FLAT, "system": float("nan"), "score": float("nan"), "margin": float("inf")}))
    assert read_any_pairs(path)[0].meta == {"columns": {"margin": "Infinity"}}


def test_a_format_can_be_forced_and_must_exist(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({**FLAT, "video": "v.mp4"}))
    assert read_any_pairs(path, name="trl")[0].prompt == "where is the cup?"
    with pytest.raises(UsageError, match="no such format; there are savi, trl"):
        read_any_pairs(path, name="csv")
    with pytest.raises(UsageError, match="no such format"):
        write_any_pairs(path, [], "csv")
    with pytest.raises(UsageError, match="no such file or folder, and not a hub id"):
        read_any_pairs(tmp_path / "absent.jsonl")


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_a_file_that_holds_something_else_is_not_replaced(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"out.{suffix}"
    write_any_pairs(path, [make(tmp_path)], "trl")
    before = path.read_bytes()
    write_any_pairs(path, [make(tmp_path)], "trl")  # the same again
    for pairs, name in (([make(tmp_path, chosen="another")], "trl"), ([make(tmp_path)], "savi")):
        with pytest.raises(UsageError, match="holds something else"):
            write_any_pairs(path, pairs, name)
        assert path.read_bytes() == before
    with pytest.raises(UsageError, match="is there already"):
        write_any_pairs(tmp_path, [make(tmp_path)], "trl")


def test_a_prompt_that_was_edited_is_not_ignored(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    write_any_pairs(path, [make(tmp_path)], "trl")
    path.write_text(path.read_text().replace("left of the cup", "right of the cup", 1))
    with pytest.raises(FileFormatError, match="leave that column out"):
        read_any_pairs(path)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("savi", "trl", "trl-implicit")])
def test_a_question_that_spells_a_mark_is_not_written_where_it_would_count_as_a_video(name: str, tmp_path: Path) -> None:
    pair = make(tmp_path, question="what is <video>?", meta={})
    with pytest.raises(SaviError, match="--format trl"):
        write_any_pairs(tmp_path / "out.json", [pair], name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["trl-flat", "llava-hound"])
@pytest.mark.parametrize("more", [{"system": "Be brief."}, {"history": (("how many?", "two"),)}])
def test_formats_of_one_question_take_no_more(name: str, more: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SaviError, match="one question"):
        write_any_pairs(tmp_path / "out.json", [make(tmp_path, **more)], name)
