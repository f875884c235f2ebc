"""The gate's values: evidence (what the data say), decisions (what follows at level alpha), and a result with its exit code.

Frozen data and their JSON, nothing that computes. Figures in points (0-100); p values and shares as fractions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from harness.gate.policy import EXIT_CODES, Inconclusive
from harness.integrity import IntegrityProblem
from savi.base.errors import ExitCode, SaviError

Verdict = Literal["pass", "fail", "inconclusive"]
Overall = Literal["pass", "fail", "inconclusive", "integrity"]
Question = Literal["no_regression", "improved", "format", "published_score", "published_gain"]
QUESTION_TEXT: dict[str, str] = {
    "no_regression": "no worse than the baseline by more than the margin",
    "improved": "better than the baseline",
    "format": "answers that cannot be read (unparsed, empty, degenerate) rose by no more than the margin",
    "published_score": "score equal to the published one within the margin",
    "published_gain": "gain over the base model equal to the published gain within the margin",
}
ALL = "all"
"""Benchmark name of the decisions on the unweighted mean over benchmarks."""
GATE_SCHEMA = 1


class GateUsageError(SaviError, ValueError):
    """The gate was asked something it must not or cannot answer (exit 2)."""

    exit_code = ExitCode.USAGE


class GateFileError(SaviError, ValueError):
    """A file that is not a valid gate.json."""

    exit_code = ExitCode.BROKEN


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the data say to one question about one benchmark, before any level or correction is applied.

    `p_value` is that of the hypothesis a pass rejects, `p_fail` that of the hypothesis a fail rejects. `low` and `high` are one-sided
    bounds at level 1 - alpha each (a 90 % interval for alpha 0.05). `mde` is the smallest effect seen with the stated power, `n_needed`
    the questions that would show an effect of `margin` with that power.
    """

    question: Question
    benchmark: str
    n: int
    videos: int
    estimate: float
    low: float
    high: float
    margin: float
    mde: float | None
    n_needed: int | None
    p_value: float
    p_fail: float = 1.0
    method: str
    note: str = ""
    candidate_pct: float | None = None
    reference_pct: float | None = None
    gained: int | None = None
    """Questions right now and wrong before (format: readable now and not before)."""
    lost: int | None = None
    power: float | None = None
    """Chance of a pass if nothing changed at all."""


@dataclass(frozen=True, kw_only=True)
class Decision(Evidence):
    """Evidence with the verdict it leads to. `p_adjusted` and `p_fail_adjusted` allow for the other benchmarks asked the same question.

    A `required` decision must pass; one with a `veto` fails the whole by a fail; the others are information.
    """

    verdict: Verdict
    p_adjusted: float
    p_fail_adjusted: float = 1.0
    required: bool = True
    veto: bool = False
    excused_by: str | None = None

    @property
    def counts(self) -> bool:
        """Whether the verdict has a say in the overall one."""
        return self.excused_by is None and (self.required or (self.veto and self.verdict == "fail"))


@dataclass(frozen=True)
class Changed:
    """Questions of a benchmark whose strict credit rose or fell, as `TASK/DOCUMENT on VIDEO`."""

    gained: list[str]
    lost: list[str]


@dataclass(frozen=True)
class GateResult:
    """All decisions, all integrity problems, the overall verdict and its exit code."""

    decisions: list[Decision]
    integrity: list[IntegrityProblem]
    verdict: Overall
    exit_code: int
    exceptions: list[str]
    """Approved exceptions that concern this run, as text, used or expired."""
    candidate: str = ""
    reference: str = ""
    scale: str = ""
    alpha: float = 0.05
    reasons: list[str] = field(default_factory=list)
    """What made the verdict what it is, in words."""
    inconclusive: Inconclusive = "fail"
    changed: dict[str, Changed] = field(default_factory=dict)
    """Questions gained and lost, by benchmark."""

    def to_json(self) -> str:
        """JSON text; infinite values become null."""
        return json.dumps({"schema": GATE_SCHEMA, **_finite(asdict(self))}, indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | Mapping[str, Any]) -> GateResult:
        """Read what `to_json` wrote (text, or an already parsed object).

        Raises:
            GateFileError: not a gate result of this schema.
        """
        try:
            raw = dict(json.loads(text) if isinstance(text, str) else text)
            if raw.pop("schema") != GATE_SCHEMA:
                raise GateFileError(f"gate result of another schema; this tool reads {GATE_SCHEMA}")
            raw["decisions"] = [
                Decision(**{**d, **{k: _bound(d[k], s) for k, s in (("low", -math.inf), ("high", math.inf))}}) for d in raw["decisions"]
            ]
            raw["integrity"] = [IntegrityProblem(**p) for p in raw["integrity"]]
            raw["changed"] = {k: Changed(**c) for k, c in raw.get("changed", {}).items()}
            result = cls(**raw)
        except GateFileError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as e:
            raise GateFileError(f"not a gate result: {type(e).__name__}: {e}") from e
        if result.verdict not in get_args(Overall) or result.exit_code != exit_code(result.verdict, result.inconclusive):
            raise GateFileError(f"verdict {result.verdict!r} with exit code {result.exit_code}: the file was changed")
        return result

    def of(self, question: str, benchmark: str) -> Decision:
        """The decision on `question` about `benchmark`. Raises: KeyError: there is none."""
        for d in self.decisions:
            if (d.question, d.benchmark) == (question, benchmark):
                return d
        raise KeyError(f"no decision on {question} for {benchmark}")


def exit_code(verdict: str, inconclusive: Inconclusive = "fail") -> int:
    """The process's exit status for an overall verdict."""
    return 0 if verdict == "inconclusive" and inconclusive != "fail" else EXIT_CODES[verdict]


def _bound(value: float | None, infinite: float) -> float:
    return infinite if value is None else value


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value
