"""A table of strings, each stored once and named by its number."""

from __future__ import annotations


class Strings:
    """Call it with a text to get the text's number; `items` is the table."""

    def __init__(self) -> None:
        self.items: list[str] = []
        self._where: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        i = self._where.get(text)
        if i is None:
            i = self._where[text] = len(self.items)
            self.items.append(text)
        return i
