"""LLaMA-Factory's ranking data: sharegpt (`conversations`, `chosen`, `rejected`) or alpaca (`instruction`), described by the
dataset_info.json beside the file, which may name columns and tags of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from savi.base.digests import parse_json
from savi.base.errors import FileFormatError
from savi.base.files import write_json_atomic
from savi.formats.conversation import OTHER_MEDIA, Conversation, Format, assemble, marked, media, others, refuse, savi_column

INFO_FILE = "dataset_info.json"
_REFUSED = {**OTHER_MEDIA, "tools": "tools", "kto_tag": "a single judged answer"}
_KNOWN = ("conversations", "instruction", "input", "history", "system", "chosen", "rejected", "videos", *_REFUSED)
_STANDARD = {"messages": "conversations", "prompt": "instruction", "query": "input"}
"""Names in dataset_info.json that are not those of the columns by default."""
_TAGS = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt", "system_tag": "system"}


def _holds(row: Mapping[str, Any]) -> bool:
    return {"chosen", "rejected"} <= row.keys() and ("conversations" in row or "instruction" in row) and "video" not in row


def _read(row: Mapping[str, Any], where: str) -> Conversation:
    refuse(row, _REFUSED, where)
    messages = row.get("conversations")
    if messages and (twice := [name for name in ("instruction", "input", "history") if row.get(name)]):
        raise FileFormatError(f"{where}: has both conversations and {twice[0]}; leave one out")
    if messages is None:
        asked = "\n".join(str(row[key]) for key in ("instruction", "input") if row.get(key))
        earlier = row.get("history") or ()
        if not all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in earlier):
            raise FileFormatError(f"{where}: history is not a list of [question, answer]")
        texts = [*(text for turn in earlier for text in turn), asked]
        messages = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]
    if not isinstance(messages, list):
        raise FileFormatError(f"{where}: conversations is not a list of messages")
    videos = media(row.get("videos"), where)
    read = assemble(messages, row.get("chosen"), row.get("rejected"), where, videos=videos, system=row.get("system"))
    return replace(read, savi=savi_column(row), columns=others(row, _KNOWN))


def _write(read: Conversation) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt"}
    turns = [{"from": names[role], "value": text} for role, text in marked(read, "LLaMA-Factory") if role != "system"]
    answers = {side: {"from": "gpt", "value": text} for side, text in (("chosen", read.chosen), ("rejected", read.rejected))}
    return {"conversations": turns, **answers, "system": read.system or "", "videos": [read.video], "savi": read.savi}


LLAMA_FACTORY = Format("llama-factory", "LLaMA-Factory: sharegpt ranking with dataset_info.json", _holds, _read, _write, relative=True)


def described(file: Path) -> dict[str, Any] | None:
    """What the dataset_info.json beside a file says of it, None where there is none or it does not name the file.

    Raises:
        FileFormatError: it is no JSON object.
    """
    entry = next((entry for entry in read_info(file.with_name(INFO_FILE)).values() if _is_of(entry, file)), None)
    return entry if entry is not None and entry.get("ranking") else None


def _is_of(entry: object, file: Path) -> bool:
    return isinstance(entry, dict) and entry.get("file_name") == file.name


def read_info(path: Path) -> dict[str, Any]:
    """The entries of a dataset_info.json; none where it is absent (or the card of a data set that `datasets` saved)."""
    try:
        found = parse_json(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise FileFormatError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise FileFormatError(f"{path}: not a JSON object")
    return found


def standard(row: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """A row under the names that columns and tags have by default."""
    names = {str(theirs): _STANDARD.get(ours, ours) for ours, theirs in (entry.get("columns") or {}).items() if theirs}
    renamed = {names.get(key, key): value for key, value in row.items()}
    tags = {**_TAGS, **(entry.get("tags") or {})}
    roles = {str(tags["user_tag"]): "user", str(tags["assistant_tag"]): "assistant", str(tags["system_tag"]): "system"}

    def message(value: object) -> object:
        if not isinstance(value, Mapping) or tags["role_tag"] not in value:
            return value
        rest = {key: text for key, text in value.items() if key not in (tags["role_tag"], tags["content_tag"])}
        role = str(value[tags["role_tag"]])
        return {**rest, "role": roles.get(role, role), "content": value.get(tags["content_tag"])}

    for key in ("chosen", "rejected"):
        if key in renamed:
            renamed[key] = message(renamed[key])
    if isinstance(renamed.get("conversations"), list):
        renamed["conversations"] = [message(one) for one in renamed["conversations"]]
    return renamed


def describe(file: Path) -> Path:
    """Name a written file in the dataset_info.json beside it, whose other entries stay.

    Raises:
        FileFormatError: that file is broken, or its entry of this name is of another file.
    """
    path = file.with_name(INFO_FILE)
    entries = read_info(path)
    found = entries.get(file.stem)
    if found is not None and not _is_of(found, file):
        raise FileFormatError(f"{path}: {file.stem!r} is the entry of another file; give --out another name")
    columns = {key: key for key in ("chosen", "rejected", "system", "videos")} | {"messages": "conversations"}
    entry = {"file_name": file.name, "formatting": "sharegpt", "ranking": True, "columns": columns}
    return write_json_atomic(path, {**entries, file.stem: entry})
