"""What the study in results/study found, for the end of a run and its report: a line, and the figures. Knows its summary.json and SVG files
alone."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError

STUDY_DIR = Path(__file__).resolve().parents[2] / "results" / "study"
"""This project's study; `python -m reproduce study-table results/study` makes its summary.json from its records."""
SUMMARY_FILE = "summary.json"
FIGURES = {
    "gain_by_gap": "Gain against the gap of the base",
    "curves": "Gain over iterations",
    "pairs": "What the method's pairs were worth",
}
"""A study's figures, NAME.svg in its folder, with their titles."""

_SAID = {"holds": "a gain", "does not hold": "no gain worth having", "not decided": "a gain is not established", "not run": "not run"}


class Effect(BaseModel):
    """A difference in points, over `n` base models, with its 95 % interval."""

    n: Annotated[int, Field(ge=1)]
    points: float
    low: float
    high: float


class StudyClaim(BaseModel):
    """A claim of the study and its verdict."""

    id: str
    effect: Effect | None
    verdict: Literal["holds", "does not hold", "not decided", "not run"]


class StudyResult(BaseModel):
    """The part of a study's summary.json that is said elsewhere."""

    scale: str
    gains: dict[str, list[Effect | None]]
    claims: list[StudyClaim]


@dataclass(frozen=True)
class Figure:
    """A picture of the study: its title, and the file as an address that a page can hold (data:)."""

    title: str
    address: str


@dataclass(frozen=True)
class Study:
    """What is said of a study beside a run of the same scale. `line`: its result, with how far one run can be trusted."""

    line: str
    figures: tuple[Figure, ...]


def read_study(scale: str, folder: Path = STUDY_DIR) -> Study | None:
    """The study of this scale; None where there is none, or its summary cannot be read. A figure that is not there is left out.

    One run is one base model with one seed, so its own numbers say little.
    """
    try:
        found = StudyResult.model_validate_json((folder / SUMMARY_FILE).read_bytes())
    except (OSError, ValidationError):
        return None
    gain = next((claim for claim in found.claims if claim.id == "gain"), None)
    if found.scale != scale or gain is None or gain.effect is None:
        return None
    e, steps = gain.effect, len(found.gains.get("dpo", []))
    mean = f"{e.points:+.1f} points [{e.low:+.1f}, {e.high:+.1f}] after {steps} iteration{'s' * (steps > 1)}"
    line = f"one run says little; the study over {e.n} base models: {mean}: {_SAID[gain.verdict]} (results/study)"
    there = [(title, path) for name, title in FIGURES.items() if (path := folder / f"{name}.svg").is_file()]
    return Study(line, tuple(Figure(title, _address(path)) for title, path in there))


def _address(path: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
