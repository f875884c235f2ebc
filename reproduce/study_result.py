"""What the study in results/study found, in a line for the end of a run. Knows its summary.json alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError

STUDY_DIR = Path(__file__).resolve().parents[1] / "results" / "study"
"""This project's study; `python -m reproduce study-table results/study` makes its summary.json from its records."""
SUMMARY_FILE = "summary.json"


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


def study_line(scale: str, folder: Path = STUDY_DIR) -> str | None:
    """What the study found of a run of this scale; None where there is no study of it, or its summary cannot be read.

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
    mean = f"{e.points:+.1f} points [{e.low:+.1f}, {e.high:+.1f}] after {steps} iterations"
    return f"one run says little; the study over {e.n} base models: {mean}: {_SAID[gain.verdict]} (results/study)"
