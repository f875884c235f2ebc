"""Command lines of the gate: `gate`, `diff`, `reference`, `init-ci`, `power`; mounted by `python -m harness`.

Exit codes: 0 pass, 1 fail, 2 usage, 3 inconclusive, 4 integrity, 5 infrastructure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.options import DataOfRun
from harness.gate.output.console import (
    Against,
    Alpha,
    AsJson,
    Benchmarks,
    Candidate,
    InconclusiveOption,
    RequireOption,
    ending,
    known,
    names,
    publish,
    stop,
)
from harness.gate.output.options import DecisionOptions, decision_options
from harness.gate.policy import EXIT_CODES, Provider
from savi.base.cli import print_json, print_text
from savi.base.former import former_options

if TYPE_CHECKING:
    from harness.gate.decision import GateResult
    from harness.gate.files import Reference
    from harness.gate.settings import GateSettings
    from harness.records import Evaluation


@decision_options
def gate(
    candidate: Candidate,
    against: Against,
    *,
    options: DecisionOptions,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write the result as gate.json to this file.")] = None,
    row: Annotated[str | None, typer.Option(help="With --against paper: another row of the table.")] = None,
    require_improvement: Annotated[bool, typer.Option(help="Pass only if the candidate is better, not only no worse.")] = False,
    rerun: Annotated[
        list[Path] | None,
        typer.Option(help="Against published numbers: another evaluation of the same weights, to measure run noise; may be repeated."),
    ] = None,
) -> None:
    """Decide whether a run reproduces the paper or regressed against another run."""
    from harness.gate.files import is_base, load_against, load_run, run_name, write_gates

    with ending(candidate, junit=options.junit):
        mine = load_run(candidate)
        scale = next(iter(mine.values())).score.scale
        reference = load_against(against, scale=scale, row=row, base=is_base(candidate))
        known(options.names, {*mine, *(reference.evaluations or {}), *(reference.published or {})})
        settings = options.settings(run_name(candidate), require_improvement=require_improvement)
        result = _decided(candidate, mine, reference, settings, rerun or ())
    try:
        if out is not None:
            write_gates(out, {"gate": result})
        publish(result, as_json=options.as_json, junit=options.junit, summary=options.summary)
    except OSError as e:
        stop(f"{e.filename}: cannot be written ({e.strerror})", EXIT_CODES["infrastructure"])
    raise typer.Exit(result.exit_code)


def _decided(
    candidate: Path, mine: Mapping[str, Evaluation], reference: Reference, settings: GateSettings, reruns: Sequence[Path]
) -> GateResult:
    """The gate's result against a run or against published numbers, whichever `reference` holds."""
    from harness.gate.files import base_of, load_run
    from harness.gate.gate import gate_published, gate_runs

    if reference.evaluations is not None:
        return gate_runs(mine, reference.evaluations, settings, candidate_name=str(candidate), reference_name=reference.name)
    assert reference.published is not None
    return gate_published(
        mine,
        base_of(candidate) if reference.published_base else None,
        reference.published,
        settings,
        published_base=reference.published_base,
        reruns=[load_run(r) for r in reruns],
        candidate_name=str(candidate),
        reference_name=reference.name,
    )


@former_options(show="--limit", data="--hf-home")
def diff(
    candidate: Candidate,
    reference: Annotated[Path, typer.Argument(help="What to compare with: a run folder or a reference file.", show_default=False)],
    benchmarks: Benchmarks = None,
    every: Annotated[bool, typer.Option("--every", help="Also questions answered otherwise with the same credit.")] = False,
    show: Annotated[int, typer.Option(min=0, help="Questions shown of each benchmark.")] = 20,
    page: Annotated[
        Path | None, typer.Option("--html", help="Also write a page of both, question by question; the links lead there.")
    ] = None,
    data: DataOfRun = None,
    as_json: AsJson = False,
) -> None:
    """Show the questions that a candidate gained and lost, with links into the report: any two stages, of one run or of two."""
    from harness.gate.decision import GateUsageError
    from harness.gate.evidence.changes import Change, changes
    from harness.gate.files import load_run
    from harness.gate.output.diff import diff_json, diff_text
    from harness.records import index_records
    from harness.report.sides import report_addresses, write_comparison

    with ending(candidate):
        after, before = load_run(candidate), load_run(reference)
        wanted = names(benchmarks)
        known(wanted, {*after, *before})
        both = [n for n in wanted or before if n in before and n in after]
        if not both:
            raise GateUsageError(f"no benchmark in common: {', '.join(after) or 'none'} and {', '.join(before) or 'none'}")
        if data is not None and not data.is_dir():
            raise GateUsageError(f"--data {data}: no such folder")
        if page is not None:
            sides = [(path, {n: found[n] for n in both}) for path, found in ((candidate, after), (reference, before))]
            links = write_comparison(page, sides[0], sides[1], data=data)
        else:
            links = report_addresses(candidate, reference)
    found = {n: [c for c in changes(after[n].records, before[n].records) if every or c.kind != "answer"] for n in both}

    def link(benchmark: str, change: Change) -> str | None:
        return links.get((benchmark, change.key))

    if as_json:
        print_json(diff_json(found, link))
        return
    only_one = {n: len(index_records(after[n].records).keys() ^ index_records(before[n].records).keys()) for n in both}
    print_text(diff_text(found, link, limit=show, only_one=only_one))
    if page is not None:
        print_text(f"page: {page}")


def reference(
    run: Candidate,
    out: Annotated[
        Path,
        typer.Argument(help="File to write, e.g. results/baseline.json.gz; a name without .json or .gz is a folder.", show_default=False),
    ],
) -> None:
    """Write a run's scores and records into one file, to be committed and used with --against (or back into a folder)."""
    from harness.gate.decision import GateUsageError
    from harness.gate.files import load_run, run_name, save_reference
    from harness.integrity import edited
    from harness.records import write_evaluation

    with ending(out):
        evaluations = load_run(run)
        change = next((x for x in map(edited, evaluations.values()) if x is not None), None)
        if change is not None:
            stop(f"{run}: {change}", EXIT_CODES["integrity"])
        if out.suffix in (".json", ".gz"):
            save_reference(out, evaluations, name=run_name(run))
        elif out.exists() and any(out.iterdir()):
            raise GateUsageError(f"{out}: there is something in this folder already; name another")
        else:
            for e in evaluations.values():
                write_evaluation(out, e)
    size = f", {out.stat().st_size:,} bytes" if out.is_file() else ""
    typer.echo(f"{out}: {len(evaluations)} benchmarks, {sum(len(e.records) for e in evaluations.values()):,} questions{size}")


@former_options(replace="--force")
def init_ci(
    reference: Annotated[Path, typer.Argument(help="Committed reference file to compare with (see `reference`).", show_default=False)],
    model: Annotated[str | None, typer.Option("--model", "-m", help="Checkpoint folder in the repository, or hub id, to evaluate.")] = None,
    results: Annotated[str | None, typer.Option(help="Instead: folder where an earlier step leaves lmms-eval's results.")] = None,
    provider: Annotated[Provider, typer.Option(help="Whose CI.")] = "github",
    install: Annotated[
        str,
        typer.Option(
            help="What pip installs: a requirement, a git URL, or `-e .` in a checkout here; options of pip too, such as an index "
            "of PyTorch's CPU wheels, which are gigabytes smaller."
        ),
    ] = "videosavi-harness",
    require: RequireOption = "mean",
    inconclusive: InconclusiveOption = "fail",
    twins_seed: Annotated[int, typer.Option(help="Seed of the synthetic benchmarks, where the reference is of those.")] = 1,
    root: Annotated[Path, typer.Option(help="Top folder of the repository to write into.")] = Path(),
    replace: Annotated[bool, typer.Option("--replace", help="Replace files that say something else.")] = False,
) -> None:
    """Write a CI job that evaluates a checkpoint and gates it against a committed reference."""
    from harness.gate.decision import GateUsageError
    from harness.gate.files import load_run
    from harness.gate.output.init_ci import Job, files
    from savi.base.files import write_text_atomic

    with ending(root):
        job = Job(
            reference=reference.as_posix(),
            evaluations=load_run(reference),
            model=model,
            results=results,
            install=install,
            require=require,
            inconclusive=inconclusive,
            twins_seed=twins_seed,
        )
        made = {root / name: text for name, text in files(job, provider).items()}
        other = [p for p, text in made.items() if p.exists() and p.read_text(encoding="utf-8") != text]
        if other and not replace:
            raise GateUsageError(f"{', '.join(map(str, other))} exists and says something else: --replace replaces it")
        for path, text in made.items():
            write_text_atomic(path, text)
    print_text("\n".join(f"wrote {p}" for p in made))


@former_options(num_questions="--n")
def power(
    effect: Annotated[float | None, typer.Option(help="Effect in points: how many questions does it take?")] = None,
    num_questions: Annotated[
        int | None, typer.Option(min=2, help="Questions: what effect can be seen? Default: each benchmark's own number.")
    ] = None,
    discordance: Annotated[float, typer.Option(min=0.1, max=100, help="Percent of questions that change between two models.")] = 12.0,
    per_video: Annotated[float | None, typer.Option(min=1, help="Questions a video; default: each benchmark's own.")] = None,
    icc: Annotated[float, typer.Option(min=0, max=1, help="Intra-video correlation of the differences.")] = 0.05,
    alpha: Alpha = 0.05,
    target: Annotated[float, typer.Option("--power", min=0.5, max=0.999, help="Power.")] = 0.8,
    benchmarks: Benchmarks = None,
    as_json: AsJson = False,
) -> None:
    """What effect can so many questions show, and how many questions does an effect take?"""
    from benchmarks.catalog import select
    from harness.gate.power import power_table, text

    with ending():
        rows = power_table(
            select(names(benchmarks)),
            effect=effect,
            n=num_questions,
            discordance=discordance,
            per_video=per_video,
            icc=icc,
            alpha=alpha,
            power=target,
        )
    typer.echo(json.dumps([asdict(r) for r in rows], indent=1) if as_json else text(rows))


def register(app: typer.Typer) -> None:
    """Mount the gate's commands on the harness's command line."""
    for command in (gate, diff, reference, power):
        app.command()(command)
    app.command("init-ci")(init_ci)
