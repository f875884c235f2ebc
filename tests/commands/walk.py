"""All commands of the four packages with their options, as typer knows them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import typer

PACKAGES = ("savi", "benchmarks", "harness", "reproduce")


@dataclass(frozen=True)
class Option:
    """One option of one command."""

    command: str
    names: tuple[str, ...]
    hidden: bool
    kind: str
    """flag, value or repeated."""
    help: str
    metavar: str


def commands() -> dict[str, Any]:
    """The commands by name, "harness gate"."""
    found = {}
    for package in PACKAGES:
        group: Any = typer.main.get_command(importlib.import_module(f"{package}.__main__").app)
        found |= {f"{package} {name}": command for name, command in group.commands.items()}
    return found


def options() -> list[Option]:
    """Every option of every command but --help, hidden ones too."""
    found = []
    for name, command in commands().items():
        for one in command.params:
            if one.param_type_name != "option" or one.name == "help":
                continue
            kind = "flag" if one.is_flag else "repeated" if one.multiple else "value"
            names = (*sorted(one.opts, reverse=True, key=len), *one.secondary_opts)
            found.append(Option(name, names, one.hidden, kind, one.help or "", one.metavar or ""))
    return found
