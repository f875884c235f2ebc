"""Makes micro bases, one a seed, and checks each; what is finished is not done again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.tables.table import Cell, Row, Table
from reproduce.bases.limits import CRITIQUE, OVER_CHANCE, READABLE, RESULT_FILE, Measured, measure, read_measured, write_measured
from reproduce.runner import Runner, Task
from savi.base.cli import tell
from savi.base.digests import parse_json
from savi.base.errors import ExitCode, SaviError, UsageError
from savi.base.files import make_folder
from savi.base.lock import lock_file

if TYPE_CHECKING:
    from benchmarks.micro.pretrain.recipe import Recipe


class BaseFailedError(SaviError, RuntimeError):
    """Making a base ended badly: names the log."""


def base_folder(out: Path, seed: int) -> Path:
    """Where the base of a seed is."""
    return out / f"seed-{seed}"


def checks_folder(out: Path, name: str) -> Path:
    """Where what was measured of a base is kept."""
    return out / "checks" / name


def make_base(out: Path, seed: int) -> None:
    """Train the base of a seed, unless it is there.

    Raises:
        UsageError: the folder holds a base of another recipe.
    """
    from benchmarks.micro.pretrain.recipe import Recipe, rebuild

    folder, recipe = base_folder(out, seed), replace(Recipe(), seed=seed)
    with lock_file(folder):
        if not _is_made(folder, recipe):
            rebuild(folder, recipe)


def _is_made(folder: Path, recipe: Recipe) -> bool:
    path = folder / "training.json"
    if not path.is_file():
        return False
    try:
        by = parse_json(path.read_text(encoding="utf-8"))["recipe"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: does not say by which recipe the base was made; take another --out, or delete {folder}") from error
    wanted = asdict(recipe)
    if by != wanted:
        other = [k for k in {**wanted, **by} if by.get(k) != wanted.get(k)]
        raise UsageError(f"{folder}: a base of another recipe ({', '.join(other)} differ); take another --out, or delete the folder")
    return True


def check_base(base: Path, out: Path, name: str) -> Measured:
    """Measure a base and keep what came out."""
    folder = checks_folder(out, name)
    make_folder(folder)
    found = measure(base, out / "checks", folder)
    write_measured(folder / RESULT_FILE, found)
    return found


def run_all(out: Path, seeds: Sequence[int], jobs: int) -> None:
    """Make and check the bases of several seeds, a process each, `jobs` at a time, each with its log.

    Raises:
        BaseFailedError: one ended badly; the others are finished first.
    """
    make_folder(out)
    runner = Runner(out, jobs, tell, stage="bases", ends=(ExitCode.DONE, ExitCode.FAIL))
    command = [sys.executable, "-m", "reproduce", "bases", "--out", str(out), "--seeds"]
    runner.all([Task(base_folder(out, seed).name, partial(list, [*command, str(seed)])) for seed in seeds])
    if runner.failed:
        raise BaseFailedError("; ".join(runner.failed) + "; fix it and run the command again")


def read_all(out: Path, names: Sequence[str]) -> dict[str, Measured]:
    """What was measured of bases, by name."""
    return {name: read_measured(checks_folder(out, name) / RESULT_FILE) for name in names}


def limits_table(found: dict[str, Measured]) -> Table:
    """A row a base: every twin's points over chance, what its questions and critiques are worth, and whether all limits are met."""
    twins = list(next(iter(found.values())).twins)

    def cells(m: Measured) -> tuple[Cell, ...]:
        each = [(f"{v.measured:+.1f}" if i < len(twins) else f"{v.measured:.1f}", v) for i, v in enumerate(m.limits)]
        marked = [Cell(v.measured, text if v.met else f"{text} (below)") for text, v in each]
        return (
            Cell(m.mean_pct, f"{m.mean_pct:.1f}"), *marked, Cell(m.direct_pct, f"{m.direct_pct:.1f}"), Cell(m.gap, f"{m.gap:+.1f}"),
            Cell(None, "met" if m.passed else "not met"),
        )  # fmt: skip

    return Table(
        title="Micro bases against the limits",
        scale="micro",
        label_title="base",
        columns=("mean", *twins, "readable %", "revised right %", "direct right %", "gap", "limits"),
        rows=tuple(Row(name, cells(m)) for name, m in found.items()),
        notes=(
            f"Twins: points over chance, at least {OVER_CHANCE:g}. Questions that can be read: at least {READABLE:g} %; revised answers "
            f"that are right: at least {CRITIQUE:g} %. The gap is revised minus direct.",
        ),
    )
