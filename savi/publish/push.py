"""`savi push`: a model folder, or a set of pairs, as one commit on the hub. Private unless told otherwise.

The token is the hub client's own: from the environment or its store, never from a command line, and never in a message. What a push would
send is known before anything is sent.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from savi.base.errors import UsageError
from savi.base.hub import HubError, is_hub_id, is_offline
from savi.base.stamp import CARD_FILE, files_below
from savi.cards.model_card import lineage, write_model_card
from savi.formats.table import FORMATS, SAVI, read_any_pairs, write_any_pairs
from savi.publish.pairs_card import pairs_card_path, write_pairs_card

PAIRS_FILE = "train.jsonl"
VIDEO_FOLDER = "videos"
_OF_THIS_MACHINE = ("conversion.json",)


@dataclass(frozen=True)
class Upload:
    """What is to be sent: the kind of repository, and the files by their names there."""

    kind: Literal["model", "dataset"]
    files: Mapping[str, Path]

    @property
    def sizes(self) -> dict[str, int]:
        return {name: path.stat().st_size for name, path in sorted(self.files.items())}


def plan_model(folder: Path, scratch: Path) -> Upload:
    """The files of a model folder with their card; one that has none is given one in `scratch`, the folder itself stays as it is.

    Raises:
        UsageError: no model is there.
    """
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise UsageError(f"{folder}: no config.json and *.safetensors in this folder; give a model folder, or a file of pairs")
    found = {path.relative_to(folder).as_posix(): path for path in files_below(folder) if path.name not in _OF_THIS_MACHINE}
    card = folder / CARD_FILE
    if not card.is_file():
        card = write_model_card(scratch, folder.resolve().name, lineage(folder), None)
    return Upload("model", {**found, CARD_FILE: card})


def plan_pairs(source: Path, scratch: Path, *, name: str = "trl", given: str | None = None, with_videos: bool = False) -> Upload:
    """Pairs in a format that `datasets` reads, with their card, written to `scratch`. Videos are named below videos/, and sent too where
    `with_videos` says so; no path of this machine is in what is sent.

    Raises:
        UsageError: no pairs there, or a video that is to be sent is missing.
        FileFormatError: they cannot be read.
    """
    pairs = read_any_pairs(source, name=given)
    if not pairs:
        raise UsageError(f"{source}: holds no pair")
    paths = {pair.video: Path(pair.video).absolute() for pair in pairs}
    root = Path(os.path.commonpath([path.parent for path in paths.values()]))
    names = {video: f"{VIDEO_FOLDER}/{path.relative_to(root).as_posix()}" for video, path in paths.items()}
    renamed = [replace(pair, video=str(scratch / names[pair.video])) for pair in pairs]
    file = write_any_pairs(scratch / PAIRS_FILE, renamed, name, relative=True)[0]
    card = _pairs_card(source, scratch, name) or write_pairs_card(scratch / CARD_FILE, renamed, file=PAIRS_FILE, note=_note(name))
    found = {PAIRS_FILE: file, CARD_FILE: card}
    if with_videos:
        if absent := next((path for path in paths.values() if not path.is_file()), None):
            raise UsageError(f"{absent}: no such video; leave out --with-videos, or give pairs whose videos are there")
        found |= {names[video]: path for video, path in paths.items()}
    return Upload("dataset", found)


def _note(name: str) -> str:
    return "" if name == SAVI else f"The rows are in the format of {FORMATS[name].tool}; the column `savi` holds the rest, as JSON."


def _pairs_card(source: Path, scratch: Path, name: str) -> Path | None:
    """The card beside the pairs, if they were made here, saying under which name the pairs are sent."""
    from huggingface_hub import DatasetCard

    path = pairs_card_path(source)
    if not path.is_file():
        return None
    card = DatasetCard.load(path, ignore_metadata_errors=True)
    card.data.configs = [{"config_name": "default", "data_files": PAIRS_FILE}]
    card.text = card.text.replace(f"savi train {source.name} ", "savi train OWNER/NAME ") + f"\n{_note(name)}\n"
    card.save(scratch / CARD_FILE)
    return scratch / CARD_FILE


def push(upload: Upload, repository: str, *, public: bool = False) -> str:
    """Send the files in one commit, and return its address. The repository is made where there is none.

    Raises:
        UsageError: the name is no hub id, or the repository is public and `public` does not say so.
        HubError: no token, no network, or the hub refused.
    """
    check_id(repository)
    if is_offline():
        raise HubError(f"{repository}: HF_HUB_OFFLINE is set: unset it to push")
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    token = get_token()
    if not token:
        raise HubError(f"{repository}: no token for the hub: run `hf auth login` once, or set HF_TOKEN")
    api = HfApi(token=token)
    try:
        api.create_repo(repository, repo_type=upload.kind, private=not public, exist_ok=True)
        if not public and not api.repo_info(repository, repo_type=upload.kind).private:
            raise UsageError(f"{repository}: is public on the hub; say --public to push there, or name another")
        files = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in sorted(upload.files.items())]
        message = f"Upload {upload.kind} with savi"
        return str(api.create_commit(repository, files, commit_message=message, repo_type=upload.kind).commit_url)
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001 - the client raises kinds of its own, and those of the library under it
        said = " ".join(str(error).split()).replace(token, "(token)")[:300]
        raise HubError(f"{repository}: the hub did not take it ({said}); run the same command again, what has arrived is kept") from None


def check_id(repository: str) -> None:
    """Raises UsageError where a name is no hub id."""
    if not is_hub_id(repository):
        raise UsageError(f"{repository}: not a hub id; write owner/name")
