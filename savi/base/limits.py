"""How much time, memory and picture a video may take before it is given up: one value, set by flags or by the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields

VARIABLES = {"timeout_s": "SAVI_DECODE_TIMEOUT", "memory_mb": "SAVI_DECODE_MEMORY", "max_pixels": "SAVI_MAX_PIXELS"}
"""Where each limit is kept, for this process and those it starts."""


@dataclass(frozen=True)
class Limits:
    """Of one video. `timeout_s`: seconds of wall time; `memory_mb`: MiB of memory of the worker process, frames included (0: none);
    `max_pixels`: width x height of a picture."""

    timeout_s: int = 600
    memory_mb: int = 8192
    max_pixels: int = 36_000_000
    """8K is 7,680 x 4,320 = 33 million."""

    def __post_init__(self) -> None:
        for name, least in (("timeout_s", 1), ("memory_mb", 0), ("max_pixels", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")


def current_limits() -> Limits:
    """The defaults, or what SAVI_DECODE_TIMEOUT (s), SAVI_DECODE_MEMORY (MiB) and SAVI_MAX_PIXELS say.

    Raises:
        ValueError: a variable holds no whole number, or one that is too small.
    """
    found: dict[str, int] = {}
    for field in fields(Limits):
        text = os.environ.get(variable := VARIABLES[field.name])
        if text:
            try:
                found[field.name] = int(text)
            except ValueError:
                raise ValueError(f"{variable} is {text!r}; it must be a whole number") from None
    return Limits(**found)


def set_limit(name: str, value: int) -> None:
    """Set a limit for this process and those it starts; what flags do.

    Raises:
        ValueError: the value is too small.
    """
    Limits(**{name: value})
    os.environ[VARIABLES[name]] = str(value)
