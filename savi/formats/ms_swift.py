"""ms-swift's standard format: `messages` that end in the chosen answer, `rejected_response` or `rejected_messages`, and `videos`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from savi.base.errors import FileFormatError
from savi.formats.conversation import EARLIER, OTHER_MEDIA, Conversation, Format, assemble, marked, media, others, refuse, savi_column

_REFUSED = {
    **OTHER_MEDIA,
    "history": EARLIER["history"],
    "tools": "tools",
    "objects": "places in pictures",
    "rejected_images": "pictures",
    "rejected_audios": "sound",
    "rejected_tools": "tools",
}
_KNOWN = ("messages", "rejected_response", "rejected_messages", "videos", "rejected_videos", "system", *_REFUSED)


def _holds(row: Mapping[str, Any]) -> bool:
    return "messages" in row and ("rejected_response" in row or "rejected_messages" in row)


def _read(row: Mapping[str, Any], where: str) -> Conversation:
    refuse(row, _REFUSED, where)
    messages, rejected, whole = row.get("messages"), row.get("rejected_response"), row.get("rejected_messages")
    if not isinstance(messages, list) or not messages:
        raise FileFormatError(f"{where}: messages is not a list of messages")
    if whole is not None:
        if rejected is not None:
            raise FileFormatError(f"{where}: has both rejected_response and rejected_messages")
        if not isinstance(whole, list) or whole[:-1] != messages[:-1]:
            raise FileFormatError(f"{where}: messages and rejected_messages do not answer the same prompt")
        rejected = whole[-1:]
    videos, again = media(row.get("videos"), where), media(row.get("rejected_videos"), where)
    if again and again != videos:
        raise FileFormatError(f"{where}: rejected_videos are other videos")
    read = assemble(messages[:-1], messages[-1:], rejected, where, videos=videos, system=row.get("system"))
    return replace(read, savi=savi_column(row), columns=others(row, _KNOWN))


def _write(read: Conversation) -> dict[str, Any]:
    turns = [{"role": role, "content": text} for role, text in marked(read, "ms-swift")]
    messages = [*turns, {"role": "assistant", "content": read.chosen}]
    return {"messages": messages, "rejected_response": read.rejected, "videos": [read.video], "savi": read.savi}


MS_SWIFT = Format("ms-swift", "ms-swift: messages, rejected_response, videos", _holds, _read, _write)
