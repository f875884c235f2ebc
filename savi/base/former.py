"""Options under the names they had before: they still work, and no help text shows them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Annotated, Any, get_args, get_type_hints

import typer
from typer.models import OptionInfo

from savi.base.cli import stop
from savi.base.errors import ExitCode


def former_options(**former: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the former names of its options, by parameter: `former_options(data="--hf-home")`.

    A value given by the former name goes to the parameter; both names in one command line are wrong use.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        signature, hints = inspect.signature(command), get_type_hints(command, include_extras=True)

        @wraps(command)
        def called(*args: Any, **values: Any) -> Any:
            for name, old in former.items():
                value = values.pop(_hidden(name))
                if value is None or value == []:
                    continue
                if values[name] != signature.parameters[name].default:
                    stop(f"{old} is the former name of --{name.replace('_', '-')}: give one of them", ExitCode.USAGE)
                values[name] = value
            return command(*args, **values)

        added = []
        for name, old in former.items():
            kind, info = _option(hints[name])
            hints[_hidden(name)] = Annotated[kind | None, typer.Option(old, hidden=True, min=info.min, max=info.max)]
            added.append(inspect.Parameter(_hidden(name), inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hints[_hidden(name)]))
        own = [p.replace(annotation=hints[p.name]) for p in signature.parameters.values()]
        called.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        called.__annotations__ = hints
        return called

    return decorate


def listed(values: Iterable[str] | None) -> list[str]:
    """The names that a repeated option was given, several with commas or one at a time; each once, in order."""
    return list(dict.fromkeys(part.strip() for value in values or () for part in value.split(",") if part.strip()))


def _hidden(name: str) -> str:
    return f"former_{name}"


def _option(hint: Any) -> tuple[Any, OptionInfo]:
    """The type of an option's value, and what typer knows of the option."""
    kind, *more = get_args(hint)
    return kind, next(x for x in more if isinstance(x, OptionInfo))
