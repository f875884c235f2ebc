"""Frames of real files, good and bad; both decoders against the frame number drawn into each frame."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from savi.video.containers import inspect
from savi.video.frames import Frames, VideoError, find_videos, segment_indices
from savi.video.prefetch import FramePrefetcher, decoders, prefetch, waited_s
from savi.video.read import read_frames
from tests.savi.clips import cut_clip, empty_track, grey_frames, grey_of, rotate_clip, write_audio, write_clip

decord = pytest.importorskip("decord", reason="decord has no wheel for this machine")
DECODERS = ["decord", "pyav"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "plain.mp4", grey_frames(28))


def error_of(path: Path, decoder: str = "decord") -> VideoError:
    with pytest.raises(VideoError) as caught:
        read_frames(path, num_frames=4, decoder=decoder)
    assert str(path) in str(caught.value)
    return caught.value


def release_indices(total: int, num_segments: int) -> list[int]:
    """The release's `get_index` without bounds, as its numpy code has it."""
    start, end = max(0, round(-100000 * 25.0)), min(round(100000 * 25.0), total - 1)
    size = float(end - start) / num_segments
    return [int(start + (size / 2) + np.round(size * index)) for index in range(num_segments)]


@given(st.integers(1, 5000), st.integers(1, 64))
def test_indices_are_the_releases_and_inside_the_clip(total: int, num_frames: int) -> None:
    indices = segment_indices(total, num_frames)
    assert indices == release_indices(total, num_frames)
    assert len(indices) == num_frames
    assert indices == sorted(indices)
    assert 0 <= indices[0] <= indices[-1] < total


@pytest.mark.parametrize(("total", "num_frames"), [(0, 4), (4, 0)])
def test_indices_need_frames(total: int, num_frames: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        segment_indices(total, num_frames)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("b.mp4", {"b_frames": 2, "gop": 6}),
        ("intra.mp4", {"b_frames": 0, "gop": 1}),
        ("long-gop.mkv", {"gop": 250}),
        ("mpeg4.avi", {"codec": "mpeg4"}),
        ("sound.mp4", {"with_audio": True}),
        ("web.mp4", {"muxer_options": {"movflags": "faststart"}}),
        ("pieces.mp4", {"muxer_options": {"movflags": "frag_keyframe+empty_moov"}}),
        ("h264.avi", {}),
        ("stream.ts", {}),
        ("late.mkv", {"times_ms": range(3000, 5800, 100)}),
        ("old.mov", {}),
        ("vp8.webm", {"codec": "libvpx"}),
    ],
)
def test_each_frame_is_the_one_its_index_names(tmp_path: Path, decoder: str, name: str, settings: dict) -> None:
    path = write_clip(tmp_path / name, grey_frames(28), **settings)
    frames = read_frames(path, num_frames=9, decoder=decoder)
    assert frames.total == 28
    assert list(frames.indices) == segment_indices(28, 9)
    assert grey_of(frames.pixels) == list(frames.indices)
    assert frames.pixels.shape == (9, 48, 64, 3)
    assert frames.pixels.dtype == np.uint8
    assert frames.fps == pytest.approx(10)
    assert frames.duration_s == pytest.approx(2.8, abs=0.15)  # of the film: what late.mkv waits before it does not count


@pytest.mark.parametrize("decoder", DECODERS)
def test_frames_hidden_by_an_edit_list_are_not_counted(tmp_path: Path, decoder: str) -> None:
    """A clip cut out of a longer one without re-encoding keeps frames from before the cut, which players do not show."""
    path = cut_clip(write_clip(tmp_path / "long.mp4", grey_frames(28), gop=10), tmp_path / "cut.mp4", start_s=0.35)
    frames = read_frames(path, num_frames=9, decoder=decoder)
    assert frames.total == 24
    assert grey_of(frames.pixels) == [index + 4 for index in segment_indices(24, 9)]


@pytest.mark.parametrize("num_frames", [1, 5, 28, 40])
def test_both_decoders_agree(tmp_path: Path, num_frames: int) -> None:
    rng = np.random.default_rng(0)
    noise = [np.kron(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8)) for _ in range(28)]
    path = write_clip(tmp_path / "noise.mp4", noise)
    first, second = (read_frames(path, num_frames=num_frames, decoder=decoder) for decoder in DECODERS)
    assert first.indices == second.indices
    assert (first.total, first.fps, first.duration_s) == (second.total, second.fps, second.duration_s)
    assert np.abs(first.pixels.astype(int) - second.pixels).max() <= 2
    other = read_frames(path, num_frames=max(2, num_frames - 1), decoder="pyav").pixels
    assert np.abs(other[0].astype(int) - first.pixels[-1]).max() > 2 or num_frames == 1  # the bound above can fail


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_short_clip_repeats_frames(tmp_path: Path, decoder: str) -> None:
    path = write_clip(tmp_path / "short.mp4", grey_frames(3))
    frames = read_frames(path, num_frames=8, decoder=decoder)
    assert list(frames.indices) == segment_indices(3, 8)
    assert grey_of(frames.pixels) == list(frames.indices)


@pytest.mark.parametrize("decoder", DECODERS)
def test_one_frame(tmp_path: Path, decoder: str) -> None:
    frames = read_frames(write_clip(tmp_path / "one.mp4", grey_frames(1)), num_frames=4, decoder=decoder)
    assert (frames.indices, frames.total) == ((0, 0, 0, 0), 1)
    assert frames.pixels.shape == (4, 48, 64, 3)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("times", [[0, 100, 900, 1000, 1050, 4000, 4100, 4200], [0, 10, 20, 30, 2000, 2010, 2020, 2030]])
def test_a_variable_frame_rate_counts_frames_not_time(tmp_path: Path, decoder: str, times: list[int]) -> None:
    path = write_clip(tmp_path / "vfr.mp4", grey_frames(8), times_ms=times)
    frames = read_frames(path, num_frames=8, decoder=decoder)
    assert grey_of(frames.pixels) == list(frames.indices)
    assert frames.total == 8
    assert frames.duration_s == pytest.approx(times[-1] / 1000, rel=0.1, abs=0.05)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_varying_rate_is_the_average_by_the_pictures_times(tmp_path: Path, suffix: str) -> None:
    path = write_clip(tmp_path / f"vfr.{suffix}", grey_frames(8), fps=30, times_ms=[0, 33, 66, 100, 4000, 4033, 6000, 7000])
    frames = read_frames(path, num_frames=8)
    assert frames.fps == pytest.approx(7 / 7.0, rel=0.1)  # Matroska's header says 30
    assert grey_of(frames.pixels) == list(frames.indices)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_film_that_begins_late_is_no_longer(clip: Path, tmp_path: Path, suffix: str) -> None:
    late = cut_clip(clip, tmp_path / f"late.{suffix}", start_s=-5)
    frames = read_frames(late, num_frames=4)
    assert frames.duration_s == pytest.approx(read_frames(clip, num_frames=4).duration_s, abs=0.2)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(("degrees", "corner"), [(90, (0, -1)), (180, (-1, -1)), (270, (-1, 0))])
def test_rotation_is_applied(clip: Path, tmp_path: Path, decoder: str, degrees: int, corner: tuple[int, int]) -> None:
    path = rotate_clip(clip, tmp_path / "rotated.mp4", degrees)
    frames = read_frames(path, num_frames=4, decoder=decoder)
    plain = read_frames(clip, num_frames=4, decoder=decoder)
    assert frames.indices == plain.indices
    assert frames.pixels.shape == ((4, 48, 64, 3) if degrees == 180 else (4, 64, 48, 3))
    np.testing.assert_allclose(frames.pixels.astype(int), np.rot90(plain.pixels, -degrees // 90, (1, 2)).astype(int), atol=2)
    assert frames.pixels[0][corner].min() > 240  # the white square left the upper left corner
    assert frames.pixels[0][0, 0].max() < 240


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", ["end.mp4", "front.mp4", "a.mkv", "a.avi"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_truncated_file_says_where_it_was_cut(tmp_path: Path, name: str, share: float, decoder: str) -> None:
    options = {"movflags": "faststart"} if name == "front.mp4" else {}
    noise = [np.random.default_rng(seed).integers(0, 255, (48, 64, 3), dtype=np.uint8) for seed in range(12)]
    whole = write_clip(tmp_path / name, noise, muxer_options=options, codec="mpeg4" if name == "a.avi" else "libx264")
    assert inspect(whole).cut is None
    data = whole.read_bytes()
    whole.write_bytes(data[: int(len(data) * share)])
    error = error_of(whole, decoder)
    assert error.kind == "truncated"
    assert "truncated at" in error.reason
    assert "kB" in error.reason or "bytes" in error.reason


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_bytes_after_the_end_are_no_damage(clip: Path, tmp_path: Path, suffix: str) -> None:
    with_tail = cut_clip(clip, tmp_path / f"tail.{suffix}", start_s=0)
    whole = read_frames(with_tail, num_frames=4)
    with with_tail.open("ab") as file:
        file.write(b"TAG" + bytes(range(125)))
    np.testing.assert_array_equal(read_frames(with_tail, num_frames=4).pixels, whole.pixels)


def test_every_cut_of_a_file_is_an_error_and_never_a_crash(clip: Path, tmp_path: Path) -> None:
    data, broken = clip.read_bytes(), tmp_path / "cut.mp4"
    rng = random.Random(0)
    for length in sorted(rng.sample(range(1, len(data) - 1), 25)):
        broken.write_bytes(data[:length])
        assert error_of(broken, rng.choice(DECODERS)).kind in {"truncated", "not_a_video"}


@pytest.mark.parametrize("decoder", DECODERS)
def test_empty_missing_folder_and_no_video(tmp_path: Path, decoder: str) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video at all\n" * 50)
    (tmp_path / "notes.txt").write_text("not a video at all\n" * 50)
    (tmp_path / "random.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    assert error_of(tmp_path / "empty.mp4", decoder).kind == "empty"
    assert error_of(tmp_path / "absent.mp4", decoder).kind == "missing"
    assert error_of(tmp_path, decoder).kind == "not_a_video"
    for name in ("text.mp4", "notes.txt", "random.mp4", "table.csv"):
        assert error_of(tmp_path / name, decoder).kind == "not_a_video", name


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_picture_is_no_video(tmp_path: Path, decoder: str) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "picture.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "picture.jpg")
    for name in ("picture.png", "picture.jpg"):
        assert error_of(tmp_path / name, decoder).kind == "not_a_video", name


@pytest.mark.parametrize("decoder", DECODERS)
def test_audio_alone_has_no_video_stream(tmp_path: Path, decoder: str) -> None:
    error = error_of(write_audio(tmp_path / "song.m4a"), decoder)
    assert error.kind == "no_video_stream"
    assert "audio" in error.reason


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_stream_without_frames(clip: Path, tmp_path: Path, decoder: str) -> None:
    assert error_of(empty_track(clip, tmp_path / "zero.mp4"), decoder).kind == "zero_frames"


@pytest.mark.parametrize("decoder", DECODERS)
def test_broken_pictures_inside_a_whole_file(tmp_path: Path, decoder: str) -> None:
    path = write_clip(tmp_path / "broken.mp4", grey_frames(12), muxer_options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    start = data.find(b"mdat") + 4
    data[start:] = bytes(len(data) - start)
    path.write_bytes(bytes(data))
    assert error_of(path, decoder).kind == "damaged"


def test_settings_are_checked(clip: Path) -> None:
    with pytest.raises(ValueError, match="num_frames"):
        read_frames(clip, num_frames=0)
    with pytest.raises(ValueError, match="pyav, decord, torchcodec"):
        read_frames(clip, num_frames=1, decoder="opencv")  # type: ignore[arg-type]


def test_find_videos(tmp_path: Path) -> None:
    for name in ("b/2.mp4", "a/1.MKV", "3.webm", ".hidden/4.mp4", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in find_videos(tmp_path)] == ["3.webm", "a/1.MKV", "b/2.mp4"]


def test_linked_videos_and_folders_are_found_and_a_link_to_nothing_is_missing(tmp_path: Path) -> None:
    for name in ("kept/1.mp4", "elsewhere/2.mp4", "elsewhere/deep/3.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    mine = tmp_path / "kept"
    (mine / "linked").symlink_to(tmp_path / "elsewhere")
    (mine / "linked" / "circle").symlink_to(tmp_path / "kept")
    (mine / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    found = [path.relative_to(mine).as_posix() for path in find_videos(mine)]
    assert found == ["1.mp4", "gone.mp4", "linked/2.mp4", "linked/deep/3.mp4"]
    with pytest.raises(VideoError, match="no such file"):
        read_frames(mine / "gone.mp4", num_frames=2)


def test_find_videos_needs_a_folder_with_videos(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(VideoError, match="no video in this folder") as caught:
        find_videos(tmp_path)
    assert caught.value.kind == "empty"
    for path in (tmp_path / "absent", tmp_path / "notes.txt"):
        with pytest.raises(VideoError) as caught:
            find_videos(path)
        assert caught.value.kind == "missing"


def test_prefetch_keeps_order_and_hands_errors_over(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_text("x" * 100)
    asked = [clip, tmp_path / "bad.mp4", clip, tmp_path / "absent.mp4"]
    got = list(prefetch(asked, num_frames=4, depth=3, workers=2))
    assert [path for path, _ in got] == asked
    kinds = [outcome.kind if isinstance(outcome, VideoError) else outcome.total for _, outcome in got]
    assert kinds == [28, "not_a_video", 28, "missing"]


def fake_frames(path: Path) -> Frames:
    return Frames(np.zeros((1, 2, 2, 3), np.uint8), (0,), 1.0, 1.0, 1, str(path))


def test_prefetch_is_bounded_and_lazy() -> None:
    begun: list[str] = []
    handed = 0
    most = 0
    lock = threading.Lock()

    def read(path: Path, **_: object) -> Frames:
        nonlocal most
        with lock:
            begun.append(path.name)
            most = max(most, len(begun) - handed)
        return fake_frames(path)

    with FramePrefetcher((f"{index}.mp4" for index in range(30)), num_frames=1, depth=3, workers=3, read=read) as frames:
        for path, _ in frames:
            assert path.name == f"{handed}.mp4"
            with lock:
                handed += 1
    assert handed == 30
    assert most <= 4  # three ahead of the one being handed out


def test_prefetch_hides_decoding_behind_work() -> None:
    def read(path: Path, **_: object) -> Frames:
        time.sleep(0.01)
        return fake_frames(path)

    before = waited_s()
    with FramePrefetcher([f"{index}" for index in range(8)], num_frames=1, read=read) as frames:
        for _ in frames:
            time.sleep(0.03)
    assert frames.decoding_s >= 0.08
    assert frames.waited_s < frames.decoding_s * 0.6  # the first video is always waited for
    assert waited_s() - before == pytest.approx(frames.waited_s)


def test_prefetch_stops_when_dropped_and_raises_what_is_no_video_error() -> None:
    begun: list[Path] = []

    def read(path: Path, **_: object) -> Frames:
        begun.append(path)
        if path.name == "2":
            raise MemoryError("no room")
        return fake_frames(path)

    with FramePrefetcher(map(str, range(100)), num_frames=1, depth=2, read=read) as frames:
        next(frames)
    assert len(begun) <= 3
    assert list(frames) == []
    with pytest.raises(MemoryError):
        list(FramePrefetcher(map(str, range(5)), num_frames=1, read=read))
    with pytest.raises(ValueError, match="depth"):
        FramePrefetcher([], num_frames=1, depth=0)


def test_importing_savi_and_reading_frames_needs_no_torch(clip: Path) -> None:
    code = f"import sys, savi; savi.read_frames({str(clip)!r}, num_frames=2); savi.base.files; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", f"import savi.base.files; {code}"], check=True, cwd=Path(__file__).parents[3])


@pytest.mark.parametrize(("cores", "processes", "wanted"), [(1, "", 1), (2, "1", 1), (4, "", 3), (64, "8", 7), (64, "1", 8), (4, "8", 1)])
def test_as_many_decoders_as_a_processs_share_of_the_cores(
    cores: int, processes: str, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert decoders() == wanted
