"""Preference pairs in the formats of other trainers: TRL's two, written and read.

A pair of this project has one video, one question and one answer a side. A row that says more (earlier turns, a system message, a second
video, a picture, tools) is refused by name: left out, it would train the wrong preference. The module knows no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from savi.base.errors import FileFormatError
from savi.base.files import read_jsonl, write_jsonl_atomic
from savi.loop.preferences import SCHEMA_VERSION, PreferencePair, make_pair_id, pair_from_row, pair_row

ExchangeFormat = Literal["conversational", "messages"]

_ONE = "savi trains on one video, one question and one answer"
_COLUMNS = frozenset({"prompt", "chosen", "rejected", "savi"})
_OTHER_FORMATS = {
    "rejected_response": "ms-swift's format",
    "conversations": "the sharegpt format",
    "messages": "a format of messages",
    "videos": "a column of videos beside the text",
    "images": "a column of images",
    "audios": "a column of audio",
    "tools": "a column of tools",
    "system": "a column of system messages",
    "history": "a column of earlier turns",
}
"""Columns that hold a part of the preference in a form that is not read here."""


def _user(video: str, question: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "video", "path": video}, {"type": "text", "text": question}]}


def _assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def to_exchange(pair: PreferencePair, style: ExchangeFormat, folder: str | Path) -> dict[str, Any]:
    """A pair in a format other trainers read.

    "conversational": TRL's preference type with an explicit prompt (`prompt`, `chosen`, `rejected`: lists of messages).
    "messages": TRL's implicit prompt, whole conversations in `chosen` and `rejected`.
    What these have no place for (kind, initial answer, critique, meta) is kept under `savi`, so that the way back loses nothing.
    """
    row = pair_row(pair, folder)
    prompt, chosen, rejected = _user(row["video"], pair.prompt), _assistant(pair.chosen), _assistant(pair.rejected)
    rest = {key: row[key] for key in ("schema_version", "pair_id", "question", "kind", "initial", "critique", "meta")}
    if style == "conversational":
        return {"prompt": [prompt], "chosen": [chosen], "rejected": [rejected], "savi": rest}
    return {"chosen": [prompt, chosen], "rejected": [prompt, rejected], "savi": rest}


def from_exchange(row: Mapping[str, Any], folder: str | Path, where: str = "row", index: int = 0) -> PreferencePair:
    """A pair out of either format of TRL's. Without a `savi` part (a file made elsewhere) the rejected answer is taken as the initial one,
    the critique is empty and the kind is spatial; other columns (a score, a source) are kept in `meta["columns"]`.

    Raises:
        FileFormatError: the row is in neither format, or holds what a pair has no place for (names it).
    """
    for column, what in _OTHER_FORMATS.items():
        if row.get(column):
            raise FileFormatError(
                f"{where}: {column!r} is {what}, which is not read; use TRL's conversational format, with the video in it"
            )
    user, answers = _sides(row, where)
    video, asked = _question(user, where)
    chosen, rejected = (_answer(message, side, where) for side, message in answers.items())
    columns = {key: value for key, value in row.items() if key not in _COLUMNS and key not in _OTHER_FORMATS}
    rest = row.get("savi") or {
        "schema_version": SCHEMA_VERSION,
        "pair_id": make_pair_id(video, "spatial", index, asked),
        "question": asked,
        "kind": "spatial",
        "initial": rejected,
        "critique": "",
        "meta": {"columns": columns} if columns else {},
    }
    if not isinstance(rest, Mapping):
        raise FileFormatError(f"{where}: 'savi' is not an object; delete it")
    pair = pair_from_row({**rest, "video": video, "chosen": chosen, "rejected": rejected}, folder, where)
    if pair.prompt != asked:
        raise FileFormatError(f"{where}: the prompt is not the one its 'savi' part was made with; delete that part to train on the prompt")
    return pair


def _sides(row: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], dict[str, Mapping[str, Any]]]:
    """The question's message, and the answer's of each side."""
    chosen, rejected = (_messages(row.get(side), side, where) for side in ("chosen", "rejected"))
    if "prompt" in row:
        prompt = _messages(row["prompt"], "prompt", where)
    else:
        prompt, other = chosen[:-1], rejected[:-1]
        if prompt != other:
            raise FileFormatError(f"{where}: chosen and rejected do not answer the same prompt")
        chosen, rejected = chosen[-1:], rejected[-1:]
    for message in prompt:
        if message.get("role") != "user":
            what = "turns before the question" if message.get("role") == "assistant" else f"a message of role {message.get('role')!r}"
            raise FileFormatError(f"{where}: holds {what}; {_ONE}")
    if len(prompt) != 1:
        raise FileFormatError(f"{where}: {len(prompt)} turns before the answer; {_ONE}")
    for side, messages in (("chosen", chosen), ("rejected", rejected)):
        if len(messages) != 1 or messages[0].get("role") != "assistant":
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise FileFormatError(f"{where}: {side} has {len(messages)} turns ({roles or 'none'}); {_ONE}")
    return prompt[0], {"chosen": chosen[0], "rejected": rejected[0]}


def _messages(value: object, side: str, where: str) -> list[Mapping[str, Any]]:
    """A list of messages, each with a role and a content alone."""
    if not isinstance(value, list) or not all(isinstance(message, Mapping) for message in value):
        raise FileFormatError(f"{where}: {side} is not a list of messages; use TRL's conversational format, with the video in it")
    for message in value:
        if more := sorted(set(message) - {"role", "content"}):
            raise FileFormatError(f"{where}: a message of {side} has {', '.join(more)}; {_ONE}")
    return value


def _parts(message: Mapping[str, Any], side: str, where: str) -> list[Mapping[str, Any]]:
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        raise FileFormatError(f"{where}: the content of {side} is neither text nor a list of parts")
    return content


def _text(part: Mapping[str, Any], side: str, where: str) -> str:
    if part.get("type") != "text" or not isinstance(part.get("text"), str) or len(part) != 2:
        raise FileFormatError(f"{where}: {side} has a part of type {part.get('type')!r} with {', '.join(sorted(part))}; {_ONE}")
    return str(part["text"])


def _question(message: Mapping[str, Any], where: str) -> tuple[str, str]:
    """Path of the video and text of the question. Text before the video or after it, not both: the video is shown first."""
    parts = _parts(message, "prompt", where)
    places = [i for i, part in enumerate(parts) if part.get("type") == "video"]
    if len(places) != 1:
        raise FileFormatError(f"{where}: {len(places)} videos in the prompt; {_ONE}")
    part = parts[places[0]]
    path = part.get("path", part.get("video"))
    if more := sorted(set(part) - {"type", "path" if "path" in part else "video"}):
        raise FileFormatError(f"{where}: the video has {', '.join(more)}, which is not kept; delete it (frames: --num-frames)")
    if not isinstance(path, str) or not path:
        raise FileFormatError(f"{where}: the video has no path")
    before, after = ("".join(_text(one, "prompt", where) for one in some) for some in (parts[: places[0]], parts[places[0] + 1 :]))
    if before.strip() and after.strip():
        raise FileFormatError(f"{where}: text on both sides of the video; {_ONE}, the video first")
    asked = after if after.strip() else before
    if not asked.strip():
        raise FileFormatError(f"{where}: a video without a question")
    return path, asked


def _answer(message: Mapping[str, Any], side: str, where: str) -> str:
    return "".join(_text(part, side, where) for part in _parts(message, side, where))


def export_pairs(path: str | Path, pairs: Iterable[PreferencePair], style: ExchangeFormat = "conversational") -> Path:
    """Write pairs as JSON Lines in an exchange format."""
    folder = Path(path).parent
    return write_jsonl_atomic(path, (to_exchange(pair, style, folder) for pair in pairs))


def import_pairs(path: str | Path) -> list[PreferencePair]:
    """Read pairs from JSON Lines in either exchange format.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: a line is not a pair, or is more than one (names file and line).
    """
    folder = Path(path).parent
    return [from_exchange(row, folder, f"{path}:{number}", number) for number, row in enumerate(read_jsonl(path), start=1)]
