"""The gate on a command line: its options, a result as a table, and how a command ends.

Whatever goes wrong before a verdict is never a pass, and JUnit files are written even then.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from harness.gate.policy import EXIT_CODES, Inconclusive, Require
from savi.base.cli import print_text
from savi.base.errors import SaviError
from savi.base.files import write_text_atomic
from savi.base.former import listed

if TYPE_CHECKING:
    from harness.gate.decision import GateResult

Candidate = Annotated[Path, typer.Argument(help="Run folder, evaluation folder or reference file of the candidate.", show_default=False)]
Against = Annotated[str, typer.Option(help="What to compare with: `paper`, a run folder, a reference file, a published-scores file.")]
Benchmarks = Annotated[
    list[str] | None,
    typer.Option("--benchmarks", help="Only these benchmarks (default: all that either side has); repeated or with commas."),
]
Alpha = Annotated[float, typer.Option(help="Error rate of each one-sided test.")]
Margin = Annotated[float | None, typer.Option(help="Margin in points, for every benchmark; default: each benchmark's frozen margin.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
RequireOption = Annotated[
    Require, typer.Option(help="Whose pass is required: the mean's over the benchmarks, each benchmark's, or both. Any fail fails.")
]
InconclusiveOption = Annotated[Inconclusive, typer.Option(help="What an inconclusive verdict does: exit 3, exit 0 with a warning, exit 0.")]
Junit = Annotated[Path | None, typer.Option(help="Also write JUnit XML to this file.")]
Summary = Annotated[Path | None, typer.Option(help="Also append a Markdown summary to this file (in GitHub: $GITHUB_STEP_SUMMARY).")]


def write_junit_error(junit: Path | None, message: str, code: int) -> None:
    """The JUnit file of a command that ended before a verdict, where one was asked for."""
    if junit is not None:
        from harness.gate.output.ci import junit_error

        write_text_atomic(junit, junit_error(message, code=code))


def stop(message: str, code: int, *, junit: Path | None = None) -> NoReturn:
    """Say what went wrong on stderr and leave with `code`; a JUnit file asked for gets the error too."""
    from harness.gate.output.ci import plain

    write_junit_error(junit, message, code)
    typer.echo(f"error: {plain(message)}", err=True)
    raise typer.Exit(code)


@contextmanager
def ending(place: Path | str = "", *, junit: Path | None = None) -> Iterator[None]:
    """What can go wrong before a verdict ends the command with its exit code; `place` is named where the system names no file."""
    try:
        yield
    except SaviError as e:
        stop(str(e), int(e.exit_code), junit=junit)
    except OSError as e:
        stop(f"{e.filename or place}: {e.strerror or e}", EXIT_CODES["infrastructure"], junit=junit)


def names(benchmarks: Iterable[str] | None) -> tuple[str, ...] | None:
    """The benchmarks of an option; None for all."""
    return tuple(listed(benchmarks)) or None


def known(wanted: tuple[str, ...] | None, present: set[str]) -> None:
    """Raises: GateUsageError: a benchmark that neither the catalog nor the runs have."""
    from benchmarks.catalog import CATALOG
    from harness.gate.decision import GateUsageError

    unknown = [n for n in wanted or () if n not in CATALOG and n not in present]
    if unknown:
        raise GateUsageError(f"unknown benchmark {', '.join(map(repr, unknown))}; choose from {', '.join(sorted(present | set(CATALOG)))}")


def publish(result: GateResult, *, as_json: bool, junit: Path | None, summary: Path | None, quiet: bool = False) -> None:
    """Print a result and write the files asked for; in GitHub Actions also its annotations (on stderr, so that --json stays clean)."""
    from harness.gate.output import ci

    if junit is not None:
        write_text_atomic(junit, ci.junit(result))
    if summary is not None:
        summary.parent.mkdir(parents=True, exist_ok=True)
        with summary.open("a", encoding="utf-8") as f:
            f.write(ci.summary(result))
    if os.environ.get("GITHUB_ACTIONS") == "true":
        print("\n".join(ci.workflow_commands(result)), file=sys.stderr)
    if as_json:
        print_text(result.to_json())
    elif not quiet:
        print_text(table_text(result))


def table_text(result: GateResult) -> str:
    """The result as tables, coloured on a terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from harness.gate.decision import QUESTION_TEXT
    from harness.gate.output.ci import plain, policy, status

    def text(raw: str) -> str:
        return escape(plain(raw))

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    colours = {"pass": "green", "fail": "red", "inconclusive": "yellow", "integrity": "red"}
    with console.capture() as captured:
        console.print(text(f"{result.candidate} against {result.reference}; scale {result.scale}; alpha {result.alpha:g}; points, 0-100"))
        for question in dict.fromkeys(d.question for d in result.decisions):
            table = Table(title=QUESTION_TEXT[question], title_justify="left")
            for c in ("benchmark", "n (videos)", "candidate", "reference", "difference", "bounds", "margin", "MDE", "p", "verdict"):
                table.add_column(c, justify="left" if c in ("benchmark", "verdict") else "right", overflow="fold")
            group = [d for d in result.decisions if d.question == question]
            for d in group:
                table.add_row(
                    text(d.benchmark),
                    f"{d.n:,} ({d.videos:,})",
                    "" if d.candidate_pct is None else f"{d.candidate_pct:.1f}",
                    "" if d.reference_pct is None else f"{d.reference_pct:.1f}",
                    f"{d.estimate:+.2f}",
                    f"{d.low:+.2f} to {d.high:+.2f}",
                    f"{d.margin:g}",
                    "?" if d.mde is None else f"{d.mde:.2f}",
                    f"{d.p_value:.3g}",
                    f"[{colours[d.verdict]}]{status(d)}[/]",
                )
            console.print(table)
            for d in group:
                if d.note:
                    console.print(f"  {text(d.benchmark)}: {text(d.note)}")
        for p in result.integrity:
            kind = "warning" if p.warns else "integrity"
            console.print(f"{kind}: {text(p.benchmark)} ({p.side}, {p.code}): {text(p.message)}" + (" (excused)" if p.excused_by else ""))
        for x in result.exceptions:
            console.print(f"approved exception: {text(x)}")
        for x in result.reasons:
            console.print(f"{result.verdict} because of {text(x)}")
        console.print(f"verdict: [{colours[result.verdict]}]{result.verdict}[/] (exit code {result.exit_code}){policy(result)}")
    return captured.get().rstrip("\n")
