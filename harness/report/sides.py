"""Two evaluations side by side: a page of them, or the place in a run's report where a question of both is shown."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlencode

from harness.records import Evaluation, Key, RecordError, evaluation_folder
from harness.report.browse.frames import Budget
from harness.report.browse.media import find_data_folder, link_from
from harness.report.browse.questions import question_rows
from harness.report.data import RunData, Stage, side_by_side
from harness.report.page import REPORT_FILE, render
from harness.report.read import read_run, read_settings
from savi.base.files import write_text_atomic

Addresses = Mapping[tuple[str, Key], str]
"""Where each question of a benchmark is shown."""


def stage_place(path: Path) -> tuple[Path, str] | None:
    """The run folder and the stage (`base`, `iter-2`) that a path names; None for what is no stage of a run."""
    if not path.is_dir():
        return None
    try:
        folder = evaluation_folder(path.resolve())
    except RecordError:
        return None
    stage = folder.parent if folder.name == "eval" else folder
    return (stage.parent, stage.name) if re.fullmatch(r"base|iter-\d+", stage.name) else None


def _near(path: Path) -> str:
    """A path as one would type it from here."""
    here = Path(os.path.relpath(path)) if path.is_relative_to(Path.cwd()) else path
    return here.as_posix()


def _addresses(run: RunData, page: Path, first: str, second: str) -> Addresses:
    query = urlencode({"from": first, "to": second})
    return {(row.benchmark, row.key): f"{_near(page.absolute())}#{row.address}?{query}" for row in question_rows(run)}


def report_addresses(candidate: Path, reference: Path) -> Addresses:
    """Where a run's report shows the questions of two of its stages; empty where they are not of one run, or it has no report."""
    mine, other = stage_place(candidate), stage_place(reference)
    if mine is None or other is None or mine[0] != other[0] or not (mine[0] / REPORT_FILE).is_file():
        return {}
    return _addresses(read_run(mine[0]), mine[0] / REPORT_FILE, other[1], mine[1])


def _title(path: Path) -> str:
    place = stage_place(path)
    return f"{place[0].name}/{place[1]}" if place else path.resolve().name


Side = tuple[Path, Mapping[str, Evaluation]]
"""An evaluation, and the path that it came from."""


def write_comparison(out: Path, candidate: Side, reference: Side, *, data: Path | None = None) -> Addresses:
    """Write a page of two evaluations and return where it shows each question."""
    stages = [
        Stage("reference", f"Reference {_title(reference[0])}", "reference", dict(reference[1])),
        Stage("candidate", f"Candidate {_title(candidate[0])}", "candidate", dict(candidate[1])),
    ]
    run = side_by_side(candidate[0], f"{_title(candidate[0])} against {_title(reference[0])}", stages)
    places = [p[0] for p in map(stage_place, (candidate[0], reference[0])) if p is not None]
    found = data or next((d for p in places if (d := find_data_folder(p, read_settings(p))) is not None), None)
    write_text_atomic(out, render(run, link=link_from(out), data=found, budget=Budget()))
    return _addresses(run, out, "reference", "candidate")
