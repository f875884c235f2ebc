"""The words that the gate's command line knows, and what a verdict ends with. Imports nothing of the gate: a help text costs little."""

from __future__ import annotations

from typing import Literal

from savi.base.errors import ExitCode

Inconclusive = Literal["fail", "warn", "pass"]
"""What an inconclusive verdict does to the exit code: 3, or 0 with a warning, or 0."""
Require = Literal["mean", "each", "both"]
"""Whose pass is required: the mean's over the benchmarks, each benchmark's, or both."""
Provider = Literal["github", "gitlab"]
"""Whose CI a job is written for."""

EXIT_CODES: dict[str, int] = {
    "pass": ExitCode.DONE,
    "fail": ExitCode.FAIL,
    "usage": ExitCode.USAGE,
    "inconclusive": ExitCode.INCONCLUSIVE,
    "integrity": ExitCode.BROKEN,
    "infrastructure": ExitCode.MACHINE,
}
