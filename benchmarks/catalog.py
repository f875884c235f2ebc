"""The benchmarks by name: the paper's six, and optional ones. What is known of one stands in its own file.

To add one: write its file and name it in `MODULES`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks import egoschema, longvideobench, mvbench, nextqa, perceptiontest, tempcompass, videomme
from benchmarks.benchmark import Benchmark
from savi.base.errors import ExitCode, SaviError

MODULES = (tempcompass, perceptiontest, nextqa, mvbench, egoschema, longvideobench, videomme)
"""In the order of the paper's columns, optional ones last."""
CATALOG: dict[str, Benchmark] = {m.BENCHMARK.name: m.BENCHMARK for m in MODULES}
PAPER = tuple(name for name, b in CATALOG.items() if not b.optional)
"""Names of the benchmarks of the paper's main table."""


class UnknownBenchmarkError(SaviError, ValueError):
    """A benchmark name that is not in the catalog; the message lists those that are."""

    exit_code = ExitCode.USAGE


def select(names: Sequence[str] | None) -> list[Benchmark]:
    """The named benchmarks in catalog order (the paper's for None or an empty list).

    Raises:
        UnknownBenchmarkError: a name is not in the catalog.
    """
    wanted = names or PAPER
    unknown = [n for n in wanted if n not in CATALOG]
    if unknown:
        raise UnknownBenchmarkError(f"unknown benchmark {', '.join(map(repr, unknown))}; choose from {', '.join(CATALOG)}")
    return [b for b in CATALOG.values() if b.name in wanted]


def of_task(task: str) -> Benchmark | None:
    """The benchmark that an lmms-eval task belongs to."""
    return next((b for b in CATALOG.values() if task in b.tasks), None)


def in_mean(names: Iterable[str]) -> list[str]:
    """Those of `names` that a mean over benchmarks is made of: the paper's, or all where none of them is."""
    names = list(names)
    return [n for n in names if n in PAPER] or names
