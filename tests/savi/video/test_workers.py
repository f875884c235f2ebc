"""No file ends the process that reads it: limits, deaths of the worker, odd names and tags, tracks that are not the film."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from savi.base.limits import Limits, current_limits, set_limit
from savi.video import read
from savi.video.frames import Frames, VideoError
from savi.video.prefetch import prefetch
from savi.video.read import read_frames
from tests.savi.clips import grey_frames, write_clip
from tests.savi.video.films import Film, numbered_frames, numbers_of, write_film

DRAWN = Film("drawn.mp4", "libx264", {"g": "12"})


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_film(tmp_path_factory.mktemp("clips"), DRAWN)


@pytest.fixture
def worker_that() -> Iterator[Callable[[str], None]]:
    """Replace the next worker's decoder by a line of code."""
    code = read._CODE

    def replace(line: str) -> None:
        read.close_workers()
        patch = f"import savi.video.serve as s, os, signal, time; s.decode_video = lambda *a, **k: {line}; "
        read._CODE = code.replace("from savi.video.serve import main", patch + "from savi.video.serve import main")

    yield replace
    read._CODE = code
    read.close_workers()


def error_of(path: Path, **settings: object) -> VideoError:
    with pytest.raises(VideoError) as caught:
        read_frames(path, num_frames=4, **settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return caught.value


def unknown_codec(source: Path, target: Path) -> Path:
    """A whole mp4 with a codec that FFmpeg does not know."""
    data = source.read_bytes()
    at = data.find(b"stsd") + 16
    target.write_bytes(data[:at] + b"zzzz" + data[at + 4 :])
    return target


def test_an_unknown_codec_is_an_error(clip: Path, tmp_path: Path) -> None:
    error = error_of(unknown_codec(clip, tmp_path / "unknown.mp4"))
    assert (error.kind, error.reason) == ("unreadable", "there is no decoder for its codec")


@pytest.mark.parametrize("line", ["os.kill(os.getpid(), signal.SIGSEGV)", "os.abort()", "os._exit(3)"])
def test_a_death_of_the_worker_is_an_error_and_the_rest_goes_on(clip: Path, worker_that: Callable[[str], None], line: str) -> None:
    worker_that(line)
    assert error_of(clip).kind == "crashed"
    assert error_of(clip).reason == error_of(clip).reason
    got = [outcome for _, outcome in prefetch([clip] * 3, num_frames=4, workers=2)]
    assert [outcome.kind for outcome in got if isinstance(outcome, VideoError)] == ["crashed"] * 3


def test_a_worker_that_died_between_two_videos_is_replaced(clip: Path) -> None:
    read_frames(clip, num_frames=4)
    for worker in read._idle:
        os.kill(worker._process.pid, signal.SIGKILL)
    assert read_frames(clip, num_frames=4).total == DRAWN.length


def test_too_slow_a_video_is_given_up(clip: Path, worker_that: Callable[[str], None]) -> None:
    worker_that("time.sleep(60)")
    error = error_of(clip, limits=Limits(timeout_s=1))
    assert (error.kind, error.reason) == ("timeout", "not decoded within 1 s (--decode-timeout)")


def test_a_bug_in_the_reader_is_an_error_of_that_video(clip: Path, worker_that: Callable[[str], None]) -> None:
    worker_that("[][0]")
    assert error_of(clip).reason == "cannot be decoded: IndexError: list index out of range"


def test_too_much_memory_is_an_error(clip: Path) -> None:
    with pytest.raises(VideoError) as caught:
        read_frames(clip, num_frames=20_000, limits=Limits(memory_mb=1000))  # 1.1 GB
    assert (caught.value.kind, caught.value.reason) == ("too_large", "needs more than 1,000 MB of memory (--decode-memory)")
    assert read_frames(clip, num_frames=4).total == DRAWN.length  # the limit was that request's


def test_a_picture_above_the_limit_is_not_decoded(tmp_path: Path) -> None:
    """Black pictures of 67 million pixels are 40 kB as H.264 and 200 MB each decoded."""
    film = Film("big.mp4", "libx264", {"preset": "ultrafast", "g": "1"}, length=1, size=(4096, 4096))
    path = tmp_path / film.name
    with av.open(str(path), "w") as out:
        stream = out.add_stream(film.codec, rate=1)
        stream.width, stream.height, stream.pix_fmt, stream.options = *film.size, "yuv420p", film.options
        frame = av.VideoFrame(*film.size, "yuv420p")
        frame.pts = 0
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    error = error_of(path, limits=Limits(max_pixels=4_000_000))
    assert (error.kind, error.reason) == ("too_large", "pictures of 4096 x 4096 are above the limit of 4,000,000 pixels (--max-pixels)")
    peak = (
        "import re, sys, av, numpy; from dataclasses import asdict\n"
        "from savi.base.limits import Limits; from savi.video.serve import _answer\n"
        "def most(): return re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]\n"
        "before = most()\n"
        "a = _answer({'path': sys.argv[1], 'num_frames': 4, 'decoder': 'pyav', 'limits': asdict(Limits(max_pixels=4_000_000))})\n"
        "print(a[0]['kind'], before, most())"
    )
    kind, before, after = subprocess.run(
        [sys.executable, "-c", peak, path], check=True, capture_output=True, text=True, cwd=Path(__file__).parents[3]
    ).stdout.split()
    assert kind == "too_large"
    assert int(after) - int(before) < 20_000  # one decoded picture would be 25 MB, as a frame another 50 MB


@pytest.mark.parametrize("suffix", ["mp4", "avi", "mkv"])
def test_a_title_in_latin_1_does_not_matter(tmp_path: Path, clip: Path, suffix: str) -> None:
    path = tmp_path / f"title.{suffix}"
    if suffix == "avi":
        clip = write_clip(tmp_path / "plain.avi", numbered_frames(DRAWN.length), codec="mpeg4")
    with av.open(str(clip)) as source, av.open(str(path), "w") as out:
        copy = out.add_stream_from_template(source.streams.video[0])
        out.metadata["title"] = "Ete QQ"
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = copy
                out.mux(packet)
    data = path.read_bytes()
    if suffix != "mkv":  # Matroska holds checksums
        assert b"Ete QQ" in data
        path.write_bytes(data.replace(b"Ete QQ", "Été QQ".encode("latin-1")))
    assert read_frames(path, num_frames=9).total == DRAWN.length


@pytest.mark.parametrize("name", [b"\xc9t\xe9 2009.mp4", b"a\nb.mp4", b"http:x.mp4", b"%03d.mp4", b"[bold].mp4"])
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_odd_file_names_are_names(tmp_path: Path, clip: Path, name: bytes, decoder: str) -> None:
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(clip.read_bytes())
    frames = read_frames(path, num_frames=9, decoder=decoder)
    assert numbers_of(frames.pixels) == list(frames.indices)
    path.write_bytes(clip.read_bytes()[:999])
    str(error_of(path)).encode()  # can be printed


def test_cover_art_before_the_film_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "cover.mkv"
    with av.open(str(path), "w") as out:
        cover, film = out.add_stream("mjpeg", rate=10), out.add_stream("libx264", rate=10)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        film.width, film.height, film.pix_fmt, film.options = 192, 96, "yuv420p", {"g": "12"}
        for stream, pictures in ((cover, [np.zeros((64, 64, 3), np.uint8)]), (film, numbered_frames(20))):
            stream.codec_context.time_base = Fraction(1, 10)
            for number, pixels in enumerate(pictures):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts = number
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
    with av.open(str(path)) as made:
        assert [stream.codec_context.name for stream in made.streams.video] == ["mjpeg", "h264"]
        assert not made.streams.video[0].disposition & av.stream.Disposition.attached_pic
    for decoder in ("pyav", "decord"):
        frames = read_frames(path, num_frames=9, decoder=decoder)
        assert (frames.total, numbers_of(frames.pixels)) == (20, list(frames.indices))


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{clip}\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {clip}\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    ],
)
def test_a_list_of_other_files_or_addresses_is_no_video(tmp_path: Path, clip: Path, text: str) -> None:
    for name in ("list.mp4", "list.ts"):
        (tmp_path / name).write_text(text.format(clip=clip))
        assert error_of(tmp_path / name).kind == "not_a_video"


def test_an_error_is_the_same_from_run_to_run(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "broken.mp4", grey_frames(12), muxer_options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    at = len(data) - 500
    data[at : at + 400] = np.random.default_rng(0).bytes(400)
    path.write_bytes(data)
    assert len({(error_of(path).kind, error_of(path).reason) for _ in range(3)}) == 1


def test_limits_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SAVI_DECODE_TIMEOUT", "SAVI_DECODE_MEMORY", "SAVI_MAX_PIXELS"):
        monkeypatch.setenv(name, "")
    assert current_limits() == Limits()
    set_limit("timeout_s", 7)
    assert current_limits() == Limits(timeout_s=7)
    monkeypatch.setenv("SAVI_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match="SAVI_MAX_PIXELS is 'many'"):
        current_limits()
    with pytest.raises(ValueError, match="timeout_s is 0"):
        set_limit("timeout_s", 0)


def test_frames_of_a_worker_are_ordinary_arrays(clip: Path) -> None:
    frames = [read_frames(clip, num_frames=4) for _ in range(50)]
    frames[0].pixels[:] = 0
    assert all(one.pixels.any() for one in frames[1:])
    assert len(os.listdir("/proc/self/fd")) < 100  # no handle is kept for each


def test_threads_may_read_at_once_and_workers_are_kept(clip: Path) -> None:
    got: list[Frames] = []
    threads = [threading.Thread(target=lambda: got.append(read_frames(clip, num_frames=9))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 8
    assert all(numbers_of(frames.pixels) == list(frames.indices) for frames in got)
    before = {worker._process.pid for worker in read._idle}
    read_frames(clip, num_frames=9)
    assert {worker._process.pid for worker in read._idle} == before


def test_workers_go_when_their_parent_is_killed(clip: Path) -> None:
    code = (
        "import os, signal, sys, savi; savi.read_frames(sys.argv[1], num_frames=2); from savi.video import read\n"
        "print(read._idle[0]._process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(clip)], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    pid = int(done.stdout)
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        threading.Event().wait(0.05)
    raise AssertionError(f"worker {pid} lives on")
