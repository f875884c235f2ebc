"""Before anything is trained: which of the user's training videos are benchmark videos, and what the tables say of it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from benchmarks.catalog import CATALOG, select
from reproduce.stages import Progress
from savi.base.files import write_text_atomic

OVERLAP_FILE = "data/overlap.csv"


def find_overlap(
    videos: Sequence[Path], folder: Path, hf_home: Path, names: Sequence[str] | None, out: Path, progress: Progress, *, exclude: bool
) -> str:
    """Compare the training videos with the benchmarks' and write the table; returns a line for people."""
    from benchmarks.overlap.overlap import compare, to_csv

    chosen = select(names)
    found = compare(videos, folder, hf_home, chosen, progress=progress)
    write_text_atomic(out, to_csv(found.overlaps))
    if not found.excluded:
        return f"none of {len(videos):,} training videos is among the benchmarks' {sum(found.compared.values()):,}"
    each = [(b.title, len({o.training for o in found.overlaps if o.benchmark == b.name})) for b in chosen]
    what = "they are left out" if exclude else "they are trained on (--exclude leaves them out)"
    counts = ", ".join(f"{title} {n:,}" for title, n in each if n)
    return f"{len(found.excluded):,} of {len(videos):,} training videos are benchmark videos ({counts}), listed in {OVERLAP_FILE}; {what}"


def readable(name: str) -> str:
    """A file's name as the table has it: bytes that are no UTF-8 spelled out."""
    return name.encode("utf-8", "backslashreplace").decode()


def overlapping(path: Path) -> dict[str, set[str]]:
    """Training videos in the table, by benchmark; nothing where there is no table."""
    out: dict[str, set[str]] = {}
    if path.exists():
        with path.open(encoding="utf-8", newline="") as f:
            for row in csv.DictReader(f):
                out.setdefault(row["benchmark"], set()).add(row["training"])
    return out


def notes(path: Path, names: Sequence[str] | None, *, paper: bool, exclude: bool) -> list[str]:
    """What stands below the tables: benchmarks whose videos were trained on, by us and (beside its rows) by the paper."""
    out = []
    found = overlapping(path)
    if found and not exclude:
        counts = ", ".join(f"{CATALOG[b].title} {len(found[b]):,}" for b in CATALOG if b in found)
        out.append(f"Trained on videos of the benchmarks ({counts}): these scores are not of unseen videos.")
    if paper:
        out += [b.shared_videos for b in select(names) if b.shared_videos]
    return out
