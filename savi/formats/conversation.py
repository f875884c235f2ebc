"""One preference as the formats have it in common: messages around one video, and two answers.

What is read here is kept whole or refused by name: a part that was left out would train another preference. The module knows no format's
names for its columns.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from savi.base.digests import canonical_json, parse_json
from savi.base.errors import FileFormatError
from savi.loop.preferences import SCHEMA_VERSION, PreferencePair, make_pair_id, pair_from_row, pair_row

VIDEO_MARK = "<video>"
_OTHER_MARKS = ("<image>", "<audio>")
MARKS = (VIDEO_MARK, *_OTHER_MARKS)
OTHER_MEDIA = {"images": "pictures", "image": "a picture", "frames": "frames", "audios": "sound", "audio": "sound"}
EARLIER = {"system": "a system message", "history": "earlier turns"}
"""Columns that some formats have and others would pass over."""
_ONE = "savi trains on one video, shown at the start of the conversation"
_ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class Conversation:
    """`history`: (question, answer) of earlier turns. `savi`: what only this project's pairs have, as its JSON; None for a row made
    elsewhere. `columns`: other columns of such a row."""

    video: str
    question: str
    chosen: str
    rejected: str
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()
    savi: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def turns(self) -> list[tuple[str, str]]:
        """(role, text) of the prompt, the video not among them."""
        first = [("system", self.system)] if self.system is not None else []
        return [
            *first,
            *((role, text) for pair in self.history for role, text in zip(("user", "assistant"), pair, strict=True)),
            ("user", self.question),
        ]


@dataclass(frozen=True)
class Format:
    """A format of preference pairs: what makes a row one of it, and the way there and back. `relative`: its tool resolves a relative path
    from the file's own folder, so that is what is written; the others from the working directory, so paths are absolute."""

    name: str
    tool: str
    holds: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Mapping[str, Any], str], Conversation]
    write: Callable[[Conversation], dict[str, Any]]
    relative: bool = False


def conversation_of(pair: PreferencePair, folder: Path, *, relative: bool) -> Conversation:
    """A pair to be written into a file of `folder`."""
    row = pair_row(pair, folder)
    rest = {key: row[key] for key in ("schema_version", "pair_id", "question", "kind", "initial", "critique", "meta")}
    video = row["video"] if relative else Path(os.path.normpath(Path(pair.video).absolute())).as_posix()
    return Conversation(video, pair.prompt, pair.chosen, pair.rejected, pair.system, pair.history, canonical_json(rest))


def pair_of(read: Conversation, folder: str | Path, where: str, index: int) -> PreferencePair:
    """The pair of a row. One made elsewhere: its rejected answer is taken as the initial one, the critique is empty, the kind spatial, and
    its other columns are kept in `meta["columns"]`.

    Raises:
        FileFormatError: the `savi` column is broken, or was made for another prompt.
    """
    rest = _rest(read, where, index)
    answers = {"video": read.video, "chosen": read.chosen, "rejected": read.rejected}
    pair = pair_from_row({**rest, **answers, "system": read.system, "history": read.history}, folder, where)
    if pair.prompt != read.question:
        raise FileFormatError(f"{where}: the prompt is not the one in its 'savi' column; leave that column out to train on the prompt")
    return pair


def _rest(read: Conversation, where: str, index: int) -> Mapping[str, Any]:
    if read.savi is None:
        columns = json.loads(json.dumps(dict(read.columns), default=str), parse_constant=str)
        return {
            "schema_version": SCHEMA_VERSION,
            "pair_id": make_pair_id(read.video, "spatial", index, read.question),
            "question": read.question,
            "kind": "spatial",
            "initial": read.rejected,
            "critique": "",
            "meta": {"columns": columns} if columns else {},
        }
    try:
        rest = parse_json(read.savi)
    except ValueError:
        rest = None
    if not isinstance(rest, dict):
        raise FileFormatError(f"{where}: the column 'savi' does not hold what `savi export` writes; leave it out")
    return rest


def savi_column(row: Mapping[str, Any]) -> str | None:
    """What is in a row's `savi` column; files of the first version have an object there."""
    found = row.get("savi")
    return found if found is None or isinstance(found, str) else json.dumps(found)


def marked(read: Conversation, tool: str) -> list[tuple[str, str]]:
    """The turns with the video written as a mark in the first question, as tools want it that keep media in columns.

    Raises:
        FileFormatError: a text spells such a mark itself: the tool would count it as another video.
    """
    turns = read.turns
    for role, text in turns:
        if mark := next((mark for mark in MARKS if mark in text), None):
            raise FileFormatError(f"video {read.video}: the {role}'s text spells {mark}, which {tool} takes for media; use --format trl")
    at = next(number for number, (role, _) in enumerate(turns) if role == "user")
    asked = turns[at][1]
    turns[at] = ("user", VIDEO_MARK + ("\n" if asked.startswith("\n") else "") + asked)
    return turns


def refuse(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> None:
    """Refuse a row that has something in one of these columns.

    Raises:
        FileFormatError: names the column, and what it is.
    """
    for column, what in columns.items():
        if row.get(column):
            raise FileFormatError(f"{where}: column {column!r} holds {what}; {_ONE}")


def others(row: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """The columns that hold no part of the preference."""
    return {key: value for key, value in row.items() if key not in {*known, "savi"} and value is not None}


def media(value: object, where: str) -> list[str]:
    """The paths in a column of videos: names, or what `datasets` makes of a video.

    Raises:
        FileFormatError: frames, or bytes, in the place of a file's name.
    """
    entries = [] if value is None else value if isinstance(value, list | tuple) else [value]
    found = []
    for entry in entries:
        path = entry.get("path", entry.get("video")) if isinstance(entry, Mapping) else entry
        if isinstance(entry, Mapping) and entry.get("bytes") is not None:
            raise FileFormatError(f"{where}: a video is embedded as bytes; write it to a file and name that")
        if isinstance(path, list | tuple):
            raise FileFormatError(f"{where}: a video is a list of frames; name a video file")
        if not isinstance(path, str) or not path:
            raise FileFormatError(f"{where}: the video has no path")
        found.append(path)
    return found


@dataclass(frozen=True)
class _Said:
    """A message: its text, and the videos in it (None: one whose path stands elsewhere)."""

    role: str
    text: str
    videos: tuple[str | None, ...] = ()


def assemble(
    messages: Sequence[Any], chosen: object, rejected: object, where: str, *, videos: Sequence[str] = (), system: str | None = None
) -> Conversation:
    """A conversation out of a prompt's messages, the answers, and the paths in a column of videos.

    Raises:
        FileFormatError: the row holds what a pair has no place for (names it).
    """
    said = [_message(message, "the prompt", where) for message in messages]
    if said and said[0].role == "system":
        if system:
            raise FileFormatError(f"{where}: two system messages")
        if said[0].videos:
            raise FileFormatError(f"{where}: a video in the system message; {_ONE}")
        system, said = said[0].text, said[1:]
    expected = ["user", "assistant"] * (len(said) // 2) + ["user"]
    if [one.role for one in said] != expected:
        roles = ", ".join(one.role for one in said) or "nothing"
        raise FileFormatError(f"{where}: the prompt is {roles}; it must be user, assistant, ..., user")
    texts = [one.text for one in said]
    if empty := next((number for number, text in enumerate(texts, start=1) if not text.strip()), 0):
        raise FileFormatError(f"{where}: turn {empty} of the prompt has no text")
    video = _video(said, videos, where)
    history = tuple(zip(texts[:-1:2], texts[1:-1:2], strict=True))
    return Conversation(video, texts[-1], _answer(chosen, "chosen", where), _answer(rejected, "rejected", where), system or None, history)


def _video(said: Sequence[_Said], column: Sequence[str], where: str) -> str:
    written = [video for one in said for video in one.videos]
    paths = [video for video in written if video is not None]
    if paths and column and paths != list(column):
        raise FileFormatError(f"{where}: the videos in the messages are not those of the column of videos")
    found = paths or list(column)
    if len(found) != 1 or len(written) > 1:
        raise FileFormatError(f"{where}: {max(len(found), len(written))} videos in the prompt; {_ONE}")
    if written and not said[0].videos:
        raise FileFormatError(f"{where}: the video is not in the first question; {_ONE}")
    return found[0]


def _message(message: object, side: str, where: str) -> _Said:
    """A message in either spelling, role and content or from and value."""
    if not isinstance(message, Mapping):
        raise FileFormatError(f"{where}: {side} is not a list of messages")
    there = {key: value for key, value in message.items() if value is not None and value != []}
    role_key, text_key = ("from", "value") if "from" in there else ("role", "content")
    if more := sorted(set(there) - {role_key, text_key}):
        raise FileFormatError(f"{where}: a message of {side} has {', '.join(map(str, more))}, which is not trained on")
    role, content = str(there.get(role_key)), there.get(text_key)
    if isinstance(content, str):
        if mark := next((mark for mark in _OTHER_MARKS if mark in content), None):
            raise FileFormatError(f"{where}: {side} has {mark} in its text, the place of another medium; {_ONE}")
        before, *after = content.split(VIDEO_MARK)
        parts: list[Any] = [before.removesuffix("\n") if after else before]
        for text in after:
            parts += [{"type": "video"}, text.removeprefix("\n")]
    elif isinstance(content, list | tuple):
        parts = list(content)
    else:
        raise FileFormatError(f"{where}: the content of {side} is neither text nor a list of parts")
    return _joined(_ROLES.get(role, role), parts, side, where)


def _joined(role: str, parts: Sequence[Any], side: str, where: str) -> _Said:
    texts = ["", ""]
    videos: list[str | None] = []
    for part in parts:
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        there = {key: value for key, value in part.items() if value is not None} if isinstance(part, Mapping) else {}
        if there.get("type") == "text" and isinstance(there.get("text"), str) and len(there) == 2:
            texts[bool(videos)] += there["text"]
        elif there.get("type") == "video":
            videos.append(_path(there, where))
        else:
            raise FileFormatError(f"{where}: {side} has a part of type {there.get('type')!r} with {', '.join(sorted(there))}; {_ONE}")
    if texts[0].strip() and texts[1].strip():
        raise FileFormatError(f"{where}: text on both sides of the video; {_ONE}")
    return _Said(role, texts[1] if texts[1].strip() else texts[0], tuple(videos))


def _path(part: Mapping[str, Any], where: str) -> str | None:
    if more := sorted(set(part) - {"type", "path", "video"}):
        raise FileFormatError(f"{where}: the video has {', '.join(more)}, which is not kept; leave it out (frames: --num-frames)")
    if len(part) == 1:
        return None
    if len(found := media(part.get("path", part.get("video")), where)) != 1:
        raise FileFormatError(f"{where}: the video has {len(found)} paths")
    return found[0]


def _answer(value: object, side: str, where: str) -> str:
    """The text of an answer: a text, a message, or a list of one message."""
    if isinstance(value, str):
        return value
    messages = list(value) if isinstance(value, list | tuple) else [value]
    said = [_message(message, side, where) for message in messages]
    if [one.role for one in said] != ["assistant"]:
        roles = ", ".join(one.role for one in said) or "none"
        raise FileFormatError(f"{where}: {side} has {len(said)} turns ({roles}); it must be one answer of the assistant")
    if said[0].videos:
        raise FileFormatError(f"{where}: a video in {side}; {_ONE}")
    return said[0].text
