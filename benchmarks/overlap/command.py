"""`python -m benchmarks overlap`: what it prints and writes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.benchmark import Benchmark
from benchmarks.data.archives import VIDEO_SUFFIXES
from benchmarks.data.layout import fix_command
from benchmarks.overlap.overlap import Comparison, compare, summary, to_csv
from savi.base.cli import bar, print_json, stop
from savi.base.errors import ExitCode
from savi.base.files import visible_files, write_text_atomic

SHOWN = 20
"""Rows of the table that are printed; the file has all."""
SIZES = (4_000, 12_000)
"""Training and benchmark videos whose comparison is timed."""


def run(videos: Path, hf_home: Path, benchmarks: Sequence[Benchmark], *, out: Path | None, as_json: bool) -> ExitCode:
    """Compare, print and write. `FAIL`: some training videos are benchmark videos; `MACHINE`: none, but not all could be compared."""
    paths = sorted(p for p in visible_files(videos) if p.suffix.lower() in VIDEO_SUFFIXES - {".jpg", ".png"})
    if not paths:
        stop(f"--videos {videos}: no video in this folder", ExitCode.USAGE)
    with bar("videos") as progress:
        found = compare(paths, videos, hf_home, benchmarks, progress=progress)
    if out is not None:
        write_text_atomic(out, to_csv(found.overlaps))
    if as_json:
        print_json({**asdict(found), "excluded": found.excluded})
        return _exit_code(found, hf_home)
    if found.overlaps:
        t = Table("training video", "benchmark", "its video", "evidence", "alike", "questions")
        for o in found.overlaps[:SHOWN]:
            alike = "-" if o.evidence == "name" else f"{o.share:.0%}{', mirrored' if o.mirrored else ''}"
            t.add_row(o.training, o.benchmark, o.video, o.evidence, alike, str(o.questions))
        if len(found.overlaps) > SHOWN:
            t.add_row(f"and {len(found.overlaps) - SHOWN:,} more", "", "", "", "", "")
        Console(width=None if sys.stdout.isatty() else 160).print(t)
    for line in summary(found, benchmarks):
        typer.echo(line)
    return _exit_code(found, hf_home)


def _exit_code(found: Comparison, hf_home: Path) -> ExitCode:
    if absent := [name for name, n in found.compared.items() if not n]:
        typer.echo(f"error: not compared: {', '.join(absent)}; {fix_command(hf_home, ' '.join(absent))}", err=True)
    return ExitCode.FAIL if found.excluded else ExitCode.MACHINE if absent else ExitCode.DONE


def measure(clips: int, *, as_json: bool) -> None:
    """Print the rates, and how long decoding and comparing take."""
    from benchmarks.overlap import measure as m

    with bar("clips") as progress:
        rates, decode_s = m.measure(clips, progress=progress)
    seconds = m.time_comparison(*SIZES)
    if as_json:
        print_json({"rates": [asdict(r) for r in rates], "decode_s": decode_s, "compare_s": seconds, "compared": SIZES})
        return
    t = Table("clips", "change", "found", "of", "false alarms", title="copies found by look")
    for r in rates:
        t.add_row(r.clips, r.change, f"{r.found:,}", f"{r.n:,}", f"{r.false_alarms:,} of {r.n:,}")
    Console(width=None if sys.stdout.isatty() else 160).print(t)
    typer.echo(f"{SIZES[0]:,} videos against {SIZES[1]:,}, hashes made up: {seconds:.0f} s with two threads")
    typer.echo("decoding and hashing one clip: " + ", ".join(f"{kind} {1000 * s:.0f} ms" for kind, s in decode_s.items()))
