"""The micro world: scenes obey their rules, pictures show what scenes say, and video coding keeps it."""

from __future__ import annotations

import random
from pathlib import Path

import av
import numpy as np
import pytest

from benchmarks.micro.world import world as w
from benchmarks.micro.world.videos import build_videos, write_mp4
from benchmarks.micro.world.world import Scene, Thing, cell, chroma_round_trip, make_scene, place, render, scene_rng

SCENES = [make_scene(random.Random(f"test/{i}")) for i in range(150)]


def _thing(**changes: object) -> Thing:
    spec: dict[str, object] = {
        "color": "red",
        "shape": "square",
        "direction": "right",
        "speed": "fast",
        "radius": 8.0,
        "first": 0,
        "last": 7,
        "path": tuple((12.0 + 5 * t, 20.0) for t in range(8)),
        "later_color": None,
        "change": None,
    }
    return Thing(**(spec | changes))  # type: ignore[arg-type]


def test_things_stay_inside_and_apart() -> None:
    for s in SCENES:
        assert len({t.color for t in s.things}) == len(s.things)
        assert any(t.first == 0 for t in s.things)
        for t in s.things:
            for f in range(t.first, t.last + 1):
                assert all(t.radius <= v <= w.SIZE - t.radius for v in t.path[f])
        for i, a in enumerate(s.things):
            for b in s.things[:i]:
                for f in range(max(a.first, b.first), min(a.last, b.last) + 1):
                    assert np.hypot(*np.subtract(a.path[f], b.path[f])) > a.radius + b.radius


def test_path_goes_the_named_way() -> None:
    for s in SCENES:
        for t in s.things:
            dx, dy = t.end[0] - t.start[0], t.end[1] - t.start[1]
            assert {"left": dx < -5, "right": dx > 5, "up": dy < -5, "down": dy > 5, "still": dx == dy == 0}[t.direction]
            assert (abs(dx) + abs(dy) > 20) == (t.speed == "fast")


def test_render_shows_the_colour_only_while_the_thing_is_there() -> None:
    frames = render(Scene((_thing(first=2, last=5),), 0))
    for f in range(8):
        x, y = 12 + 5 * f, 20
        assert tuple(frames[f, y, x]) == (w.COLORS["red"] if 2 <= f <= 5 else (0, 0, 0))


def test_render_changes_colour_at_the_named_frame() -> None:
    frames = render(Scene((_thing(later_color="blue", change=4),), 20))
    seen = [tuple(frames[f, 20, 12 + 5 * f]) for f in range(8)]
    assert seen == [w.COLORS["red"]] * 4 + [w.COLORS["blue"]] * 4


@pytest.mark.parametrize("shape", w.SHAPES)
def test_shapes_differ(shape: str) -> None:
    pictures = {s: render(Scene((_thing(shape=s, direction="still"),), 0))[0].astype(int) for s in w.SHAPES}
    for other in w.SHAPES:
        if other != shape:
            assert np.abs(pictures[shape] - pictures[other]).sum() > 5_000


def test_events_are_exclusive() -> None:
    assert _thing().event == "stays"
    assert _thing(first=3).event == "appears"
    assert _thing(last=4).event == "vanishes"
    assert _thing(later_color="blue", change=3).event == "changes"


@pytest.mark.parametrize(("xy", "name"), [((1, 1), "topleft"), ((63, 1), "topright"), ((1, 63), "bottomleft"), ((40, 40), "bottomright")])
def test_place(xy: tuple[float, float], name: str) -> None:
    assert place(*xy) == name


def test_cell_covers_the_frame() -> None:
    assert [cell(v) for v in (0, 7.9, 8, 63.9, 64, -1)] == [1, 1, 2, 8, 8, 1]


def test_mp4_shows_what_training_arrays_show(tmp_path: Path) -> None:
    frames = render(SCENES[0])
    write_mp4(tmp_path / "a.mp4", frames)
    with av.open(str(tmp_path / "a.mp4")) as c:
        read = np.stack([f.to_ndarray(format="rgb24") for f in c.decode(video=0)])
    assert read.shape == frames.shape
    assert np.abs(read.astype(int) - chroma_round_trip(frames)).mean() < 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_videos_are_the_same_however_many_are_made(tmp_path: Path) -> None:
    few, many = build_videos(tmp_path / "few", 2, seed=7), build_videos(tmp_path / "many", 4, seed=7)
    assert [p.read_bytes() for p in few] == [p.read_bytes() for p in many[:2]]
    assert many[0].read_bytes() != many[1].read_bytes()


def test_unlabelled_folder_holds_nothing_but_videos(tmp_path: Path) -> None:
    build_videos(tmp_path, 3, seed=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0000.mp4", "0001.mp4", "0002.mp4"]


def test_purposes_and_seeds_draw_different_scenes() -> None:
    drawn = {make_scene(scene_rng(s, i, p)) for p in ("unlabelled", "twin") for s in (0, 1) for i in range(5)}
    assert len(drawn) == 20


def test_half_written_videos_of_a_killed_process_are_cleared(tmp_path: Path) -> None:
    (tmp_path / ".0001.123.mp4").write_bytes(b"half")
    build_videos(tmp_path, 2, seed=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0000.mp4", "0001.mp4"]
