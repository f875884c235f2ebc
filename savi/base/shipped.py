"""The models that come with the project, by name. Their files lie in another package's folder; they are found there as data, by importlib's
resources, so that a name works from any folder and from an installed wheel. No code of that package is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path


@dataclass(frozen=True)
class Shipped:
    """Where a model's folder is, a question that it can read, and the same with an answer that it is to criticise."""

    package: str
    folder: str
    question: str
    criticise: str = ""


_FIRST = "which object comes first ? A white B blue C red D green"
SHIPPED = {"micro": Shipped("benchmarks.micro", "base", _FIRST, f"{_FIRST} answer A critique")}


def shipped_folder(name: str) -> Path | None:
    """The folder of a shipped model; None where the name is no such model's, or its files are not installed."""
    if name not in SHIPPED:
        return None
    try:
        found = Path(str(files(SHIPPED[name].package) / SHIPPED[name].folder))
    except ModuleNotFoundError:
        return None
    return found if (found / "config.json").is_file() else None


def named_folder(model: str | Path) -> Path:
    """A path as it is, a shipped model's name as its folder. A checkpoint folder of the same name goes first; a `Path` is never a name."""
    folder = Path(model).expanduser()
    if isinstance(model, Path) or (folder / "config.json").is_file():
        return folder
    return shipped_folder(model) or folder
