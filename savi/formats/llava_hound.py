"""LLaVA-Hound's DPO file (sft_dpo_17k.jsonl): `video`, `prompt`, `chosen`, `rejected`, one question a row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from savi.base.errors import FileFormatError
from savi.formats.conversation import EARLIER, MARKS, OTHER_MEDIA, Conversation, Format, assemble, media, others, refuse, savi_column

_REFUSED = {**OTHER_MEDIA, **EARLIER}
_KNOWN = ("video", "prompt", "conversations", "chosen", "rejected", *_REFUSED)


def _holds(row: Mapping[str, Any]) -> bool:
    return {"video", "chosen", "rejected"} <= row.keys() and ("prompt" in row or "conversations" in row)


def _read(row: Mapping[str, Any], where: str) -> Conversation:
    refuse(row, _REFUSED, where)
    prompt, turns = row.get("prompt"), row.get("conversations")
    if isinstance(prompt, str) and turns:
        raise FileFormatError(f"{where}: has both prompt and conversations; leave one out")
    if isinstance(prompt, str):
        messages: Any = [{"role": "user", "content": prompt}]
    elif isinstance(turns, list):
        messages = turns[:1] if len(turns) == 2 else turns  # some copies repeat the chosen answer as the second turn
        if len(turns) == 2 and row.get("chosen") not in (turns[1], turns[1].get("value") if isinstance(turns[1], Mapping) else None):
            raise FileFormatError(f"{where}: conversations end in another answer than chosen")
    else:
        raise FileFormatError(f"{where}: the prompt is not text")
    read = assemble(messages, row.get("chosen"), row.get("rejected"), where, videos=media(row.get("video"), where))
    return replace(read, savi=savi_column(row), columns=others(row, _KNOWN))


def _write(read: Conversation) -> dict[str, Any]:
    if read.system is not None or read.history or any(mark in read.question for mark in MARKS):
        marks = ", ".join(MARKS)
        raise FileFormatError(f"video {read.video}: LLaVA-Hound's format holds one question, without {marks} in it; use --format trl")
    answers = {"prompt": read.question, "chosen": read.chosen, "rejected": read.rejected}
    return {"id": _id(read), "video": read.video, **answers, "savi": read.savi}


def _id(read: Conversation) -> str:
    return str(json.loads(read.savi or "{}").get("pair_id", ""))


LLAVA_HOUND = Format("llava-hound", "LLaVA-Hound: video, prompt, chosen, rejected", _holds, _read, _write, relative=True)
