"""Digests of files and values: what fingerprints are made of. The encodings are part of files on disk and must not change."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def sha256_bytes(data: bytes) -> str:
    """The hex SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    """The hex SHA-256 of a file's bytes, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: object) -> str:
    """A value's JSON on one line with sorted keys and no blanks: equal values, equal text, whatever the order of the keys.

    Raises:
        TypeError: a part of it has no JSON form.
        ValueError: a number in it is not finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def parse_json(text: str | bytes) -> Any:
    """`json.loads` for files of unknown origin.

    Raises:
        ValueError: it is no JSON, or nested too deep.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def sha256_json(value: object) -> str:
    """The hex SHA-256 of `canonical_json`, whose errors it raises."""
    return sha256_bytes(canonical_json(value).encode("utf-8", "backslashreplace"))
