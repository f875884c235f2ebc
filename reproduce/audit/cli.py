"""`python -m reproduce audit`: which published claims the published numbers can carry."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from savi.base.cli import errors
from savi.base.errors import ExitCode
from savi.base.files import write_text_atomic

if TYPE_CHECKING:
    from reproduce.audit.finding import Audit, Finding

_MEANING = {
    "fault": "the numbers contradict each other or cannot be",
    "doubt": "the numbers alone do not carry the claim",
    "note": "to be known when reading them",
    "ok": "holds",
}


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("audit")(audit_command)


def audit_command(
    tables: Annotated[Path | None, typer.Option(help="Folder with CSV tables and a manifest.yaml; results/paper by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    markdown: Annotated[Path | None, typer.Option(help="Also write the audit as Markdown to this file.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 where there is a fault.")] = False,
) -> None:
    """Check published tables without any model: GRIM, sums, restated differences, and what each claimed gain and its base can carry."""
    from harness.tables.published import PAPER_DIR, load_published
    from reproduce.audit.audit import audit

    with errors():
        result = audit(load_published(tables or PAPER_DIR))
        if markdown is not None:
            write_text_atomic(markdown, to_markdown(result))
    if as_json:
        sys.stdout.write(result.to_json())
    else:
        _print(result)
        if markdown is not None:
            typer.echo(f"\nwritten: {markdown}")
    if strict and result.of("fault"):
        raise typer.Exit(ExitCode.FAIL)


def _lines(findings: list[Finding]) -> list[tuple[str, str]]:
    from harness.escape import visible

    return [(visible(f"{f.check}: {f.where}: {f.claim}", 1000), visible(f.arithmetic, 4000)) for f in findings]


def _print(result: Audit) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    from harness.escape import visible
    from reproduce.audit.finding import VERDICTS

    console = Console(highlight=False, soft_wrap=False)
    console.print(Text(f"Audit of {visible(result.title)} ({visible(result.source, 1000)}); no model was run.", style="bold"))
    colours = {"fault": "bold red", "doubt": "bold yellow", "note": "bold cyan", "ok": "bold green"}
    for words, verdict, checks in result.claims():
        said = "" if verdict == "ok" else f" ({checks})"
        console.print(Text(f"  {verdict:5} ", style=colours[verdict]) + Text(visible(words, 1000) + said, style="default"))
    for verdict in VERDICTS:
        found = result.of(verdict)
        if not found:
            continue
        console.print(Text(f"\n{verdict} ({len(found)}): {_MEANING[verdict]}", style=colours[verdict]))
        for head, arithmetic in _lines(found):
            console.print(Padding(Text(head), (0, 0, 0, 2), expand=False))
            console.print(Padding(Text(arithmetic, style="dim"), (0, 0, 0, 6), expand=False))
    counts = ", ".join(f"{len(result.of(v))} {v}" for v in VERDICTS)
    console.print(Text(f"\n{counts}", style="bold"))


def to_markdown(result: Audit) -> str:
    """The whole audit as one Markdown page: a line a claim, the gains' table, then every finding with its arithmetic."""
    from harness.escape import markdown
    from reproduce.audit.audit import gains_table
    from reproduce.audit.finding import VERDICTS

    out = [f"# Audit of {markdown(result.title)}\n"]
    out.append(f"From {markdown(result.source, 1000)}. No model was run; every line can be redone by hand.\n")
    out += [f"- {v}: {markdown(words, 1000)}" + ("" if v == "ok" else f" ({checks})") for words, v, checks in result.claims()]
    out.append("")
    if result.gains:
        out.append(gains_table(result).to_markdown())
    for verdict in VERDICTS:
        found = result.of(verdict)
        if not found:
            continue
        out.append(f"## {verdict}: {_MEANING[verdict]} ({len(found)})\n")
        out += [f"- **{markdown(f.where, 1000)}** ({f.check}; {markdown(f.claim)}): {markdown(f.arithmetic, 4000)}" for f in found]
        out.append("")
    return "\n".join(out)
