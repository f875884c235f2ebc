"""lmms-eval's task files read by libyaml: it reads some of them for every task of every evaluation, in seconds by the parser in Python.

The values are the same: only scanner and parser are other ones, the constructors (lmms-eval adds `!function`) are PyYAML's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml


@contextmanager
def fast_yaml() -> Iterator[None]:
    """`yaml.full_load` and `yaml.safe_load` by libyaml, where PyYAML was built with it."""
    if not yaml.__with_libyaml__:
        yield
        return
    held = {name: getattr(yaml, name) for name in ("full_load", "safe_load")}
    try:
        yaml.full_load = _by_libyaml(yaml.FullLoader, yaml.CFullLoader)
        yaml.safe_load = _by_libyaml(yaml.SafeLoader, yaml.CSafeLoader)
        yield
    finally:
        for name, function in held.items():
            setattr(yaml, name, function)


def _by_libyaml(slow: Any, fast: Any) -> Any:
    """A load function with `fast`'s parser and `slow`'s constructors, as they are when it is called."""

    class Loader(fast):  # type: ignore[misc]
        def __init__(self, stream: Any) -> None:
            super().__init__(stream)
            self.name = getattr(stream, "name", "<unicode string>")  # lmms-eval looks for a file's functions beside it
            self.yaml_constructors = slow.yaml_constructors
            self.yaml_multi_constructors = slow.yaml_multi_constructors

    def load(stream: Any) -> Any:
        return yaml.load(stream, Loader)  # noqa: S506 (a subclass of the loader that would be taken)

    return load
