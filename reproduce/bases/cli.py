"""`python -m reproduce bases`: micro bases by seed, each checked against its limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from savi.base.cli import KEPT, errors, stop
from savi.base.errors import ExitCode
from savi.base.former import listed
from savi.base.processes import cores

SHIPPED = "shipped"


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command(
        "bases",
        epilog="Examples: python -m reproduce bases --seeds 1-12 --out runs/study/bases (those that a study of 12 takes); "
        "python -m reproduce bases --check shipped.",
    )(bases_command)


def parse_seeds(words: Sequence[str]) -> tuple[int, ...]:
    """ "1-12", or "1,3" and "5-7", as numbers.

    Raises:
        ValueError: it is neither.
    """
    out: list[int] = []
    for part in listed(words):
        first, _, last = part.partition("-")
        out += range(int(first), int(last or first) + 1)
    if not out:
        raise ValueError(words)
    return tuple(dict.fromkeys(out))


def bases_command(
    seeds: Annotated[  # typer copies it
        list[str], typer.Option(metavar="1-12|SEED,SEED", help="Seeds of the bases; repeated or with commas.")
    ] = ["1"],  # noqa: B006
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the bases (seed-1 and so on); what is finished there is not done again.")
    ] = Path("runs/bases"),
    check: Annotated[
        list[str] | None, typer.Option("--check", help="Make none: check this base (a folder, or: shipped); may be repeated.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Bases at a time, a core each; all cores by default.", min=1)] = None,
) -> None:
    """Make micro bases and check each against the limits: points over chance on six twins, readable questions, right critiques. Exit
    codes: 0 all limits are met, 1 one is not, 5 a base could not be made (see its log; run again)."""
    from reproduce.bases import limits, make
    from reproduce.paper.launch import become_worker

    try:
        numbers = parse_seeds(seeds)
    except ValueError:
        stop(f"--seeds {','.join(seeds)}: as 1-12 or 1,2,5", ExitCode.USAGE)
    given = _given(check or [])
    with errors(kept=KEPT):
        if not given and len(numbers) > 1:
            limits.prepare(out / "checks")
            make.run_all(out, numbers, jobs or cores())
            names = [make.base_folder(out, n).name for n in numbers]
        else:
            become_worker(limits.twins_home(out / "checks").resolve(), device="cpu", small=True)
            limits.prepare(out / "checks")
            if not given:
                make.make_base(out, numbers[0])
                given = {make.base_folder(out, numbers[0]).name: make.base_folder(out, numbers[0])}
            names = list(given)
            for name, folder in given.items():
                make.check_base(folder, out, name)
        found = make.read_all(out, names)
    typer.echo(make.limits_table(found).to_markdown())
    raise typer.Exit(ExitCode.DONE if all(m.passed for m in found.values()) else ExitCode.FAIL)


def _given(words: list[str]) -> dict[str, Path]:
    """Folders of bases by the name that their results are kept under."""
    from reproduce.paper.experiment import shipped_base

    found: dict[str, Path] = {}
    for word in words:
        folder = shipped_base() if word == SHIPPED else Path(word)
        name = SHIPPED if word == SHIPPED else folder.resolve().name
        if not (folder / "config.json").is_file():
            stop(f"--check {word}: no model folder", ExitCode.USAGE)
        if name in found:
            stop(f"--check {word}: another one is named {name}, too; check one after the other with another --out", ExitCode.USAGE)
        found[name] = folder
    return found
