"""A model's name to a native checkpoint folder: `internvl_chat` checkpoints are converted once, into a cache, and found there afterwards.

The cache is `$SAVI_CACHE`, else `savi` in the user's cache folder. What cannot be used is refused before its weights are downloaded.
"""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock

from savi.base.digests import sha256_json
from savi.base.errors import SaviError
from savi.base.hub import Tell, find_checkpoint, is_internvl_chat
from savi.conversion.checkpoint import convert, inputs_of
from savi.conversion.config import read_config, read_json


class CacheError(SaviError):
    """The cache of converted checkpoints cannot be written; names the fix."""


def native_folder(model: str | Path, *, tell: Tell | None = None) -> Path:
    """The native checkpoint folder of a path or hub id, converted first where it is an `internvl_chat` checkpoint.

    Raises:
        NoSuchModelError, HubError: as `find_checkpoint`.
        UnsupportedFamily, CheckpointError: it cannot be used or converted; told before its weights are downloaded.
        CacheError: there is no place for the converted one.
    """
    folder = find_checkpoint(model, tell=tell, check=refuse_unsupported)
    return convert_once(folder, name=Path(str(model)).name, tell=tell) if is_internvl_chat(folder) else folder


def refuse_unsupported(folder: Path) -> None:
    """Look at config.json alone.

    Raises:
        UnsupportedFamily, CheckpointError: no model of it can be loaded or converted.
    """
    if is_internvl_chat(folder):
        read_config(folder)
        return
    from savi.families import family_class

    family_class(str(read_json(folder / "config.json").get("model_type")), where=str(folder))


def convert_once(folder: Path, *, name: str, tell: Tell | None = None) -> Path:
    """The native form of an `internvl_chat` folder, from the cache, or made there; processes of one launch wait for the first.

    Raises:
        CheckpointError: as `convert`.
        CacheError: the cache cannot be written.
    """
    read_config(folder)  # what is refused by its settings is told first
    target = cache_folder() / f"{name}-{sha256_json(inputs_of(folder))[:16]}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.once")):
            if tell is not None and not target.exists():
                tell(f"converting {name} once, into {target}")
            return convert(folder, target)
    except OSError as error:
        fix = "set SAVI_CACHE to a folder that can be, or run: python -m savi convert"
        raise CacheError(f"{target}: cannot be written ({error.strerror or error}); {fix}") from error


def cache_folder() -> Path:
    """Where converted checkpoints are kept."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("SAVI_CACHE") or user / "savi").expanduser() / "converted"
