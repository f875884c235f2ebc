"""The formats of other tools: what theirs say is what is trained on, and the way there and back loses nothing."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from savi.formats.table import FORMATS, NAMES, read_any_pairs, write_any_pairs
from savi.loop.preferences import PreferencePair
from tests.savi.formats.test_refused import (
    ALPACA,
    ASKED,
    EARLIER,
    FLAT,
    HOUND,
    LEFT,
    PLAIN,
    RIGHT,
    SHAREGPT,
    SWIFT,
    SYSTEM,
    user,
)
from tests.savi.loop.test_preferences import make

ONE_QUESTION = ("trl-flat", "llava-hound")
SUFFIXES = (".jsonl", ".json", ".parquet")

words = st.text(min_size=1, max_size=20).filter(lambda text: text.strip() and "<" not in text)
answers = st.text(max_size=20)


@st.composite
def some_pairs(draw: st.DrawFn) -> list[PreferencePair]:
    def one(number: int) -> PreferencePair:
        meta = draw(st.sampled_from([{}, {"index": number, "num_frames": 8}, {"columns": {"score": 8.5, "tags": ["a"], "text": "ü"}}]))
        return PreferencePair(
            f"p{number}", f"/videos/{draw(st.sampled_from(['a.mp4', 'ü b.mp4', 'c[1].mp4']))}", draw(words),
            draw(st.sampled_from(["spatial", "temporal"])), draw(answers), draw(answers), draw(answers), draw(answers), meta,
            system=draw(st.none() | words), history=tuple(draw(st.lists(st.tuples(words, words), max_size=2))),
        )  # fmt: skip

    return [one(number) for number in range(draw(st.integers(1, 3)))]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", SUFFIXES)
@given(pairs=some_pairs())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_way_there_and_back_loses_nothing(name: str, suffix: str, pairs: list[PreferencePair], tmp_path: Path) -> None:
    if name in ONE_QUESTION:
        pairs = [replace(pair, system=None, history=()) for pair in pairs]
    for relative in (None, True, False):
        path = Path(tempfile.mkdtemp(dir=tmp_path)) / f"out{suffix}"
        write_any_pairs(path, pairs, name, relative=relative)
        assert read_any_pairs(path) == pairs


THEIRS: dict[str, dict[str, Any]] = {
    "trl": PLAIN,
    "trl, whole conversations": {"chosen": [ASKED, LEFT], "rejected": [ASKED, RIGHT]},
    "trl, answers as text": {**PLAIN, "chosen": "left", "rejected": [{"role": "assistant", "content": "right"}]},
    "trl, the video's other name": {**PLAIN, "prompt": [user("where is the cup?", {"type": "video", "video": "v.mp4"})]},
    "trl, the question first": {**PLAIN, "prompt": [{"role": "user", "content": ASKED["content"][::-1]}]},
    "trl, nulls of Arrow": {
        **PLAIN,
        "images": None,
        "prompt": [
            {"role": "user", "content": [{"type": "video", "path": "v.mp4", "text": None}, {"text": "where is the cup?", "type": "text"}]}
        ],
    },
    "trl, a column of videos": {**PLAIN, "prompt": [user("where is the cup?")], "videos": ["v.mp4"]},
    "trl, a place for the video": {**PLAIN, "prompt": [user("where is the cup?", {"type": "video"})], "videos": ["v.mp4"]},
    "trl, texts": FLAT,
    "trl, a video of datasets": {**FLAT, "videos": [{"path": "v.mp4", "bytes": None}]},
    "ms-swift": SWIFT,
    "ms-swift, no mark": {**SWIFT, "messages": [{"role": "user", "content": "where is the cup?"}, SWIFT["messages"][1]]},
    "ms-swift, rejected_messages": {
        "messages": SWIFT["messages"],
        "rejected_messages": [SWIFT["messages"][0], {"role": "assistant", "content": "right"}],
        "videos": ["v.mp4"],
        "rejected_videos": ["v.mp4"],
    },
    "sharegpt": SHAREGPT,
    "sharegpt, role and content": {
        **SHAREGPT,
        "conversations": [{"role": "user", "content": "where is the cup?<video>"}],
        "chosen": {"role": "assistant", "content": "left"},
    },
    "alpaca": {**ALPACA, "instruction": "where is the cup?", "input": ""},
    "llava-hound": HOUND,
    "llava-hound, conversations": {
        "video": "v.mp4",
        "conversations": [{"from": "human", "value": "<video>\nwhere is the cup?"}, {"from": "gpt", "value": "left"}],
        "chosen": "left",
        "rejected": "right",
    },
}


@pytest.mark.parametrize("case", list(THEIRS))
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_made_elsewhere(case: str, suffix: str, tmp_path: Path) -> None:
    """All of them say the same; byte order marks, blank lines and the end of the file do not matter."""
    path = tmp_path / f"theirs{suffix}"
    row = THEIRS[case]
    if suffix == ".parquet":
        if case in ("trl, answers as text", "sharegpt, role and content"):
            return  # one column of two types, or without its columns' names: no table holds it
        import pyarrow
        from pyarrow.parquet import write_table

        write_table(pyarrow.Table.from_pylist([row, row]), path)
    elif suffix == ".json":
        path.write_text("\ufeff\n" + json.dumps([row, row], indent=2))
    else:
        path.write_bytes(b"\xef\xbb\xbf\r\n" + json.dumps(row).encode() + b"\r\n\r\n" + json.dumps(row).encode())
    first, second = read_any_pairs(path)
    assert (first.question, first.prompt, first.chosen, first.rejected) == ("where is the cup?", "where is the cup?", "left", "right")
    assert first.initial == "right"
    assert (first.system, first.history) == (None, ())
    assert Path(first.video) == tmp_path / "v.mp4"
    assert first.pair_id != second.pair_id
    assert first.meta.get("columns", {}).get("chosen_score") == (5 if "llava-hound" in case and "conv" not in case else None)


def test_earlier_turns_and_system_messages_are_kept(tmp_path: Path) -> None:
    later = user("and where is it?")
    said = [
        {"role": m["role"], "content": m["content"] if isinstance(m["content"], str) else m["content"][-1]["text"]}
        for m in [SYSTEM, *EARLIER, later]
    ]
    marked = [{**m, "content": "<video>" + m["content"]} if m["content"] == "how many cups?" else m for m in said]
    names = {"user": "human", "assistant": "gpt"}
    rows = [
        {**PLAIN, "prompt": [SYSTEM, *EARLIER, later]},
        {"chosen": [SYSTEM, *EARLIER, later, LEFT], "rejected": [SYSTEM, *EARLIER, later, RIGHT]},
        {**SWIFT, "messages": [*marked, {"role": "assistant", "content": "left"}]},
        {**SHAREGPT, "system": SYSTEM["content"], "conversations": [{"from": names[m["role"]], "value": m["content"]} for m in marked[1:]]},
        {**ALPACA, "instruction": "and where", "input": "is it?", "system": SYSTEM["content"], "history": [["how many cups?", "two"]]},
    ]
    for number, row in enumerate(rows):
        (path := tmp_path / f"{number}.json").write_text(json.dumps([row]))
        (pair,) = read_any_pairs(path)
        assert (pair.system, pair.history) == ("Answer in French.", (("how many cups?", "two"),))
        assert " ".join(pair.prompt.split()) == "and where is it?"


def test_llama_factorys_own_names(tmp_path: Path) -> None:
    """dataset_info.json names columns and tags; the entries of other files there stay when pairs are written."""
    entry = {
        "file_name": "dpo.json",
        "formatting": "sharegpt",
        "ranking": True,
        "columns": {"messages": "talk", "chosen": "good", "rejected": "bad", "videos": "clips", "system": "rules"},
        "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "U", "assistant_tag": "A"},
    }
    row = {
        "talk": [{"who": "U", "what": "<video>how many?"}, {"who": "A", "what": "two"}, {"who": "U", "what": "sure?"}],
        "good": {"who": "A", "what": "yes"},
        "bad": {"who": "A", "what": "no"},
        "clips": ["v.mp4"],
        "rules": "Be brief.",
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps({"ours": entry}))
    (tmp_path / "dpo.json").write_text(json.dumps([row]))
    (pair,) = read_any_pairs(tmp_path / "dpo.json")
    assert (pair.system, pair.history, pair.prompt, pair.chosen, pair.rejected) == (
        "Be brief.",
        (("how many?", "two"),),
        "sure?",
        "yes",
        "no",
    )
    assert write_any_pairs(tmp_path / "new.json", [pair], "llama-factory") == [tmp_path / "new.json", tmp_path / "dataset_info.json"]
    entries = json.loads((tmp_path / "dataset_info.json").read_text())
    assert entries["ours"] == entry
    assert entries["new"]["columns"]["messages"] == "conversations"
    with pytest.raises(ValueError, match="entry of another file"):
        write_any_pairs(tmp_path / "ours.json", [pair], "llama-factory")


def test_paths_are_as_the_tool_resolves_them(tmp_path: Path) -> None:
    pair = make(tmp_path)
    for name, one in FORMATS.items():
        written = write_any_pairs(tmp_path / name / "out.jsonl", [pair], name)[0].read_text()
        assert ("../videos/0.mp4" in written) == one.relative
        assert (f'"{tmp_path.as_posix()}/videos/0.mp4"' in written) != one.relative


def test_llava_hounds_videos_have_no_suffix(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "v_1.mkv").touch()
    (tmp_path / "dpo.jsonl").write_text(json.dumps({**HOUND, "video": "v_1"}))
    assert read_any_pairs(tmp_path / "dpo.jsonl", videos=tmp_path / "clips")[0].video == str(tmp_path / "clips" / "v_1.mkv")


def test_folders_that_datasets_made(tmp_path: Path) -> None:
    import datasets

    pairs = [make(tmp_path, number) for number in range(3)]
    write_any_pairs(tmp_path / "hub" / "data" / "train.parquet", pairs, "trl-flat")
    assert read_any_pairs(tmp_path / "hub") == pairs
    table = datasets.load_dataset(str(tmp_path / "hub"), split="train")
    table.save_to_disk(str(tmp_path / "saved"))
    assert read_any_pairs(tmp_path / "saved") == pairs
    for pair in pairs:
        Path(pair.video).parent.mkdir(exist_ok=True)
        Path(pair.video).write_bytes(b"clip")
    table.cast_column("videos", datasets.List(datasets.Video())).save_to_disk(str(tmp_path / "video"))
    with pytest.raises(ValueError, match="row 1: a video is embedded as bytes"):
        read_any_pairs(tmp_path / "video")
    datasets.DatasetDict({"a": table, "b": table}).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(ValueError, match="splits a, b, and none is 'train'"):
        read_any_pairs(tmp_path / "two")


def test_files_of_the_first_version_are_still_read(tmp_path: Path) -> None:
    """Their `savi` part is an object, not text."""
    pair = make(tmp_path)
    path = write_any_pairs(tmp_path / "out.jsonl", [pair], "trl")[0]
    row = json.loads(path.read_text())
    path.write_text(json.dumps({**row, "savi": json.loads(row["savi"])}))
    assert read_any_pairs(path) == [pair]
