"""A sentencepiece model file read as data: its pieces, scores and types, and the settings a fast tokenizer needs.

The file is a protocol buffer. The few fields needed are read here from the wire format, since the Python bindings that come with
sentencepiece refuse to load beside many protobuf versions. Field numbers: sentencepiece_model.proto (google/sentencepiece).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from savi.base.errors import ExitCode, SaviError


class PieceType(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    text: str
    score: float
    type: PieceType


@dataclass(frozen=True)
class SentencePieceModel:
    """`is_bpe`: trained by byte pair merging; `add_dummy_prefix`: a space is put before each text."""

    pieces: tuple[Piece, ...]
    is_bpe: bool
    add_dummy_prefix: bool


class SentencePieceError(SaviError, ValueError):
    """The file is not a sentencepiece model."""

    exit_code = ExitCode.BROKEN


def read_sentencepiece(path: str | Path) -> SentencePieceModel:
    """Read a `tokenizer.model`.

    Raises:
        SentencePieceError: it is none, or it was cut off.
        OSError: it cannot be read.
    """
    pieces: list[Piece] = []
    model_type, dummy_prefix = 1, True  # the defaults of the format: unigram, with a prefix
    seen: set[int] = set()
    try:
        for field, value in _fields(Path(path).read_bytes()):
            seen.add(field)
            if field == 1 and isinstance(value, bytes):
                pieces.append(_piece(value))
            elif field == 2 and isinstance(value, bytes):
                model_type = next((number for key, number in _fields(value) if key == 3 and isinstance(number, int)), model_type)
            elif field == 3 and isinstance(value, bytes):
                dummy_prefix = bool(next((flag for key, flag in _fields(value) if key == 3 and isinstance(flag, int)), dummy_prefix))
    except (IndexError, struct.error, ValueError) as error:
        raise SentencePieceError(f"{path}: not a sentencepiece model, or cut off ({error})") from error
    if not {1, 2, 3} <= seen:
        raise SentencePieceError(f"{path}: not a sentencepiece model, or cut off (pieces, trainer or normalizer settings are missing)")
    return SentencePieceModel(tuple(pieces), model_type == 2, dummy_prefix)


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, 1
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif field == 2 and isinstance(value, bytes):
            score = struct.unpack("<f", value)[0]
        elif field == 3 and isinstance(value, int):
            kind = value
    return Piece(text, score, PieceType(kind))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a message: varints as int, everything else as its bytes."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            number, position = _varint(data, position)
            yield field, number
            continue
        if wire == 2:
            length, position = _varint(data, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {position}")
        if position + length > len(data):
            raise ValueError(f"a field of {length} bytes at byte {position} of {len(data)}")
        yield field, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError(f"a number over 64 bits at byte {position}")
