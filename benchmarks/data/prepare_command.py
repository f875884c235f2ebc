"""`python -m benchmarks prepare`: all refusals first, then one benchmark after the other; one that fails does not end the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.benchmark import Benchmark
from benchmarks.data.layout import DatasetError, check
from benchmarks.data.prepare import Plan, Tell, carry_out, check_room, describe, make_plan, refuse_early
from benchmarks.data.source import FolderSource
from savi.base.cli import bar


def offline_state(hf_home: Path, benchmark: Benchmark) -> str:
    """What is there and what fetching would mean, without a network."""
    status = check(hf_home, benchmark)
    if status.ready:
        return f"{benchmark.name}: ready, {status.n:,} questions on {status.videos:,} videos"
    gated = " (gated: accept the licence, log in)" if benchmark.gated else ""
    return (
        f"{benchmark.name}: the repository {benchmark.repo} holds about {benchmark.download_gb:g} GB{gated}; "
        f"--plan says what of it the questions need, --download fetches that to {hf_home}"
    )


def run(
    hf_home: Path, wanted: Sequence[Benchmark], *, tasks: Sequence[str], folder: Path | None, update: bool, fetch: bool, tell: Tell
) -> list[str]:
    """Prepare the benchmarks; returns the names of those that are not complete then.

    Raises:
        DatasetError: a refusal that comes before anything is fetched: no login for a gated set, or no room on the disk.
    """
    if folder is None:
        refuse_early(wanted)
    plans, failed = _plans(hf_home, wanted, tasks, folder, update, tell)
    for line in describe(plans):
        tell(line)
    if fetch:
        check_room(hf_home, plans)
        for plan in plans:
            name = plan.benchmark.name
            try:
                with bar(name) as progress:
                    carry_out(hf_home, plan, progress)
            except DatasetError as e:
                tell(f"error: {e}")
                failed.append(name)
                continue
            failed += [] if _finished(hf_home, plan, bool(tasks), tell) else [name]
    return failed


def _plans(
    hf_home: Path, wanted: Sequence[Benchmark], tasks: Sequence[str], folder: Path | None, update: bool, tell: Tell
) -> tuple[list[Plan], list[str]]:
    plans, failed = [], []
    for benchmark in wanted:
        try:
            source = FolderSource(folder) if folder is not None else None
            plans.append(make_plan(hf_home, benchmark, source=source, tasks=tasks, update=update, tell=tell))
        except DatasetError as e:
            tell(f"error: {e}")
            failed.append(benchmark.name)
    return plans, failed


def _finished(hf_home: Path, plan: Plan, part: bool, tell: Tell) -> bool:
    benchmark = plan.benchmark
    status = check(hf_home, benchmark)
    missing = [v for v in status.missing if not part or v in plan.needed]
    tell(f"{benchmark.name}: {status.n:,} questions on {status.videos:,} videos, {len(missing):,} files missing")
    if missing:
        tell(f"error: {benchmark.name} is not complete: {', '.join(missing[:5])}; the repository's files do not hold them")
    elif not part and status.n != status.n_expected:
        tell(
            f"error: {benchmark.name}: {status.n:,} questions, {status.n_expected:,} expected; "
            f"see `python -m benchmarks doctor {benchmark.name}`"
        )
        return False
    return not missing
