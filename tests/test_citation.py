"""CITATION.cff says the paper as results/paper/README.md does, and the version of the package."""

from __future__ import annotations

import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_software() -> None:
    assert CITATION["cff-version"] == "1.2.0" and CITATION["message"] and CITATION["authors"]
    assert (CITATION["title"], CITATION["version"], CITATION["license"]) == (PROJECT["name"], PROJECT["version"], PROJECT["license"])


def test_the_paper() -> None:
    paper = CITATION["preferred-citation"]
    said = (ROOT / "results/paper/README.md").read_text(encoding="utf-8")
    assert f"({' and '.join(author['family-names'] for author in paper['authors'])}, COLM {paper['year']}, arXiv 2412.00624)" in said
    assert paper["url"] == PROJECT["urls"]["Paper"] == "https://arxiv.org/abs/2412.00624"
