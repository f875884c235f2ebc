"""Run `python -m harness check` once its inputs are read: the model, the progress bar, check.json and the verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import typer

from harness.gate.cli import publish, stop
from harness.gate.early.check import CheckResult
from harness.gate.early.check import check as check_runs
from harness.gate.early.sequence import Look
from harness.gate.exceptions import ExceptionsError, committed_exceptions
from harness.gate.files import run_name
from harness.gate.gate import EXIT_CODES, GateSettings, GateUsageError
from harness.records import Evaluation, write_text_atomic


def to_json(result: CheckResult) -> str:
    """The gate result with what was asked."""
    asked = [{**asdict(a), "share_pct": 100 * a.share} for a in result.asked]
    return json.dumps(
        {"gate": json.loads(result.gate.to_json()), "asked": asked, "share_pct": 100 * result.share}, indent=1, ensure_ascii=False
    )


def run_check(
    model: str,
    baseline: Mapping[str, Evaluation],
    *,
    against: Path,
    margin: float | None,
    benchmarks: tuple[str, ...] | None,
    alpha: float,
    seed: int,
    batch: int | None,
    familywise: bool,
    data: Path,
    out: Path,
    as_json: bool,
    junit: Path | None,
    summary: Path | None,
) -> None:
    """Check `model` and leave with the verdict's exit code."""
    from rich.console import Console

    from benchmarks.data.layout import DatasetError
    from harness.gate.early.ask import VideoAsker
    from harness.run.journal import JournalError
    from harness.run.offline import InfrastructureError

    console = Console(stderr=True, highlight=False)

    def progress(name: str, asked: int, of: int, look: Look) -> None:
        bounds = f"{100 * look.low:+.1f} to {100 * look.high:+.1f} points"
        console.print(f"{name}: {asked:,} of {of:,} questions, {bounds}{f', {look.verdict}' if look.verdict else ''}")

    try:
        settings = GateSettings(
            alpha=alpha, margin=margin, benchmarks=benchmarks, exceptions=committed_exceptions(Path.cwd()), run=run_name(Path(model))
        )
        chosen = {n: baseline[n] for n in benchmarks or baseline}
        ask = VideoAsker(model, chosen, hf_home=data, out=out)
        result = check_runs(
            chosen,
            ask,
            settings,
            seed=seed,
            batch=batch,
            familywise=familywise,
            progress=progress,
            candidate_name=model,
            reference_name=run_name(against),
        )
        out.mkdir(parents=True, exist_ok=True)
        write_text_atomic(out / "check.json", to_json(result) + "\n")
    except (GateUsageError, ExceptionsError, ValueError) as e:
        code = "infrastructure" if isinstance(e, JournalError) else "usage"
        stop(str(e), EXIT_CODES[code], junit=junit)
    except (InfrastructureError, DatasetError, OSError) as e:
        stop(str(e), EXIT_CODES["infrastructure"], junit=junit)
    if as_json:
        typer.echo(to_json(result))
    publish(result.gate, as_json=False, junit=junit, summary=summary, quiet=as_json)
    if not as_json:
        typer.echo(f"asked {100 * result.share:.1f} % of the questions")
    raise typer.Exit(result.gate.exit_code)
