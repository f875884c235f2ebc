"""A preference pair, its file, and the formats it is exchanged in.

A pair says: to this question about this video, the model's revised answer (`chosen`) is preferred to its initial one (`rejected`). The
module knows no model; videos are only named.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from savi.base.digests import sha256_json
from savi.base.errors import FileFormatError
from savi.base.files import read_jsonl, write_jsonl_atomic
from savi.loop.prompts import Kind, prompt_set

SCHEMA_VERSION = 1

ExchangeFormat = Literal["conversational", "messages"]


@dataclass(frozen=True)
class PreferencePair:
    """One preference.

    `video` is a path (in files: relative to the file's folder). `initial` and `critique` are kept as the model wrote them; `rejected`
    equals `initial` and `chosen` the revision unless a control changed them (see `savi.iterate`). `meta` holds what belongs to the
    making (index of the question, the revision before a control) and must be JSON.
    """

    pair_id: str
    video: str
    question: str
    kind: Kind
    initial: str
    critique: str
    chosen: str
    rejected: str
    meta: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]  # read by TypeAdapter: unknown fields in a file are errors

    @property
    def prompt(self) -> str:
        """What the model was asked when it gave its initial answer, and is asked in training: the answer template of `meta["prompts"]`
        around the question, the question alone where no prompt set is named.

        Raises:
            ValueError: a prompt set of that name is not known.
        """
        name = self.meta.get("prompts")
        return self.question if name is None else prompt_set(str(name)).fill("answer", self.kind, question=self.question)


_ADAPTER = TypeAdapter(PreferencePair)


def make_pair_id(video: str, kind: str, index: int, question: str) -> str:
    """A pair's name: stable over runs and machines as long as the video's name and the question are."""
    return f"{Path(video).stem}-{kind}-{index}-{sha256_json([video, kind, index, question])[:8]}"


def pair_row(pair: PreferencePair, folder: str | Path) -> dict[str, Any]:
    """A pair as a file's row, its video relative to the folder of that file, so that a run's folder can be moved."""
    row = asdict(pair)
    row["video"] = Path(os.path.relpath(pair.video, folder)).as_posix()
    return row


def pair_from_row(row: Mapping[str, Any], folder: str | Path, where: str = "pair") -> PreferencePair:
    """The pair in a row; its video relative to `folder` becomes a path.

    Raises:
        FileFormatError: a field is missing, unknown or of another type, or the schema is of another version.
    """
    version = row.get("schema_version")
    if version != SCHEMA_VERSION:
        raise FileFormatError(f"{where}: schema_version {version!r}, this program reads {SCHEMA_VERSION}; make the pairs again")
    try:
        pair = _ADAPTER.validate_python(dict(row))
    except ValidationError as error:
        first = error.errors()[0]
        raise FileFormatError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return replace(pair, video=os.path.normpath(Path(folder) / pair.video))


def write_pairs(path: str | Path, pairs: Iterable[PreferencePair]) -> Path:
    """Write pairs as JSON Lines, at once (`propose` appends chunk by chunk instead)."""
    folder = Path(path).parent
    return write_jsonl_atomic(path, (pair_row(pair, folder) for pair in pairs))


def read_pairs(path: str | Path) -> list[PreferencePair]:
    """Read a pairs file.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: a line is no pair of this schema (names file, line and field).
    """
    folder = Path(path).parent
    return [pair_from_row(row, folder, f"{path}:{number}") for number, row in enumerate(read_jsonl(path), start=1)]


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
    """A pair out of either exchange format. Without a `savi` part (a file made elsewhere) the rejected answer stands for the initial one,
    the critique is empty and the kind is spatial.

    Raises:
        FileFormatError: the row is in neither format, or lacks its video or a text.
    """
    try:
        if "prompt" in row:
            user, chosen, rejected = row["prompt"][-1], row["chosen"][-1], row["rejected"][-1]
        else:
            if row["chosen"][0] != row["rejected"][0]:
                raise FileFormatError(f"{where}: chosen and rejected do not answer the same prompt")
            user, chosen, rejected = row["chosen"][0], row["chosen"][-1], row["rejected"][-1]
        video = next(part["path"] for part in user["content"] if part["type"] == "video")
        asked = _text(user)
        rest = row.get("savi") or {
            "schema_version": SCHEMA_VERSION,
            "pair_id": make_pair_id(video, "spatial", index, asked),
            "question": asked,
            "kind": "spatial",
            "initial": _text(rejected),
            "critique": "",
            "meta": {},
        }
        fields = {**rest, "video": video, "chosen": _text(chosen), "rejected": _text(rejected)}
    except (KeyError, IndexError, TypeError, StopIteration) as error:
        raise FileFormatError(f"{where}: neither of TRL's preference formats with one video and text ({error!r})") from error
    return pair_from_row(fields, folder, where)


def _text(message: Mapping[str, Any]) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def export_pairs(path: str | Path, pairs: Iterable[PreferencePair], style: ExchangeFormat = "conversational") -> Path:
    """Write pairs as JSON Lines in an exchange format."""
    folder = Path(path).parent
    return write_jsonl_atomic(path, (to_exchange(pair, style, folder) for pair in pairs))


def import_pairs(path: str | Path) -> list[PreferencePair]:
    """Read pairs from JSON Lines in either exchange format.

    Raises:
        FileNotFoundError, FileFormatError: as `read_pairs`.
    """
    folder = Path(path).parent
    return [from_exchange(row, folder, f"{path}:{number}", number) for number, row in enumerate(read_jsonl(path), start=1)]
