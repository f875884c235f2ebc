"""The command line of early stopping, `check`: the model, progress, check.json and the verdict."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.gate.output.console import ending, known, publish, stop, write_junit_error
from harness.gate.output.options import DecisionOptions, decision_options
from harness.gate.policy import EXIT_CODES
from savi.base.cli import KEPT, errors, print_text, tell
from savi.base.former import former_options

if TYPE_CHECKING:
    from harness.gate.early.check import CheckResult
    from harness.gate.early.sequence import Look
    from harness.gate.settings import GateSettings
    from harness.records import Evaluation

NONCE_FILE = "nonce.txt"
Nonce = Annotated[
    str | None, typer.Option(help="Repeat another check's order (its check.json has the nonce); default: a new one, kept in --out.")
]
LookEvery = Annotated[int | None, typer.Option(help="Videos between two looks; default: 1/400 of the videos, at least 16 questions.")]
Data = Annotated[
    Path | None, typer.Option("--data", help="Where the data sets lie (default: HF_HOME, else the folder of the baseline's run).")
]


def to_json(result: CheckResult) -> str:
    """The gate result with what was asked."""
    asked = [{**asdict(a), "share_pct": 100 * a.share} for a in result.asked]
    return json.dumps(
        {"gate": json.loads(result.gate.to_json()), "nonce": result.nonce, "asked": asked, "share_pct": 100 * result.share},
        indent=1,
        ensure_ascii=False,
    )


def kept_nonce(out: Path) -> str:
    """The nonce of a check that was begun in `out`, or a new one, kept there before anything is asked.

    Raises:
        OSError: it cannot be kept.
    """
    from savi.base.files import write_text_atomic

    path = out / NONCE_FILE
    if path.is_file():
        return path.read_text(encoding="utf-8").strip()
    nonce = secrets.token_hex(8)
    write_text_atomic(path, nonce + "\n")
    return nonce


def _data_of(against: Path) -> Path | None:
    """The data sets that a run of ours was made with."""
    return next((d for p in (against, *against.resolve().parents[:3]) if (d := p / "data" / "hf_home").is_dir()), None)


@former_options(look_every="--batch", data="--hf-home")
@decision_options
def check(
    model: Annotated[str, typer.Argument(help="Checkpoint folder or hub id of the candidate, or micro.", show_default=False)],
    against: Annotated[Path, typer.Option(help="Run folder or reference file of the baseline.", show_default=False)],
    *,
    options: DecisionOptions,
    nonce: Nonce = None,
    look_every: LookEvery = None,
    data: Data = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the journal and check.json; the same folder resumes.")] = Path(
        "runs/check"
    ),
) -> None:
    """Evaluate in random video order and stop as soon as the verdict is certain.

    On several GPUs: torchrun --nproc-per-node 8 -m harness check ... asks the same questions and gives the same verdict.
    """
    from harness.gate.files import load_run, run_name
    from harness.run.offline import offline_environment
    from savi.base.hub import find_checkpoint
    from savi.base.processes import is_first

    data = data or (Path(os.environ["HF_HOME"]) if os.environ.get("HF_HOME") else _data_of(against))
    if data is None:
        stop(f"no data folder: give --data or set HF_HOME ({against} has no data/hf_home)", EXIT_CODES["usage"], junit=options.junit)
    with ending(against, junit=options.junit):
        baseline = load_run(against)
        known(options.names, set(baseline))
        settings = options.settings(run_name(Path(model)))
        folder = find_checkpoint(model, tell=tell)  # a hub id is fetched before the process goes offline
        os.environ.update(offline_environment(data))  # before anything imports datasets or lmms-eval
    try:
        chosen = {n: baseline[n] for n in options.names or baseline}
        with errors(kept=KEPT, on_stop=lambda message, code: write_junit_error(options.junit, message, code)):
            result = _run(
                chosen, settings, folder, data=data, out=out, nonce=nonce, batch=look_every, candidate=model, reference=run_name(against)
            )
    except ValueError as e:
        stop(str(e), EXIT_CODES["usage"], junit=options.junit)
    if not is_first():
        return  # the first process tells
    if options.as_json:
        print_text(to_json(result))
    publish(result.gate, as_json=False, junit=options.junit, summary=options.summary, quiet=options.as_json)
    if not options.as_json:
        print_text(f"asked {100 * result.share:.1f} % of the questions")
    raise typer.Exit(result.gate.exit_code)


def _run(
    baseline: Mapping[str, Evaluation],
    settings: GateSettings,
    folder: Path,
    *,
    data: Path,
    out: Path,
    nonce: str | None,
    batch: int | None,
    candidate: str,
    reference: str,
) -> CheckResult:
    """Ask the model in `folder` until the verdict is certain, progress on stderr, the result in check.json."""
    from rich.console import Console

    from harness.gate.early.ask import VideoAsker
    from harness.gate.early.check import check as check_runs
    from harness.run.lmms_model import weights_of
    from harness.run.made_from import versions
    from savi.base.files import write_text_atomic
    from savi.base.lock import lock_folder
    from savi.base.processes import is_first, joined

    console = Console(stderr=True, highlight=False, quiet=not is_first())

    def progress(name: str, asked: int, of: int, look: Look) -> None:
        bounds = f"{100 * look.low:+.1f} to {100 * look.high:+.1f} points"
        console.print(f"{name}: {asked:,} of {of:,} questions, {bounds}{f', {look.verdict}' if look.verdict else ''}")

    def begin() -> str:
        held.enter_context(lock_folder(out))
        kept = nonce or kept_nonce(out)
        tell(f"nonce of the drawing order: {kept} (kept in {out / NONCE_FILE})")
        return kept

    with joined(out) as processes, ExitStack() as held:
        drawn = processes.by_first(begin)
        result = check_runs(
            baseline,
            VideoAsker(folder, baseline, hf_home=data, out=out),
            settings,
            nonce=drawn,
            weights=weights_of(folder),
            versions=versions(),
            batch=batch,
            progress=progress,
            candidate_name=candidate,
            reference_name=reference,
        )
        if processes.rank == 0:
            write_text_atomic(out / "check.json", to_json(result) + "\n")
    return result


def register(app: typer.Typer) -> None:
    """Mount `check` on the harness's command line."""
    app.command()(check)
