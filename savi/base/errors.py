"""The exit codes of all commands, and the base class of the errors that users see: an error knows its own exit code."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What every command of the four packages ends with."""

    DONE = 0
    """Done; of the gate: pass."""
    FAIL = 1
    """The gate's "fail", or done but no output was produced."""
    USAGE = 2
    """Wrong use, or something named on the command line does not exist."""
    INCONCLUSIVE = 3
    BROKEN = 4
    """A file is broken, or scores are not comparable."""
    MACHINE = 5
    """Something is missing or broke: no network, no room on disk, a package, a device, a data set, a lock held by another process."""
    INTERRUPTED = 130
    TERMINATED = 143


EXIT_CODES_TEXT = (
    "Exit codes: 0 done or pass, 1 fail or no output, 2 wrong use, 3 inconclusive, 4 not comparable or a broken file, "
    "5 something is missing or broke, 130 interrupted, 143 terminated."
)
"""What the help text of each package says of them."""


class SaviError(Exception):
    """Something that a user can act on: one line that names the thing, the place and the fix. Commands print it and end with its code."""

    exit_code: ExitCode = ExitCode.MACHINE


def one_line(error: object) -> str:
    """A library's message on one line: some draw the place with line breaks."""
    return " ".join(str(error).split())


class UsageError(SaviError, ValueError):
    """What was asked for cannot be done as asked."""

    exit_code = ExitCode.USAGE


class ResumeError(UsageError):
    """Something else stands where this run would go on: names it, and what differs."""


class FileFormatError(SaviError, ValueError):
    """A file that is not what it should be: names the file, the line and what is wrong with it."""

    exit_code = ExitCode.BROKEN
