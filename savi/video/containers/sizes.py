"""Sizes in words."""

from __future__ import annotations


def amount(size: int) -> str:
    """A number of bytes, as people write it."""
    return f"{size} bytes" if size < 10_000 else f"{size / 1000:.0f} kB" if size < 10_000_000 else f"{size / 1e6:.0f} MB"


def shorter(size: int, *, than: int) -> str | None:
    """That a file of `size` bytes was cut off, where it should have at least `than`."""
    return f"truncated at {amount(size)} of at least {amount(than)}" if than > size else None
