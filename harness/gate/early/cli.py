"""The command line of early stopping, `check`: the model, progress, check.json and the verdict."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.gate.output.console import Alpha, AsJson, Benchmarks, Junit, Margin, Summary, known, names, publish, stop

if TYPE_CHECKING:
    from harness.gate.early.check import CheckResult
    from harness.gate.early.sequence import Look


def to_json(result: CheckResult) -> str:
    """The gate result with what was asked."""
    asked = [{**asdict(a), "share_pct": 100 * a.share} for a in result.asked]
    return json.dumps(
        {"gate": json.loads(result.gate.to_json()), "asked": asked, "share_pct": 100 * result.share}, indent=1, ensure_ascii=False
    )


def check(
    model: Annotated[str, typer.Argument(help="Checkpoint folder or hub id of the candidate.", show_default=False)],
    against: Annotated[Path, typer.Option(help="Run folder or reference file of the baseline.", show_default=False)],
    margin: Margin = None,
    benchmarks: Benchmarks = None,
    alpha: Alpha = 0.05,
    seed: Annotated[int, typer.Option(help="Seed of the order in which videos are drawn.")] = 0,
    batch: Annotated[
        int | None, typer.Option(help="Videos between two looks; default: 1/400 of the videos, at least 16 questions.")
    ] = None,
    familywise: Annotated[
        bool, typer.Option(help=("Share alpha among the benchmarks, so that an overall fail is wrong at most alpha of the time."))
    ] = False,
    data: Annotated[Path | None, typer.Option(envvar="HF_HOME", help="Folder with the data sets (HF_HOME).", show_envvar=True)] = None,
    out: Annotated[Path, typer.Option(help="Folder for the journal and check.json; the same folder resumes.")] = Path("runs/check"),
    as_json: AsJson = False,
    junit: Junit = None,
    summary: Summary = None,
) -> None:
    """Evaluate in random video order and stop as soon as every verdict is certain."""
    from harness.gate.decision import EXIT_CODES, GateUsageError
    from harness.gate.exceptions import ExceptionsError, committed_exceptions
    from harness.gate.files import load_run, run_name
    from harness.gate.settings import GateSettings
    from harness.records import RecordError
    from harness.run.offline import offline_environment

    if data is None:
        stop("no data folder: give --data or set HF_HOME", EXIT_CODES["usage"], junit=junit)
    try:
        baseline = load_run(against)
        wanted = names(benchmarks)
        known(wanted, set(baseline))
        settings = GateSettings(
            alpha=alpha, margin=margin, benchmarks=wanted, exceptions=committed_exceptions(Path.cwd()), run=run_name(Path(model))
        )
    except (GateUsageError, ExceptionsError) as e:
        stop(str(e), EXIT_CODES["usage"], junit=junit)
    except RecordError as e:
        stop(str(e), EXIT_CODES["integrity"], junit=junit)
    os.environ.update(offline_environment(data))  # before anything imports datasets or lmms-eval
    from rich.console import Console

    from benchmarks.data.layout import DatasetError
    from harness.gate.early.ask import VideoAsker
    from harness.gate.early.check import check as check_runs
    from harness.run.journal import JournalError
    from harness.run.offline import InfrastructureError
    from savi.base.files import write_text_atomic
    from savi.base.lock import LockedError, lock_folder

    console = Console(stderr=True, highlight=False)

    def progress(name: str, asked: int, of: int, look: Look) -> None:
        bounds = f"{100 * look.low:+.1f} to {100 * look.high:+.1f} points"
        console.print(f"{name}: {asked:,} of {of:,} questions, {bounds}{f', {look.verdict}' if look.verdict else ''}")

    try:
        chosen = {n: baseline[n] for n in wanted or baseline}
        with lock_folder(out):
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
            write_text_atomic(out / "check.json", to_json(result) + "\n")
    except ValueError as e:
        code = "infrastructure" if isinstance(e, JournalError) else "usage"
        stop(str(e), EXIT_CODES[code], junit=junit)
    except (InfrastructureError, DatasetError, LockedError, OSError) as e:
        stop(str(e), EXIT_CODES["infrastructure"], junit=junit)
    if as_json:
        typer.echo(to_json(result))
    publish(result.gate, as_json=False, junit=junit, summary=summary, quiet=as_json)
    if not as_json:
        typer.echo(f"asked {100 * result.share:.1f} % of the questions")
    raise typer.Exit(result.gate.exit_code)


def register(app: typer.Typer) -> None:
    """Mount `check` on the harness's command line."""
    app.command()(check)
