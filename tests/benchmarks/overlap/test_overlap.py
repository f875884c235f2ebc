"""Planted copies of benchmark videos are found, clips that are none are not; by bytes, by name, by look."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.catalog import CATALOG, select
from benchmarks.micro.twins.twins import build_twins
from benchmarks.micro.world.videos import build_videos
from benchmarks.overlap.hashes import Look, UnreadableVideoError, hash_frames, look, mirrored
from benchmarks.overlap.measure import CHANGES, measure, natural_clip, resized, time_comparison, write_clip
from benchmarks.overlap.overlap import LookCache, compare, summary, telling_name
from benchmarks.overlap.search import find_pairs
from savi.video.frames import find_videos

runner = CliRunner()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_twins(tmp_path_factory.mktemp("home"), seed=1, size="smoke").hf_home


def test_a_mirrored_frame_has_the_mirrored_hash() -> None:
    grey = np.random.default_rng(0).uniform(0, 255, (20, 32, 32))
    assert (mirrored(hash_frames(grey)) == hash_frames(grey[:, :, ::-1])).all()
    assert (hash_frames(grey) != hash_frames(grey[:, ::-1])).all(), "upside down is another frame"


def test_the_hash_is_of_the_signs_of_low_frequencies() -> None:
    """One cosine along the rows: its coefficient alone is not 0, so its bit alone is sure; brightness and contrast change nothing."""
    y = np.cos(np.pi * (np.arange(32) + 0.5) * 2 / 32)
    frame = 100 + 20 * np.repeat(y[:, None], 32, 1)
    noise = np.random.default_rng(0).normal(0, 30, (32, 32))
    assert hash_frames((frame + noise)[None]) == hash_frames((40 + 0.5 * (frame + noise))[None])


def test_flat_frames_have_no_hash_and_broken_videos_are_named(tmp_path: Path) -> None:
    from benchmarks.micro.world.videos import write_mp4

    write_mp4(tmp_path / "flat.mp4", np.full((8, 64, 64, 3), 90, np.uint8))
    assert len(look(tmp_path / "flat.mp4").hashes) == 0
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(UnreadableVideoError, match=r"bad\.mp4: no frame can be decoded"):
        look(tmp_path / "bad.mp4")
    assert find_pairs([look(tmp_path / "flat.mp4")], [look(tmp_path / "flat.mp4")]) == []


def test_long_videos_are_not_decoded_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames 6 s apart are found by seeking: the same ones as by decoding everything."""
    rng = np.random.default_rng(0)
    write_clip(tmp_path / "long.mp4", rng.integers(0, 255, (200, 64, 64, 3), np.uint8), 1)
    skipped = look(tmp_path / "long.mp4")
    assert len(skipped.hashes) == 29  # every seventh of 200 frames, as they are a second apart
    monkeypatch.setattr("benchmarks.overlap.hashes._SKIP_S", 1e9)
    assert (look(tmp_path / "long.mp4").hashes == skipped.hashes).all()


def test_copies_of_every_kind_are_found_and_nothing_else() -> None:
    rates, decode_s = measure(16)
    assert len(rates) == 2 * len(CHANGES)
    assert all((r.found, r.n, r.false_alarms) == (8, 8, 0) for r in rates), rates
    assert all(s > 0 for s in decode_s.values())


def test_two_natural_clips_differ() -> None:
    assert (natural_clip(0, 4) != natural_clip(1, 4)).mean() > 0.9
    assert (natural_clip(0, 4) == natural_clip(0, 4)).all()


def test_search_is_exact_and_counts_frames() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (40, 16, 16, 3)).astype(np.uint8)
    hashes = rng.integers(0, 2**64, 40, dtype=np.uint64)
    a, other = Look(hashes[:10], pictures[:10]), Look(hashes[20:30], pictures[20:30])
    part = Look(hashes[6:16], pictures[6:16])  # 4 of 10 frames in common with a
    flipped = Look(mirrored(hashes[:10]), pictures[:10, :, ::-1])
    found = {(p.first, p.second): (p.share, p.mirrored) for p in find_pairs([a, other], [part, flipped])}
    assert found == {(0, 0): (0.4, False), (0, 1): (1.0, True)}
    near = Look(hashes[:10] ^ np.uint64(0b1111100000), pictures[:10])
    assert find_pairs([near], [a])[0].share == 1.0, "five bits of 64"
    far = Look(hashes[:10] ^ np.uint64(0b111111111110), pictures[:10])
    assert find_pairs([far], [a]) == [], "eleven bits"
    assert find_pairs([Look(hashes[:10], pictures[20:30])], [a]) == [], "equal hashes of other pictures"
    assert find_pairs([], [a]) == []


def test_names_that_say_something() -> None:
    assert telling_name("star/Charades_segment/NBMH9_21.4_37.6") == telling_name("NBMH9") == "nbmh9"
    assert telling_name("NExTVideo/4010069381") == "4010069381"
    for weak in ("0001", "video_14727", "clip_0003", "v12", "12_3"):
        assert telling_name(weak) == "", weak


@pytest.fixture
def training(home: Path, tmp_path: Path) -> Path:
    """Ten clips of another purpose, and four benchmark videos among them: one by bytes, two by look, one by name."""
    folder = tmp_path / "training"
    build_videos(folder, 10, seed=5)
    ego = sorted((home / "egoschema/videos").iterdir())
    star = sorted((home / "mvbench_video/star/Charades_segment").iterdir())
    shutil.copy(ego[0], folder / "a.mp4")
    from tests.benchmarks.overlap.frames import frames_of

    (folder / "sub").mkdir()
    write_clip(folder / "sub/b.mp4", resized(frames_of(star[0]), 0.5), 4)
    write_clip(folder / "c.mp4", np.ascontiguousarray(frames_of(ego[1])[:, :, ::-1]), 4)
    shutil.copy(folder / "0000.mp4", folder / ego[2].name)
    return folder


def test_a_folder_against_the_benchmarks(home: Path, training: Path) -> None:
    ego = sorted((home / "egoschema/videos").iterdir())
    star = sorted((home / "mvbench_video/star/Charades_segment").iterdir())
    paths = sorted(training.rglob("*.mp4"))
    found = compare(paths, training, home, select(None))
    assert {(o.training, o.video.rsplit("/", 1)[-1], o.evidence, o.mirrored) for o in found.overlaps} == {
        ("a.mp4", ego[0].name, "bytes", False),
        ("sub/b.mp4", star[0].name, "look", False),
        ("c.mp4", ego[1].name, "look", True),
        (ego[2].name, ego[2].name, "name", False),
    }
    assert found.excluded == tuple(sorted(["a.mp4", "sub/b.mp4", "c.mp4", ego[2].name]))
    mvbench = next(o for o in found.overlaps if o.benchmark == "mvbench")
    assert mvbench.questions >= 1
    assert set(mvbench.tasks.split()) <= {"mvbench_action_sequence", "mvbench_action_prediction", "mvbench_object_interaction"}
    lines = summary(found, select(None))
    assert lines[4].startswith("EgoSchema: 3 of 14 training videos are among its 34 videos (1 by bytes, 1 by look, 1 by name); 3 questions")
    assert "TempCompass: 0 of 14" in lines[0]
    assert summary(compare(paths, training, home / "none", [CATALOG["egoschema"]]), [CATALOG["egoschema"]]) == [
        "EgoSchema: not on this machine, not compared"
    ]


def test_looks_are_kept_and_follow_the_file(home: Path, training: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cache = LookCache(tmp_path)
    first = cache.of(training / "a.mp4")
    cache.save()
    monkeypatch.setattr("benchmarks.overlap.overlap.look", lambda _: pytest.fail("decoded again"))
    assert (LookCache(tmp_path).of(training / "a.mp4").hashes == first.hashes).all()
    (training / "a.mp4").write_bytes((training / "c.mp4").read_bytes())
    with pytest.raises(pytest.fail.Exception, match="decoded again"):
        LookCache(tmp_path).of(training / "a.mp4")
    kept = tmp_path / ".overlap/looks-32-2-16.npz"
    for damaged in (b"broken", b"", kept.read_bytes()[:-40]):
        kept.write_bytes(damaged)
        assert LookCache(tmp_path)._known == {}


def test_odd_names_and_links_to_nothing_end_nothing(home: Path, training: Path) -> None:
    odd = training / os.fsdecode(b"caf\xe9.mp4")
    odd.write_bytes((training / "a.mp4").read_bytes())
    (training / "gone.mp4").symlink_to(training / "nowhere.mp4")
    found = compare(find_videos(training), training, home, select(["egoschema"]))
    assert [Path(name).name for name in found.unreadable] == ["gone.mp4"]
    assert odd.name in found.excluded


def test_command_line(home: Path, training: Path, tmp_path: Path) -> None:
    out = tmp_path / "overlap.csv"
    done = runner.invoke(app, ["overlap", "--videos", str(training), "--hf-home", str(home), "--out", str(out)])
    assert done.exit_code == 1, done.output
    assert "EgoSchema: 3 of 14 training videos" in done.output
    assert len(list(csv.DictReader(out.open()))) == 4
    told = json.loads(runner.invoke(app, ["overlap", "nextqa", "--videos", str(training), "--hf-home", str(home), "--json"]).output)
    assert told["overlaps"] == []
    none = runner.invoke(app, ["overlap", "nextqa", "--videos", str(training), "--hf-home", str(home)])
    assert none.exit_code == 0
    assert runner.invoke(app, ["overlap", "--hf-home", str(home)]).exit_code == 2
    assert runner.invoke(app, ["overlap", "--videos", str(tmp_path / "no")]).exit_code == 2
    (training / "broken.mp4").write_bytes(b"x")
    broken = runner.invoke(app, ["overlap", "nextqa", "--videos", str(training), "--hf-home", str(home)])
    assert "1 videos could not be decoded" in broken.output


def test_what_could_not_be_compared_is_no_clean_result(home: Path, training: Path, tmp_path: Path) -> None:
    """Before, a machine without any benchmark ended with exit code 0: no overlap."""
    nothing = runner.invoke(app, ["overlap", "--videos", str(training), "--hf-home", str(tmp_path / "none")])
    assert nothing.exit_code == 5
    assert "not compared: tempcompass, perceptiontest" in nothing.stderr
    assert "python -m benchmarks prepare tempcompass perceptiontest" in nothing.stderr
    (tmp_path / "empty").mkdir()
    empty = runner.invoke(app, ["overlap", "--videos", str(tmp_path / "empty"), "--hf-home", str(home)])
    assert empty.exit_code == 2
    assert "no video in this folder" in empty.stderr


def test_comparing_is_timed() -> None:
    assert time_comparison(20, 60) > 0
