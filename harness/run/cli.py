"""`python -m harness evaluate`: measure one checkpoint on the benchmarks and say what came out.

Exit codes: 0 measured, 2 usage, 4 not every question of a set was asked, 5 infrastructure (no model, no data, no space).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.options import DataOption
from savi.base.cli import KEPT, errors, print_json, stop, tell
from savi.base.errors import ExitCode
from savi.base.fail_over import FailOver, stop_over
from savi.base.former import former_options, listed
from savi.base.limit_flags import decode_limits

if TYPE_CHECKING:
    from harness.records import Evaluation


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command()(evaluate)


@former_options(data="--hf-home")
@decode_limits
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="FOLDER|micro", help="A checkpoint folder (native transformers classes).", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for <benchmark>/{questions.jsonl, score.json}.", show_default=False)],
    data: DataOption = None,
    benchmarks: Annotated[
        list[str] | None, typer.Option("--benchmarks", help="Only these benchmarks (default: the paper's six); repeated or with commas.")
    ] = None,
    num_frames: Annotated[
        int | None,
        typer.Option("--num-frames", "-n", help="Frames shown of each video (default: 8 on the synthetic twins, 32 else).", min=1),
    ] = None,
    scale: Annotated[
        str, typer.Option(help="What the scores are labelled with: micro, 8b, ...; only scores of one scale are compared.")
    ] = "micro",
    limit: Annotated[int | None, typer.Option(help="At most this many questions of each lmms-eval task.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed of upstream's random guesses.")] = 0,
    batch: Annotated[int | None, typer.Option(help="Questions asked together (default: by the model's size).", min=1)] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer where a task sets no limit.", min=1)] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Lose a finished result in --out that was made from something else.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try videos again that could not be read before.")] = False,
    fail_over: FailOver = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Measure a checkpoint through lmms-eval's own tasks, offline. Run it again to go on after an interruption."""
    from harness.run.offline import offline_environment

    home = (data or Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))).expanduser().resolve()
    with errors():
        os.environ.update(offline_environment(home))  # before anything imports datasets or lmms_eval
    from benchmarks.data.layout import has_twins
    from harness.run import evaluate as harness_evaluate

    frames = num_frames or (8 if has_twins(home) else 32)
    names = listed(benchmarks) or None
    with errors(kept=KEPT), _Bars(quiet=as_json) as bars:
        done = harness_evaluate.evaluate(
            model, benchmarks=names, hf_home=home, out=out, num_frames=frames, scale=scale, limit=limit, seed=seed, progress=bars.show,
            batch=batch, max_new_tokens=max_new_tokens, replace=replace, retry_failed=retry_failed, tell=tell,
        )  # fmt: skip
    if int(os.environ.get("WORLD_SIZE") or 1) > 1 and os.environ.get("RANK") != "0":
        return  # the first process tells
    if as_json:
        print_json({name: asdict(e.score) for name, e in done.items()})  # type: ignore[call-overload]
    else:
        print_scores(done, out)
    stop_over(fail_over, len(harness_evaluate.failures(done)), sum(e.score.n for e in done.values()), "questions")
    parts = [f"{e.score.benchmark}: {e.score.n:,} of {e.score.n_expected:,}" for e in done.values() if e.score.n != e.score.n_expected]
    if parts and limit is not None:
        tell(f"a part of the questions was asked, as --limit {limit} says ({'; '.join(parts)}): no score to compare with others")
    elif parts:
        stop(f"not comparable: not every question was asked ({'; '.join(parts)})", ExitCode.BROKEN)


def print_scores(done: Mapping[str, Evaluation], out: Path) -> None:
    """The scores as a table, with n asked of n expected, chance, and how answers were read."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from harness.escape import visible

    scale = next(iter(done.values())).score.scale if done else ""
    t = Table(
        "benchmark",
        "n",
        "expected",
        "videos",
        "upstream",
        "strict",
        "± SE",
        "chance",
        "answers",
        title=escape(visible(f"scores in percent, scale {scale}, in {out}")),
    )
    for e in done.values():
        s = e.score
        how = ", ".join(f"{v:,} {k}" for k, v in s.statuses.items())
        t.add_row(
            s.benchmark, f"{s.n:,}", f"{s.n_expected:,}", f"{s.videos:,}", f"{s.upstream_pct:.1f}", f"{s.strict_pct:.1f}",
            f"{s.se_pct:.1f}", f"{s.chance_pct:.1f}", how
        )  # fmt: skip
    if len(done) > 1:
        scores = [e.score for e in done.values()]
        means = [sum(getattr(s, k) for s in scores) / len(scores) for k in ("upstream_pct", "strict_pct", "chance_pct")]
        t.add_section()
        t.add_row(
            "mean",
            f"{sum(s.n for s in scores):,}",
            f"{sum(s.n_expected for s in scores):,}",
            "",
            f"{means[0]:.1f}",
            f"{means[1]:.1f}",
            "",
            f"{means[2]:.1f}",
            "",
        )
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(t)
    for s in (e.score for e in done.values() if e.score.to_judge):
        judged = f"{s.benchmark}: lmms-eval would send {s.to_judge:,} of {s.n:,} answers to its judge"
        console.print(f"{judged}; upstream is lmms-eval's only where no judge answers", highlight=False, markup=False)


class _Bars:
    """A progress bar a benchmark on stderr."""

    def __init__(self, *, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True, quiet=quiet)
        self._bars = Progress(
            TextColumn("{task.description:16}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
        )
        self._ids: dict[str, Any] = {}

    def __enter__(self) -> _Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, benchmark: str, done: int, total: int) -> None:
        """Set a benchmark's bar."""
        if benchmark not in self._ids:
            self._ids[benchmark] = self._bars.add_task(benchmark, total=total)
        self._bars.update(self._ids[benchmark], completed=done, total=total)
