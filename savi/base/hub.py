"""A model's name, as a user gives it, to a folder on this machine.

A folder is taken as it is. Only a name that can be nothing but a hub id ("owner/name") is looked up on the Hugging Face hub, and only its
weights, tokenizer and configs are fetched: no code. The module must not load any model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from savi.conversion.checkpoint import is_internvl_chat

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "conversation.py"]
"""conversation.py is read as text by the conversion, never run."""


class NoSuchModelError(Exception):
    """The name is neither a folder nor a hub id, or its folder is no checkpoint; names the mend."""


class HubError(Exception):
    """The hub, or the way to it, did not give the checkpoint; names the mend."""


def find_checkpoint(model: str | Path, *, tell: Callable[[str], None] | None = None) -> Path:
    """The folder of a checkpoint, in any format: a path, or a hub id that is fetched as far as it is not in the hub's cache.

    `tell` is called with a sentence before anything is looked up on the network.

    Raises:
        NoSuchModelError: nothing of that name.
        HubError: the hub could not be reached, or refused.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise NoSuchModelError(f"{model}: no config.json in this folder; is it a checkpoint?")
        return folder
    name = str(model)
    if isinstance(model, Path) or folder.exists() or not _HUB_ID.fullmatch(name):
        hint = " The small model shipped with this project is the folder benchmarks/micro/base." if name == "micro" else ""
        raise NoSuchModelError(f"{name}: no such checkpoint folder, and not a hub id (owner/name).{hint}")
    return _fetch(name, tell)


def find_native(model: str | Path, *, tell: Callable[[str], None] | None = None) -> Path:
    """`find_checkpoint`, for a checkpoint that is to be run.

    Raises:
        NoSuchModelError: also where it is an `internvl_chat` checkpoint; names the command that converts it.
        HubError: as `find_checkpoint`.
    """
    folder = find_checkpoint(model, tell=tell)
    if is_internvl_chat(folder):
        name = Path(str(model)).name
        raise NoSuchModelError(
            f"{model}: an internvl_chat checkpoint, which runs only with code of its own; convert it once:\n"
            f"  python -m savi convert {model} models/{name}"
        )
    return folder


def _fetch(name: str, tell: Callable[[str], None] | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    if tell is not None and not offline:
        tell(f"looking up {name} on the Hugging Face hub; what its cache lacks is downloaded")
    try:
        return Path(snapshot_download(name, allow_patterns=_PATTERNS, local_files_only=offline))
    except GatedRepoError as error:
        raise HubError(f"{name}: access must be granted first: accept its terms on its hub page, then `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"{name}: the hub has no such model, or it is private (`hf auth login`); a folder would be given by its path"
        ) from error
    except LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set: unset it once to download" if offline else "the hub could not be reached: try again with a network"
        raise HubError(f"{name}: not in the hub's cache on this machine, and {why}, or give a checkpoint folder") from error
    except (HfHubHTTPError, OSError) as error:
        raise HubError(f"{name}: the download failed ({error}); run the same command again, what has arrived is kept") from error
