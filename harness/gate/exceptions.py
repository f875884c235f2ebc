"""Approved exceptions to the gate: a committed file that says who allowed what, why, for which run and until when.

There is no flag for this on purpose: an exception has an author, a reason and an end, passes review like code, and is printed in every
report. The file is `gate-exceptions.yaml` at the top of the repository; one with uncommitted changes is refused.
"""

from __future__ import annotations

import datetime as dt
import subprocess
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from savi.base.errors import ExitCode, SaviError, one_line

EXCEPTIONS_FILE = "gate-exceptions.yaml"

Excusable = Literal["no_regression", "improved", "format", "published_score", "published_gain", "versions", "judged"]
"""What an exception may cover: a decision's verdict, differing tool versions, judged answers. Missing, changed or differing
questions, frames and failed answers cannot be excused: the comparison would mean nothing."""

EXCUSABLE_PROBLEMS = frozenset({"versions", "judged"})
"""Codes of integrity problems that an exception may cover."""


class ExceptionsError(SaviError, ValueError):
    """The exceptions file cannot be used: names the file, the entry and what is wrong."""

    exit_code = ExitCode.USAGE


class ApprovedException(BaseModel):
    """One entry of the exceptions file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    benchmark: str = Field(min_length=1)
    covers: Excusable
    run: str = Field(min_length=1)
    """Name of the candidate's run (its folder's name), exactly."""
    reason: str = Field(min_length=10)
    approved_by: str = Field(min_length=2)
    expires: dt.date
    """Last day it holds."""

    def covers_case(self, *, benchmark: str, code: str, run: str, today: dt.date) -> bool:
        """Whether it excuses `code` of this benchmark in this run today."""
        return (self.benchmark, self.covers, self.run) == (benchmark, code, run) and today <= self.expires

    def text(self, today: dt.date) -> str:
        """One line for reports."""
        state = "expired" if today > self.expires else "until"
        return f"{self.benchmark} {self.covers} in run {self.run}: {self.reason} (approved by {self.approved_by}, {state} {self.expires})"


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    exceptions: list[ApprovedException]


def read_exceptions(path: Path) -> tuple[ApprovedException, ...]:
    """Read an exceptions file.

    Raises:
        ExceptionsError: unreadable, or an entry with a field missing, unknown or empty.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        return tuple(_File.model_validate(raw).exceptions)
    except ValidationError as e:
        first = e.errors()[0]
        raise ExceptionsError(f"{path}: {'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}") from e
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as e:
        raise ExceptionsError(f"{path}: cannot be read as YAML ({one_line(e)})") from e


def committed_exceptions(root: Path) -> tuple[ApprovedException, ...]:
    """The exceptions of the repository at `root`; none where it has no exceptions file.

    Raises:
        ExceptionsError: the file is malformed, or not committed as it stands (an exception nobody reviewed is none).
    """
    path = root / EXCEPTIONS_FILE
    if not path.exists():
        return ()
    try:
        status = subprocess.run(  # an untracked or changed file has a line here; a clean one has none
            ["git", "status", "--porcelain", "--ignored", "--", EXCEPTIONS_FILE],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise ExceptionsError(f"{path}: git cannot tell whether it is committed ({e})") from e
    if status.returncode != 0:
        raise ExceptionsError(f"{path}: not in a git repository, so it cannot count as committed ({status.stderr.strip()})")
    if status.stdout.strip():
        raise ExceptionsError(f"{path}: has uncommitted changes; an exception counts once it is committed")
    return read_exceptions(path)
