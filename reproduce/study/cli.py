"""`python -m reproduce study` runs the micro experiment over base models, seeds and variants and keeps small records; `study-table`,
`study-figures` and `study-coverage` make its tables, its pictures, and the proof of its intervals."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from savi.base.cli import KEPT, errors, print_json, stop, tell
from savi.base.errors import ExitCode
from savi.base.files import write_text_atomic
from savi.base.former import former_options, listed

if TYPE_CHECKING:
    from reproduce.study.plan import Plan
    from reproduce.study.records import Questions, Record

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
FrozenOption = Annotated[
    Path | None,
    typer.Option(help="The freezing file that the study keeps to; frozen.yaml beside the records where there is one.", show_default=False),
]
Records = Annotated[Path, typer.Argument(help="The folder with questions.json and records/ (--keep of the study).", show_default=False)]

HEAD = "# Study at scale"


def register(app: typer.Typer) -> None:
    """Mount the commands."""
    app.command(
        "study",
        epilog="Example: python -m reproduce study --bases 12 --rivals no-critique,sft-initial --dry-run",
    )(study_command)
    app.command("study-table", epilog="Example: python -m reproduce study-table runs/study")(table_command)
    app.command("study-figures", epilog="Example: python -m reproduce study-figures runs/study")(figures_command)
    app.command("study-coverage", epilog="Example: python -m reproduce study-coverage --studies 500")(coverage_command)


@former_options(bases="--base")
def study_command(
    bases: Annotated[  # typer copies it
        list[str],
        typer.Option(
            metavar="N|SEED,SEED|FOLDER",
            help="Base models: how many (the recipe's seeds 1 to N, made where they are missing); or recipe seeds (101,102; one alone: "
            "recipe-101), folders, shipped; repeated or with commas.",
        ),
    ] = ["shipped"],  # noqa: B006
    seeds: Annotated[  # typer copies it
        list[str],
        typer.Option(metavar="N|SEED,SEED", help="How many loop seeds a base; or for one base the seeds, repeated or with commas."),
    ] = ["1"],  # noqa: B006
    controls: Annotated[  # typer copies it
        list[str], typer.Option(help="Controls beside the method (reversed, blind, sft), or none; repeated or with commas.")
    ] = ["reversed,blind,sft"],  # noqa: B006
    rivals: Annotated[
        list[str] | None,
        typer.Option(
            help="Rivals: sft-initial, no-critique, other-critic, spatial, temporal; base-critic, lora, replay, early-stop; repeated or "
            "with commas."
        ),
    ] = None,
    scale: Annotated[str, typer.Option(help="micro or smoke.")] = "micro",
    iterations: Annotated[int | None, typer.Option(help="Iterations of each run, of the paper's four by default.", min=1)] = None,
    other_iterations: Annotated[
        int | None,
        typer.Option(
            help="Iterations of controls and rivals, as many as the method's by default; they are compared with it after as many.", min=1
        ),
    ] = None,
    twins_seed: Annotated[int | None, typer.Option(help="Seed of the small benchmarks.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting of the scale, for every run, as training.epochs=2; may be repeated.")
    ] = None,
    frozen: FrozenOption = None,
    freeze: Annotated[Path | None, typer.Option(help="Run nothing: write this study down as a freezing file, to be committed.")] = None,
    tuned: Annotated[
        list[str] | None,
        typer.Option(
            "--tuned-on", metavar="BASE:SEED,SEED", help="With --freeze: a base and loop seeds settings were chosen on; may be repeated."
        ),
    ] = None,
    tuned_twins: Annotated[int, typer.Option("--tuned-twins-seed", help="With --freeze: the questions that they were chosen on.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the runs and of bases that are made.")] = Path("runs/study"),
    base_dir: Annotated[Path | None, typer.Option(help="Where the recipe's bases are, or are made; OUT/bases by default.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Where records, tables and figures go; OUT by default.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Runs at a time, a core each; all cores by default.", min=1)] = None,
    discard: Annotated[bool, typer.Option("--discard", help="Delete a run's folder (40 MB) once its record is kept.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run and for how long; run nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Does self-alignment help, over base models? Runs the method, controls and rivals on each base, and says so with intervals.

    Each run is `python -m reproduce paper` in a process of its own. It leaves a record of a few kB in KEEP/records (each question right or
    wrong after each iteration), and all tables and figures are made of the records. Run the same command again to go on: a run with a
    record is not run again, and one that failed is tried again.

    The interval holds the error of bases, of their loop seeds and of the questions; all variants answer the same questions with the same
    bases and seeds, so differences are paired. To report numbers: choose settings on some bases, write the study down with --freeze on
    others, commit that file, then run with --frozen.

    Exit codes: 0 all runs are there; 2 usage, or a study other than frozen; 4 a broken record; 5 a run failed (the rest is finished).
    """
    from reproduce.study.frozen import FROZEN_FILE, check_frozen
    from reproduce.study.plan import StudyError
    from reproduce.study.records import RECORDS_FOLDER
    from reproduce.study.run import run_study, times
    from savi.base.processes import cores

    with errors(kept=KEPT):
        at_a_time, kept, named = jobs or cores(), keep or out, (*listed(controls), *listed(rivals))
        changed = _settings(settings or [], iterations, twins_seed)
        plan = replace(_plan(",".join(bases), ",".join(seeds), named, scale, changed, out, base_dir), other_iterations=other_iterations)
        _refuse_others(kept)
        if freeze is not None:
            _freeze(plan, freeze, tuned or [], tuned_twins)
            return
        if frozen is None and (kept / FROZEN_FILE).is_file():
            frozen = kept / FROZEN_FILE
        if frozen is not None:
            plan = replace(plan, frozen=check_frozen(frozen, plan))
        else:
            tell("not frozen: settings are not held by a committed file (--freeze); tables and figures say so")
        needed = times(plan, kept, at_a_time)
        if not (dry_run and as_json):
            tell(needed.line())
        if dry_run:
            if as_json:
                print_json({"hours": round(needed.hours, 2), "bases": needed.bases, "source": needed.source, "runs": _named(plan)})
            return
        try:
            run_study(plan, kept, jobs=at_a_time, tell=tell, discard=discard)
        except StudyError:
            if any((kept / RECORDS_FOLDER).glob("*.json")):
                _write_all(kept, frozen, as_json)  # of what there is
            raise
        _write_all(kept, frozen, as_json)


def _named(plan: Plan) -> list[str]:
    return [run.name for run in plan.runs()]


def _refuse_others(folder: Path) -> None:
    """End where a study's README.md would take the place of another one.

    A kept study of the earlier form has study.json beside it.
    """
    readme = folder / "README.md"
    if readme.exists() and ((folder / "study.json").exists() or not readme.read_text(encoding="utf-8", errors="replace").startswith(HEAD)):
        stop(f"{readme} is no table of such a study, and would be replaced; take another --keep", ExitCode.USAGE)


def _settings(texts: list[str], iterations: int | None, twins_seed: int | None) -> dict[str, Any]:
    from reproduce.scale import read_settings

    typed = {"loop.iterations": iterations, "evaluation.twins_seed": twins_seed}
    return read_settings(texts) | {key: value for key, value in typed.items() if value is not None}


def _plan(
    bases: str,
    seeds: str,
    variants: tuple[str, ...],
    scale: str,
    changed: dict[str, Any],
    out: Path,
    base_dir: Path | None,
) -> Plan:
    from reproduce.study.plan import Plan, check_scale, read_bases, read_variants

    check_scale(scale)
    return Plan(out, read_bases(bases, seeds, base_dir or out / "bases"), read_variants(*variants), scale, changed)


def _freeze(plan: Plan, path: Path, tuned: list[str], twins_seed: int) -> None:
    from reproduce.study.frozen import Chosen, freeze

    found = {}
    for text in tuned:
        name, colon, seeds = text.partition(":")
        words = [word for word in seeds.split(",") if word]
        if not colon or not name or not words or not all(word.isdecimal() for word in words):
            stop(f"--tuned-on {text!r}: a base and its loop seeds, as recipe-101:10100,10101", ExitCode.USAGE)
        found[name] = [int(word) for word in words]
    freeze(plan, Chosen(bases=found, twins_seed=twins_seed), path)
    typer.echo(f"{path}: commit it, then run the same study with --frozen {path}")


def _read(folder: Path, frozen: Path | None) -> tuple[Questions, list[Record], str, list[str], float]:
    """The records, what to say of their freezing, the claims that are held against them, and the smallest difference worth having."""
    from reproduce.study.claims import CLAIMS, SMALLEST
    from reproduce.study.frozen import FROZEN_FILE, read_frozen
    from reproduce.study.records import read_records
    from reproduce.study.tables import frozen_line
    from savi.base.digests import sha256_file

    questions, records = read_records(folder)
    path = frozen or folder / FROZEN_FILE
    if frozen is None and not path.is_file():
        there = {record.variant for record in records}
        names = [name for name, claim in CLAIMS.items() if {claim.better.variant, claim.worse.variant} <= there]
        return questions, records, frozen_line(records, {}), names, SMALLEST
    file = read_frozen(path)
    return questions, records, frozen_line(records, {sha256_file(path): file.date.isoformat()}), file.claims, file.smallest_points


def _write_tables(folder: Path, frozen: Path | None, as_json: bool) -> None:
    from harness.tables.study import SUMMARY_FILE
    from reproduce.study.claims import hold
    from reproduce.study.tables import all_tables, summary

    questions, records, said, names, smallest = _read(folder, frozen)
    _refuse_others(folder)
    held = hold(records, questions, names, smallest)
    tables = all_tables(records, questions, held, said, smallest)
    command = "python -m reproduce " + shlex.join(sys.argv[1:])
    figures = "".join(f"![{path.stem}]({path.name})\n" for path in sorted(folder.glob("*.svg")))
    head = f"{HEAD} {records[0].scale}\n\n{said}\n\nMade from records/ by `{command}`.\n\n"
    write_text_atomic(
        folder / "README.md", head + (figures + "\n" if figures else "") + "\n\n".join(t.to_markdown().rstrip() for t in tables) + "\n"
    )
    for name, table in zip(("gains", "claims"), tables, strict=False):
        write_text_atomic(folder / f"{name}.csv", table.to_csv())
    found = summary(records, questions, held, said)
    write_text_atomic(folder / SUMMARY_FILE, json.dumps(found, indent=1) + "\n")
    if as_json:
        print_json(found)
        return
    typer.echo("\n".join(table.to_markdown() for table in tables[:2]))
    typer.echo(str(folder / "README.md"))


def _write_figures(folder: Path, frozen: Path | None) -> list[Path]:
    from reproduce.study.figures import all_figures

    questions, records, said, _, _ = _read(folder, frozen)
    return [write_text_atomic(folder / f"{name}.svg", text) for name, text in all_figures(records, questions, said).items()]


def _write_all(folder: Path, frozen: Path | None, as_json: bool) -> None:
    for path in _write_figures(folder, frozen):
        tell(str(path))
    _write_tables(folder, frozen, as_json)


def table_command(folder: Records, frozen: FrozenOption = None, as_json: AsJson = False) -> None:
    """A study's tables from its records: README.md, gains.csv, claims.csv and summary.json beside them. Runs no model."""
    with errors():
        _write_tables(folder, frozen, as_json)


def figures_command(folder: Records, frozen: FrozenOption = None) -> None:
    """A study's figures from its records: gain against gap, curves over iterations, quality of pairs, as SVG. Runs no model."""
    with errors():
        for path in _write_figures(folder, frozen):
            typer.echo(str(path))


def coverage_command(
    studies: Annotated[int, typer.Option(help="Simulated studies of each kind.", min=10)] = 4000,
    seed: Annotated[int, typer.Option(help="Of the simulation.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write the table as Markdown to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """How often the study's intervals contain the truth, beside other estimators: simulated studies with known variances.

    A minute for 1,000 studies of each of the twelve kinds on one core.
    """
    from dataclasses import asdict

    from reproduce.study.coverage import WORLDS, coverage_table, simulate

    with errors():
        found = [covered for world in WORLDS for covered in simulate(world, studies, seed=seed)]
        text = coverage_table(found, studies).to_markdown()
        if out is not None:
            command = "python -m reproduce " + shlex.join(sys.argv[1:])
            write_text_atomic(out, f"# Whether the study's intervals are right\n\nMade by `{command}`.\n\n{text}")
    if as_json:
        print_json([asdict(covered) for covered in found])
    else:
        typer.echo(text)
