"""Damaged films: no death, and no frame shown in place of another."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.micro.pretrain.recipe import BASE_DIR
from savi.base.files import read_jsonl
from savi.video.frames import Frames, VideoError
from savi.video.prefetch import prefetch
from tests.savi.video.films import FILMS, write_film
from tests.savi.video.mutants import judge, mutants, mutate, verdict

UNSEEN = {
    "gif": "no lengths or checksums",
    "mpegts": "a part can be lost without a trace",
    "mpeg": "a part can be lost without a trace",
    "hevc": "FFmpeg shows what is left in memory where a picture's data ends too early",
}
"""Where damage can show another frame, and why nothing tells of it."""
SEEN = [film for film in FILMS if film.codec not in ("gif", "libx265") and not film.name.endswith((".ts", ".mpg"))]
SEED = int(os.environ.get("MUTANTS_SEED", "1"))
"""With 3 one film shows other frames: a WMV, which has no checksums, that lost three whole ones without a trace."""
USUAL = [film for film in FILMS if film.codec in ("libx264", "mpeg4") and film.name.endswith((".mp4", ".mkv", ".mov"))]


def test_no_frame_of_a_damaged_film_is_another(tmp_path: Path) -> None:
    outcome = judge(USUAL, 80, 0, tmp_path)
    assert outcome.replaced == []
    assert outcome.counts["error: crashed"] == 0
    assert outcome.counts["error: damaged"] > 20
    assert outcome.counts["identical"] + outcome.counts["changed pixels"] > 0  # a fault elsewhere in the file costs nothing


@pytest.mark.slow
def test_of_500_damaged_films_none_dies_and_none_shows_another_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = judge(SEEN, 500, SEED, tmp_path)
    with capsys.disabled():
        print(f"\n500 damaged films: {dict(outcome.counts.most_common())}")
    assert outcome.replaced == []
    assert outcome.counts["error: crashed"] == outcome.counts["error: timeout"] == 0


@pytest.mark.slow
def test_pairs_of_500_damaged_films_leave_out_those_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    films, out = tmp_path / "films", tmp_path / "pairs.jsonl"
    made = {path.name: (path, clean) for _, path, clean in mutants(SEEN, 500, SEED, films)}
    for film in SEEN:
        (films / film.name).unlink()  # the whole ones
    options = ["--model", str(BASE_DIR), "--prompts", "micro", "--questions-per-kind", "1"]
    done = subprocess.run([sys.executable, "-m", "savi", "pairs", str(films), "--out", str(out), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    paths = [path for path, _ in made.values()]
    found = {path.name: verdict(got, made[path.name][1]) for path, got in prefetch(paths, num_frames=8, depth=4)}
    refused = {Path(row["what"]).name for row in read_jsonl(tmp_path / "failures.jsonl")}
    asked = {Path(row["video"]).name for name in ("pairs.jsonl", "dropped.jsonl") for row in read_jsonl(tmp_path / name)}
    with capsys.disabled():
        print(f"\nsavi pairs, 500 damaged films: {len(asked)} asked, {len(refused)} refused; {dict(Counter(found.values()).most_common())}")
    assert refused == {name for name, result in found.items() if result.startswith("error")}
    assert asked == made.keys() - refused
    assert "replaced" not in found.values()


@pytest.mark.slow
def test_films_whose_damage_is_not_seen_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rest = [film for film in FILMS if film not in SEEN]
    outcome = judge(rest, 200, 2, tmp_path)
    with capsys.disabled():
        print(f"\n200 damaged films of {', '.join(UNSEEN)}: {dict(outcome.counts.most_common())}")
    assert outcome.counts["error: crashed"] == outcome.counts["error: timeout"] == 0
    assert len(outcome.replaced) < 20


def test_the_judge_sees_a_replaced_frame() -> None:
    clean = np.arange(5, dtype=np.int16)[:, None, None, None] * np.full((1, 4, 4, 3), 40, np.int16)
    pixels = clean.astype(np.uint8)
    assert verdict(Frames(pixels, tuple(range(5)), 1, 5, 5, ""), clean) == "identical"
    assert verdict(Frames(pixels[[0, 1, 1]], (0, 1, 2), 1, 5, 5, ""), clean) == "replaced"
    assert verdict(Frames(pixels + 3, tuple(range(5)), 1, 5, 5, ""), clean) == "changed pixels"
    assert verdict(Frames(pixels[:4], tuple(range(4)), 1, 4, 4, ""), clean) == "other length"


def heavily_damaged(data: bytes, draw: random.Random) -> bytes:
    """A film with up to 20 faults; or only its first bytes, and noise after them."""
    if draw.random() < 0.2:
        return data[: draw.randrange(1, 200)] + draw.randbytes(draw.randrange(3000))
    for _ in range(draw.randrange(1, 20)):
        _, data = mutate(data or b"\0", draw)
    return data


@pytest.mark.fuzz
def test_500_heavily_damaged_files_give_frames_or_an_error_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(0)
    films = [write_film(tmp_path, film).read_bytes() for film in FILMS]
    paths = []
    for number in range(500):
        film = FILMS[number % len(FILMS)]
        paths.append(tmp_path / f"{number:03}-{film.name}")
        paths[-1].write_bytes(heavily_damaged(films[number % len(FILMS)], draw))
    kinds: Counter[str] = Counter()
    for number, (path, got) in enumerate(prefetch(paths, num_frames=4, depth=4)):
        kinds[got.kind if isinstance(got, VideoError) else "frames"] += 1
        if isinstance(got, VideoError):
            assert "\n" not in str(got), path.name
            assert str(path) not in got.reason
        if number % 10 == 0:
            again = next(outcome for _, outcome in prefetch([path], num_frames=4))
            same = (again.kind, again.reason) if isinstance(again, VideoError) else again.pixels.tobytes()
            assert same == ((got.kind, got.reason) if isinstance(got, VideoError) else got.pixels.tobytes()), path.name
    with capsys.disabled():
        print(f"\n500 heavily damaged files: {dict(kinds.most_common())}")
    assert kinds["crashed"] == kinds["timeout"] == 0
