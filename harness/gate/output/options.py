"""The options that `gate` and `check` share: what is asked of the data, and where the verdict goes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from harness.gate.output.console import Alpha, AsJson, Benchmarks, InconclusiveOption, Junit, Margin, RequireOption, Summary, names
from harness.gate.policy import Inconclusive, Require

if TYPE_CHECKING:
    from harness.gate.settings import GateSettings


@dataclass(frozen=True)
class DecisionOptions:
    """A field an option, with its default."""

    benchmarks: Benchmarks = None
    alpha: Alpha = 0.05
    margin: Margin = None
    require: RequireOption = "mean"
    inconclusive: InconclusiveOption = "fail"
    as_json: AsJson = False
    junit: Junit = None
    summary: Summary = None

    @property
    def names(self) -> tuple[str, ...] | None:
        """The benchmarks that were named."""
        return names(self.benchmarks)

    def settings(self, run: str, *, require_improvement: bool = False) -> GateSettings:
        """What is asked of the candidate's `run`, with the exceptions committed here.

        Raises:
            ExceptionsError: their file cannot be trusted.
        """
        from harness.gate.exceptions import committed_exceptions
        from harness.gate.settings import GateSettings

        require: Require = self.require
        inconclusive: Inconclusive = self.inconclusive
        return GateSettings(
            alpha=self.alpha,
            margin=self.margin,
            benchmarks=self.names,
            require=require,
            require_improvement=require_improvement,
            inconclusive=inconclusive,
            exceptions=committed_exceptions(Path.cwd()),
            run=run,
        )


def decision_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options; it gets them as its argument `options`."""

    @wraps(command)
    def asked(*args: Any, **values: Any) -> Any:
        options = DecisionOptions(**{f.name: values.pop(f.name) for f in fields(DecisionOptions)})
        return command(*args, options=options, **values)

    hints = get_type_hints(command, include_extras=True) | get_type_hints(DecisionOptions, include_extras=True)
    own = [p.replace(annotation=hints[p.name]) for p in inspect.signature(command).parameters.values() if p.name != "options"]
    shared = fields(DecisionOptions)
    added = [inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name]) for f in shared]
    asked.__signature__ = inspect.signature(command).replace(parameters=[*own, *added])  # type: ignore[attr-defined]
    asked.__annotations__ = {name: hint for name, hint in hints.items() if name != "options"}
    return asked
