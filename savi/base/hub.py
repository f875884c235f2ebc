"""A model's name, as a user gives it, to a folder on this machine.

A folder is taken as it is; a shipped model's name (`micro`) is its folder. Only a name that can be nothing but a hub id ("owner/name") is
looked up on the Hugging Face hub, and only its weights, tokenizer and configs are fetched: no code. The module must not load any model.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from savi.base.digests import parse_json
from savi.base.errors import ExitCode, FileFormatError, SaviError, UsageError
from savi.base.shipped import SHIPPED, named_folder

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "conversation.py", "README.md"]
"""conversation.py is read as text by the conversion, never run; README.md says the licence."""
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_ON = ("1", "ON", "YES", "TRUE")

Tell = Callable[[str], None]


class NoSuchModelError(UsageError):
    """The name is neither a folder nor a hub id, or its folder is no checkpoint; names the fix."""


class HubError(SaviError):
    """The hub, or the way to it, did not give the checkpoint; names the fix."""


def is_internvl_chat(path: str | Path) -> bool:
    """Whether a folder holds an `internvl_chat` checkpoint (InternVL 2.5 as published), by its config.json.

    Raises:
        FileFormatError: config.json is no JSON object.
    """
    config = Path(path) / "config.json"
    if not config.is_file():
        return False
    try:
        found = parse_json(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileFormatError(f"{config}: not JSON ({error}); download it again") from error
    if not isinstance(found, dict):
        raise FileFormatError(f"{config}: not a JSON object; download it again")
    return found.get("model_type") == "internvl_chat"


def find_checkpoint(
    model: str | Path,
    *,
    tell: Tell | None = None,
    offline: bool | None = None,
    check: Callable[[Path], None] | None = None,
    also: Sequence[str] = (),
) -> Path:
    """The folder of a checkpoint, in any format: a path, a shipped model's name, or a hub id, fetched as far as the hub's cache lacks it.

    `tell` is called with a sentence before anything is looked up on the network. `offline`: whether that is forbidden; by default as
    HF_HUB_OFFLINE says. False fetches even in a process that is offline for everything else. `check` is called with a folder that holds
    config.json before anything else is downloaded, and may refuse it. `also`: patterns of files that are wanted besides.

    Raises:
        NoSuchModelError: nothing of that name.
        HubError: the hub could not be reached, or refused.
    """
    folder = named_folder(model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise NoSuchModelError(f"{model}: no config.json in this folder; is it a checkpoint?")
        return folder
    name = str(model)
    if isinstance(model, Path) or folder.exists() or not _HUB_ID.fullmatch(name):
        if name in SHIPPED and not isinstance(model, Path):
            raise NoSuchModelError(f"{name}: the shipped model's files are not installed; install the project again, or give a folder")
        shipped = ", ".join(SHIPPED)
        raise NoSuchModelError(f"{name}: no such checkpoint folder, not a hub id (owner/name), not a shipped model ({shipped})")
    offline_here = is_offline()
    asked, offline = offline, offline_here if offline is None else offline
    if tell is not None and not offline:
        tell(f"looking up {name} on the Hugging Face hub; what its cache lacks is downloaded")
    why = "HF_HUB_OFFLINE is set: unset it once to download" if asked is None else "--offline forbids fetching it: fetch it once"

    def fetch(patterns: list[str]) -> Path:
        return _fetch_in_child(name, patterns) if offline_here and not offline else _fetch(name, patterns, forbidden=why if offline else "")

    if check is not None:
        check(fetch(["config.json"]))
    return fetch([*_PATTERNS, *also])


def is_offline() -> bool:
    """Whether the environment forbids the hub's client the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in _ON


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a hub id, owner/name."""
    return _HUB_ID.fullmatch(name) is not None


def fetch_dataset(name: str, patterns: list[str], *, tell: Tell | None = None) -> Path:
    """The folder of a data set of the hub, with the files that match, fetched as far as they are not in the hub's cache.

    Raises:
        HubError: the hub could not be reached, or refused.
    """
    offline = is_offline()
    if tell is not None and not offline:
        tell(f"looking up the data set {name} on the Hugging Face hub; what its cache lacks is downloaded")
    return _fetch(name, patterns, forbidden="HF_HUB_OFFLINE is set: unset it once to download" if offline else "", kind="dataset")


def _fetch(name: str, patterns: list[str], *, forbidden: str = "", kind: str = "model") -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, repo_type=kind, allow_patterns=patterns, local_files_only=bool(forbidden)))
    except GatedRepoError as error:
        raise HubError(f"{name}: access must be granted first: accept its terms on its hub page, then `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"{name}: the hub has no such {kind}, or it is private (`hf auth login`); a folder would be given by its path"
        ) from error
    except LocalEntryNotFoundError as error:
        why = forbidden or "the hub could not be reached: try again with a network"
        raise HubError(f"{name}: not in the hub's cache on this machine, and {why}, or give a folder") from error
    except (HfHubHTTPError, OSError) as error:
        raise HubError(f"{name}: the download failed ({error}); run the same command again, what has arrived is kept") from error


def _fetch_in_child(name: str, patterns: list[str]) -> Path:
    """Fetch in a process of its own: huggingface_hub reads its offline switch once, when it is imported."""
    env = {key: value for key, value in os.environ.items() if key not in _OFFLINE}
    done = subprocess.run(
        [sys.executable, "-m", "savi.base.hub", name, *patterns], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise HubError(f"{name}: could not be fetched (see above); run `hf download {name}`, then the same command again")
    return Path(done.stdout.strip())


def _main(name: str, *patterns: str) -> int:
    try:
        sys.stdout.write(f"{_fetch(name, list(patterns))}\n")
    except HubError as error:
        sys.stderr.write(f"error: {error}\n")
        return int(ExitCode.MACHINE)
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
