"""The flags that limit what a video may take, for every command that reads videos."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from savi.base.limits import VARIABLES, Limits, set_limit

_HELP = {
    "timeout_s": ("--decode-timeout", 1, "Seconds a video may take to decode; one that takes longer is listed as broken."),
    "memory_mb": ("--decode-memory", 0, "MB of memory a video may take to decode, its frames included; 0: any."),
    "max_pixels": ("--max-pixels", 1, "Width x height of a picture; videos of bigger ones are listed as broken."),
}


def decode_limits(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the flags. They hold for the process and those it starts (`savi.base.limits`)."""

    @wraps(command)
    def limited(*args: Any, **values: Any) -> Any:
        for name in _HELP:
            set_limit(name, values.pop(name))
        return command(*args, **values)

    signature = inspect.signature(command)
    hints = get_type_hints(command, include_extras=True)
    added = []
    for name, (flag, least, text) in _HELP.items():
        hints[name] = Annotated[int, typer.Option(flag, envvar=VARIABLES[name], min=least, help=text, rich_help_panel="Limits of a video")]
        added.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=getattr(Limits(), name), annotation=hints[name]))
    parameters = [parameter.replace(annotation=hints[parameter.name]) for parameter in signature.parameters.values()]
    limited.__signature__ = signature.replace(parameters=parameters + added)  # type: ignore[attr-defined]
    limited.__annotations__ = hints
    return limited
