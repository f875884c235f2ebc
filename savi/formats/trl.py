"""TRL's preference formats: messages with an explicit prompt, whole conversations, and plain texts with columns of media."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from savi.base.errors import FileFormatError
from savi.formats.conversation import EARLIER, MARKS, OTHER_MEDIA, Conversation, Format, assemble, media, others, refuse, savi_column

_REFUSED = {**OTHER_MEDIA, **EARLIER, "tools": "tools", "chat_template_kwargs": "template options"}
_OTHER_PROMPTS = ("conversations", "messages", "instruction", "rejected_response")


def _holds(row: Mapping[str, Any]) -> bool:
    asked = "prompt" in row or not any(column in row for column in _OTHER_PROMPTS)
    return {"chosen", "rejected"} <= row.keys() and asked and ("video" not in row or "videos" in row)


def _read(row: Mapping[str, Any], where: str) -> Conversation:
    refuse(row, _REFUSED, where)
    chosen, rejected, prompt = row.get("chosen"), row.get("rejected"), row.get("prompt")
    if prompt is None:
        if not isinstance(chosen, list) or not isinstance(rejected, list):
            raise FileFormatError(f"{where}: no prompt: neither a column, nor lists of messages in chosen and rejected")
        if chosen[:-1] != rejected[:-1]:
            raise FileFormatError(f"{where}: chosen and rejected do not answer the same prompt")
        prompt, chosen, rejected = chosen[:-1], chosen[-1:], rejected[-1:]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(messages, list):
        raise FileFormatError(f"{where}: the prompt is neither text nor a list of messages")
    read = assemble(messages, chosen, rejected, where, videos=media(row.get("videos"), where))
    return replace(read, savi=savi_column(row), columns=others(row, ("prompt", "chosen", "rejected", "videos", *_REFUSED)))


def _message(role: str, text: str, *before: dict[str, str]) -> dict[str, Any]:
    return {"role": role, "content": [*before, {"type": "text", "text": text}]}


def _messages(read: Conversation) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    prompt = [_message(role, text) for role, text in read.turns]
    first = next(message for message in prompt if message["role"] == "user")
    first["content"].insert(0, {"type": "video", "path": read.video})
    return prompt, [_message("assistant", read.chosen)], [_message("assistant", read.rejected)]


def _explicit(read: Conversation) -> dict[str, Any]:
    prompt, chosen, rejected = _messages(read)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "savi": read.savi}


def _implicit(read: Conversation) -> dict[str, Any]:
    prompt, chosen, rejected = _messages(read)
    return {"chosen": prompt + chosen, "rejected": prompt + rejected, "savi": read.savi}


def _flat(read: Conversation) -> dict[str, Any]:
    if read.system is not None or read.history or any(mark in read.question for mark in MARKS):
        raise FileFormatError(f"video {read.video}: plain texts hold one question, without {', '.join(MARKS)} in it; use --format trl")
    row = {"prompt": read.question, "chosen": read.chosen, "rejected": read.rejected, "videos": [read.video]}
    return {**row, "savi": read.savi}


CONVERSATIONAL = Format("trl", "TRL: prompt, chosen, rejected as messages", _holds, _read, _explicit)
IMPLICIT = Format("trl-implicit", "TRL: whole conversations in chosen and rejected", lambda row: False, _read, _implicit)
FLAT = Format("trl-flat", "TRL: prompt, chosen, rejected as texts, and videos", lambda row: False, _read, _flat)
