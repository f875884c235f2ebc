"""One way to say "made from these inputs, so do not make it again": a small JSON file beside what was made.

A stamp names the inputs (settings, fingerprints of models, digests of files), and once the work is done every file that was made with its
size and digest. It is written before the work begins too, so that what lies there half done is known to belong to these inputs. Whoever
finds a finished stamp checks the inputs, and the files it lists, before relying on either.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from savi.base.digests import canonical_json, parse_json, sha256_file, sha256_json
from savi.base.files import write_text_atomic

SCHEMA = 1
CARD_FILE = "README.md"
"""A model's card, as the hub names it."""
Digest = Callable[[Path], str]


@dataclass(frozen=True)
class Stamp:
    """`made_from`: the inputs by name; `done`: the work is finished; `files`: {path below the root: [bytes, sha256]}; `facts`: what the
    work came to otherwise, in JSON."""

    made_from: Mapping[str, Any]
    done: bool = False
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, made_from: Mapping[str, Any], root: Path, paths: Iterable[Path], facts: Mapping[str, Any], digest: Digest = sha256_file
    ) -> Stamp:
        """The stamp of finished work, with the digests of its files (all below `root`)."""
        files = {path.relative_to(root).as_posix(): (path.stat().st_size, digest(path)) for path in sorted(paths)}
        return cls(made_from, done=True, files=files, facts=facts)

    @property
    def digest(self) -> str:
        """One hash over the files, their names and bytes: what reads them depends on it."""
        return sha256_json({name: list(entry) for name, entry in self.files.items()})

    def differing(self, made_from: Mapping[str, Any]) -> list[str]:
        """The names of the inputs that are not the same now."""
        names = dict.fromkeys([*self.made_from, *made_from])
        return [name for name in names if _plain(self.made_from.get(name)) != _plain(made_from.get(name))]

    def changed(self, root: Path, digest: Digest = sha256_file) -> list[str]:
        """The files that are gone, or no longer what was made."""
        return [name for name, (size, sha) in self.files.items() if not _is(root / name, size, sha, digest)]

    def write(self, path: Path) -> None:
        """Write the stamp atomically."""
        write_text_atomic(path, json.dumps({"stamp": SCHEMA, **asdict(self)}, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_stamp(path: Path) -> Stamp | None:
    """The stamp, or None where there is none that can be read: then nothing tells what the files beside it were made from."""
    try:
        raw = parse_json(path.read_text(encoding="utf-8"))
        if raw.pop("stamp") != SCHEMA:
            return None
        files = {str(name): (int(size), str(sha)) for name, (size, sha) in raw.pop("files").items()}
        found = Stamp(files=files, **raw)
        return found if isinstance(found.made_from, dict) and isinstance(found.facts, dict) and isinstance(found.done, bool) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _plain(value: object) -> str:
    """A value as JSON has it: tuples are lists there, numbers keep their kind."""
    return canonical_json(value)


def _is(path: Path, size: int, sha: str, digest: Digest) -> bool:
    return path.is_file() and path.stat().st_size == size and digest(path) == sha


def files_below(path: Path) -> list[Path]:
    """A file itself, or the files of a folder that count as made: hidden ones, locks, downloads on their way and cards, which describe the
    rest and may be written anew, do not."""
    if path.is_file():
        return [path]

    def counts(name: str) -> bool:
        return not name.startswith(".") and not name.endswith((".lock", ".partial")) and name != CARD_FILE

    return sorted(p for p in path.rglob("*") if p.is_file() and counts(p.name))
