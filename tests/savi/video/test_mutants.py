"""Damaged films: no death, and no frame shown in place of another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from savi.video.frames import Frames
from tests.savi.video.films import FILMS
from tests.savi.video.mutants import judge, verdict

NO_CHECKS = {"gif.gif", "mpeg2.mpg", "mpeg1.mpg", "mpeg2.ts"}
"""Containers from which a part can be lost without a trace: no lengths, no numbers, no checksums, and times that only decoders know."""
CHECKED = [film for film in FILMS if film.name not in NO_CHECKS]
USUAL = [film for film in FILMS if film.codec in ("libx264", "mpeg4") and film.name.endswith((".mp4", ".mkv", ".mov"))]


def test_no_frame_of_a_damaged_film_is_another(tmp_path: Path) -> None:
    outcome = judge(USUAL, 80, 0, tmp_path)
    assert outcome.replaced == []
    assert outcome.counts["error: crashed"] == 0
    assert outcome.counts["error: damaged"] > 20
    assert outcome.counts["identical"] + outcome.counts["changed pixels"] > 0  # a fault elsewhere in the file costs nothing


@pytest.mark.slow
def test_of_500_damaged_films_none_dies_and_none_shows_another_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = judge(CHECKED, 500, 1, tmp_path)
    with capsys.disabled():
        print(f"\n500 damaged films: {dict(outcome.counts.most_common())}")
    assert outcome.replaced == []
    assert outcome.counts["error: crashed"] == outcome.counts["error: timeout"] == 0


def test_the_judge_sees_a_replaced_frame() -> None:
    clean = np.arange(5, dtype=np.int16)[:, None, None, None] * np.full((1, 4, 4, 3), 40, np.int16)
    pixels = clean.astype(np.uint8)
    assert verdict(Frames(pixels, tuple(range(5)), 1, 5, 5, ""), clean) == "identical"
    assert verdict(Frames(pixels[[0, 1, 1]], (0, 1, 2), 1, 5, 5, ""), clean) == "replaced"
    assert verdict(Frames(pixels + 3, tuple(range(5)), 1, 5, 5, ""), clean) == "changed pixels"
    assert verdict(Frames(pixels[:4], tuple(range(4)), 1, 4, 4, ""), clean) == "other length"
