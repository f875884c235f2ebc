"""Command lines of the gate: `gate`, `reference`, `check`, `simulate`, `power`; mounted by `python -m harness`.

Exit codes: 0 pass, 1 fail, 2 usage, 3 inconclusive, 4 integrity, 5 infrastructure. Whatever goes wrong before a verdict is never a pass,
and JUnit files are written even then.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from harness.gate.gate import GateResult

Candidate = Annotated[Path, typer.Argument(help="Run folder, evaluation folder or reference file of the candidate.", show_default=False)]
Against = Annotated[str, typer.Option(help="What to compare with: `paper`, a run folder, a reference file, a published-scores file.")]
Benchmarks = Annotated[str | None, typer.Option(help="Comma-separated benchmarks; default: all that either side has.")]
Alpha = Annotated[float, typer.Option(help="Error rate of each one-sided test.")]
Margin = Annotated[float | None, typer.Option(help="Margin in points, for every benchmark; default: each benchmark's frozen margin.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Junit = Annotated[Path | None, typer.Option(help="Also write JUnit XML to this file.")]
Summary = Annotated[Path | None, typer.Option(help="Also append a Markdown summary to this file (in GitHub: $GITHUB_STEP_SUMMARY).")]


def stop(message: str, code: int, *, junit: Path | None = None) -> NoReturn:
    """Say what went wrong on stderr and leave with `code`; a JUnit file asked for gets the error too."""
    from harness.gate.ci import junit_error, plain
    from harness.records import write_text_atomic

    if junit is not None:
        write_text_atomic(junit, junit_error(message, code=code))
    typer.echo(f"error: {plain(message)}", err=True)
    raise typer.Exit(code)


def names(benchmarks: str | None) -> tuple[str, ...] | None:
    """Benchmarks of a comma-separated option."""
    return tuple(dict.fromkeys(b.strip() for b in benchmarks.split(",") if b.strip())) or None if benchmarks else None


def gate(
    candidate: Candidate,
    against: Against,
    benchmarks: Benchmarks = None,
    alpha: Alpha = 0.05,
    margin: Margin = None,
    as_json: AsJson = False,
    junit: Junit = None,
    summary: Summary = None,
    out: Annotated[Path | None, typer.Option(help="Also write the result as gate.json to this file.")] = None,
    row: Annotated[str | None, typer.Option(help="With --against paper: another row of the table.")] = None,
    require_improvement: Annotated[bool, typer.Option(help="Fail unless the candidate is better, not only no worse.")] = False,
) -> None:
    """Decide whether a run reproduces the paper or regressed against another run."""
    from harness.gate.exceptions import ExceptionsError, committed_exceptions
    from harness.gate.files import base_of, is_base, load_against, load_run, run_name, write_gates
    from harness.gate.gate import EXIT_CODES, GateSettings, GateUsageError, gate_published, gate_runs
    from harness.records import RecordError

    try:
        mine = load_run(candidate)
        wanted = names(benchmarks)
        scale = next(iter(mine.values())).score.scale
        reference = load_against(against, scale=scale, row=row, base=is_base(candidate))
        _known(wanted, {*mine, *(reference.evaluations or {}), *(reference.published or {})})
        settings = GateSettings(
            alpha=alpha,
            margin=margin,
            benchmarks=wanted,
            require_improvement=require_improvement,
            exceptions=committed_exceptions(Path.cwd()),
            run=run_name(candidate),
        )
        if reference.evaluations is not None:
            result = gate_runs(mine, reference.evaluations, settings, candidate_name=str(candidate), reference_name=reference.name)
        else:
            assert reference.published is not None
            base = base_of(candidate) if reference.published_base else None
            result = gate_published(
                mine,
                base,
                reference.published,
                settings,
                published_base=reference.published_base,
                candidate_name=str(candidate),
                reference_name=reference.name,
            )
    except (GateUsageError, ExceptionsError) as e:
        stop(str(e), EXIT_CODES["usage"], junit=junit)
    except RecordError as e:
        stop(str(e), EXIT_CODES["integrity"], junit=junit)
    except OSError as e:
        stop(f"{e.filename or candidate}: {e.strerror or e}", EXIT_CODES["infrastructure"], junit=junit)
    try:
        if out is not None:
            write_gates(out, {"gate": result})
        publish(result, as_json=as_json, junit=junit, summary=summary)
    except OSError as e:
        stop(f"{e.filename}: cannot be written ({e.strerror})", EXIT_CODES["infrastructure"])
    raise typer.Exit(result.exit_code)


def _known(wanted: tuple[str, ...] | None, present: set[str]) -> None:
    from benchmarks.catalog import CATALOG
    from harness.gate.gate import GateUsageError

    unknown = [n for n in wanted or () if n not in CATALOG and n not in present]
    if unknown:
        raise GateUsageError(f"unknown benchmark {', '.join(map(repr, unknown))}; choose from {', '.join(sorted(present | set(CATALOG)))}")


def publish(result: GateResult, *, as_json: bool, junit: Path | None, summary: Path | None, quiet: bool = False) -> None:
    """Print a result and write the files asked for; in GitHub Actions also its annotations (on stderr, so that --json stays clean)."""
    from harness.gate import ci
    from harness.records import write_text_atomic

    if junit is not None:
        write_text_atomic(junit, ci.junit(result))
    if summary is not None:
        summary.parent.mkdir(parents=True, exist_ok=True)
        with summary.open("a", encoding="utf-8") as f:
            f.write(ci.summary(result))
    if os.environ.get("GITHUB_ACTIONS") == "true":
        print("\n".join(ci.workflow_commands(result)), file=sys.stderr)
    if as_json:
        typer.echo(result.to_json())
    elif not quiet:
        show(result)


def show(result: GateResult) -> None:
    """The result as a table on the console."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from harness.gate.ci import plain
    from harness.gate.gate import QUESTION_TEXT

    def text(s: str) -> str:
        return escape(plain(s))

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    colours = {"pass": "green", "fail": "red", "inconclusive": "yellow", "integrity": "red"}
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
                f"[{colours[d.verdict]}]{d.verdict}[/]" + ("" if d.required else " (information)") + (" (excused)" if d.excused_by else ""),
            )
        console.print(table)
        for d in group:
            if d.note:
                console.print(f"  {text(d.benchmark)}: {text(d.note)}")
    for p in result.integrity:
        console.print(f"integrity: {text(p.benchmark)} ({p.side}, {p.code}): {text(p.message)}" + (" (excused)" if p.excused_by else ""))
    for x in result.exceptions:
        console.print(f"approved exception: {text(x)}")
    console.print(f"verdict: [{colours[result.verdict]}]{result.verdict}[/] (exit code {result.exit_code})")


def reference(
    run: Candidate,
    out: Annotated[Path, typer.Argument(help="File to write, e.g. results/baseline.json.gz.", show_default=False)],
) -> None:
    """Write a run's scores and records into one file, to be committed and used with --against."""
    from harness.gate.files import load_run, run_name, save_reference
    from harness.gate.gate import EXIT_CODES, GateUsageError
    from harness.gate.integrity import edited
    from harness.records import RecordError

    try:
        evaluations = load_run(run)
        change = next((x for x in map(edited, evaluations.values()) if x is not None), None)
        if change is not None:
            stop(f"{run}: {change}", EXIT_CODES["integrity"])
        save_reference(out, evaluations, name=run_name(run))
    except GateUsageError as e:
        stop(str(e), EXIT_CODES["usage"])
    except RecordError as e:
        stop(str(e), EXIT_CODES["integrity"])
    except OSError as e:
        stop(f"{e.filename or out}: {e.strerror or e}", EXIT_CODES["infrastructure"])
    typer.echo(
        f"{out}: {len(evaluations)} benchmarks, {sum(len(e.records) for e in evaluations.values()):,} questions, "
        f"{out.stat().st_size:,} bytes"
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
    from harness.gate.files import load_run
    from harness.gate.gate import EXIT_CODES, GateUsageError
    from harness.records import RecordError
    from harness.run.evaluate import offline_environment

    if data is None:
        stop("no data folder: give --data or set HF_HOME", EXIT_CODES["usage"], junit=junit)
    try:
        baseline = load_run(against)
        wanted = names(benchmarks)
        _known(wanted, set(baseline))
    except GateUsageError as e:
        stop(str(e), EXIT_CODES["usage"], junit=junit)
    except RecordError as e:
        stop(str(e), EXIT_CODES["integrity"], junit=junit)
    os.environ.update(offline_environment(data))  # before anything imports datasets or lmms-eval
    from harness.gate.early.cli import run_check

    run_check(
        model,
        baseline,
        against=against,
        margin=margin,
        benchmarks=wanted,
        alpha=alpha,
        seed=seed,
        batch=batch,
        familywise=familywise,
        data=data,
        out=out,
        as_json=as_json,
        junit=junit,
        summary=summary,
    )


def simulate(
    sims: Annotated[int, typer.Option(min=10, help="Simulations of each error rate.")] = 2000,
    saving_sims: Annotated[int, typer.Option(min=10, help="Simulations of each cell of the savings table.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed.")] = 2412,
    alpha: Alpha = 0.05,
    discordance: Annotated[float, typer.Option(min=0.5, max=60, help="Percent of questions that change between two models.")] = 13.0,
    rho: Annotated[
        float, typer.Option(min=0, max=0.9, help=("Correlation of the changes within a video (of the normal variables behind them)."))
    ] = 0.05,
    margin: Annotated[float, typer.Option(help="Margin of the savings table, in points.")] = 1.5,
    benchmarks: Benchmarks = None,
    out: Annotated[Path | None, typer.Option(help="Folder for gate_simulation.{md,json,svg}.")] = None,
    as_json: AsJson = False,
) -> None:
    """Test the gate on itself: error rates, power, coverage and savings with the six benchmarks' real sizes."""
    import json

    from benchmarks.catalog import UnknownBenchmarkError, select
    from harness.gate.gate import EXIT_CODES
    from harness.gate.simulation.report import markdown, write
    from harness.gate.simulation.simulate import Plan
    from harness.gate.simulation.simulate import simulate as run

    try:
        chosen = tuple(b.name for b in select(names(benchmarks)))
    except UnknownBenchmarkError as e:
        stop(str(e), EXIT_CODES["usage"])
    plan = Plan(
        sims=sims,
        seed=seed,
        alpha=alpha,
        discordance=discordance / 100,
        rho=rho,
        benchmarks=chosen,
        saving_margin=margin,
        saving_sims=saving_sims,
    )
    result = run(plan)
    if out is not None:
        write(result, out)
    typer.echo(json.dumps(result.to_dict(), indent=1) if as_json else markdown(result))
    if not result.holds:
        raise typer.Exit(EXIT_CODES["fail"])


def power(
    effect: Annotated[float | None, typer.Option(help="Effect in points: how many questions does it take?")] = None,
    n: Annotated[int | None, typer.Option(min=2, help="Questions: what effect can be seen? Default: each benchmark's own number.")] = None,
    discordance: Annotated[float, typer.Option(min=0.1, max=100, help="Percent of questions that change between two models.")] = 12.0,
    per_video: Annotated[float | None, typer.Option(min=1, help="Questions a video; default: each benchmark's own.")] = None,
    icc: Annotated[float, typer.Option(min=0, max=1, help="Intra-video correlation of the differences.")] = 0.05,
    alpha: Alpha = 0.05,
    target: Annotated[float, typer.Option("--power", min=0.5, max=0.999, help="Power.")] = 0.8,
    benchmarks: Benchmarks = None,
    as_json: AsJson = False,
) -> None:
    """What effect can so many questions show, and how many questions does an effect take?"""
    import json
    from dataclasses import asdict

    from benchmarks.catalog import UnknownBenchmarkError, select
    from harness.gate.gate import EXIT_CODES, GateUsageError
    from harness.gate.power import power_table, text

    try:
        rows = power_table(
            select(names(benchmarks)), effect=effect, n=n, discordance=discordance, per_video=per_video, icc=icc, alpha=alpha, power=target
        )
    except (UnknownBenchmarkError, GateUsageError) as e:
        stop(str(e), EXIT_CODES["usage"])
    typer.echo(json.dumps([asdict(r) for r in rows], indent=1) if as_json else text(rows))


def register(app: typer.Typer) -> None:
    """Mount the gate's commands on the harness's command line."""
    for command in (gate, reference, check, simulate, power):
        app.command()(command)
