"""A video file to uint8 frames: N frames, each at the middle of one of N equal segments, or an error that says what is wrong with it.

decord is the reference decoder (the release uses it); PyAV is the second and gives the same indices and near the same pixels. The module
must not know torch or any model: resizing and normalising belong to the model's family. No frame is ever replaced by another in silence.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from savi.base.errors import ExitCode, SaviError
from savi.video.containers import inspect

Decoder = Literal["decord", "pyav"]
Pixels = NDArray[np.uint8]
VideoErrorKind = Literal["missing", "empty", "not_a_video", "no_video_stream", "zero_frames", "truncated", "unreadable"]

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp", ".ogv", ".gif"}
)

_NOT_VIDEO_FORMATS = ("tty", "image2", "_pipe")
"""FFmpeg opens texts (as ANSI art) and pictures as one-frame videos."""


class VideoError(SaviError):
    """A file that gives no frames: `path`, a `reason` in words, and its `kind` for counting."""

    def __init__(self, path: str | Path, reason: str, kind: VideoErrorKind) -> None:
        super().__init__(str(path), reason, kind)
        self.path, self.reason, self.kind = str(path), reason, kind
        self.exit_code = ExitCode.USAGE if kind == "missing" else ExitCode.BROKEN

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames of one video.

    `pixels`: uint8 [T, H, W, 3], RGB, in display orientation (the file's rotation applied); `indices`: the frame number of each in the
    file, a frame repeated where the clip has fewer than asked for; `fps`: the average rate; `duration_s`; `total`: frames in the file.
    """

    pixels: Pixels
    indices: tuple[int, ...]
    fps: float
    duration_s: float
    total: int
    path: str


class _Packet(NamedTuple):
    pts: int | None
    dts: int | None
    key: bool

    @property
    def seek_to(self) -> int:
        """Containers seek by decoding time; by display time, the search would land behind a key frame that is shown late."""
        return self.dts if self.dts is not None else self.pts or 0


@dataclass(frozen=True)
class _Header:
    """What is known before frames are decoded. `packets` are those that are shown, in the file's order: one a frame."""

    kind: str | None
    fps: float
    duration_s: float | None
    quarter_turns: int
    """Counter-clockwise."""
    packets: tuple[_Packet, ...]
    hidden: bool
    """An edit list hides frames that are in the file."""


def segment_indices(total: int, num_frames: int) -> list[int]:
    """The frame at the middle of each of `num_frames` equal segments of a clip of `total` frames; a short clip repeats frames.

    The release's rule (its `get_index`, from InternVL's `load_video`), rounding included: segments of (total - 1) / num_frames.

    Raises:
        ValueError: either number is below 1.
    """
    if total < 1 or num_frames < 1:
        raise ValueError(f"segment_indices needs at least 1 frame in and out, got total={total}, num_frames={num_frames}")
    segment = (total - 1) / num_frames
    return [int(segment / 2 + round(segment * index)) for index in range(num_frames)]


def read_frames(path: str | Path, *, num_frames: int, decoder: Decoder = "decord") -> Frames:
    """Decode `num_frames` frames of a video, by `segment_indices`.

    With "decord", PyAV still reads where decord is not installed, and the files that decord gets wrong without saying so: rotated ones,
    those with frames hidden by an edit list, and containers other than mp4 and Matroska (it returns other frames than asked for from
    MPEG streams and from H.264 in AVI).

    Raises:
        VideoError: the file gives no such frames; its `kind` says why.
        ValueError: `num_frames` is below 1, or `decoder` is unknown.
        ModuleNotFoundError: PyAV is not installed.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    if decoder not in ("decord", "pyav"):
        raise ValueError(f"unknown decoder {decoder!r}: use 'decord' or 'pyav'")
    file = Path(path)
    header = _read_header(file)
    total = len(header.packets)
    indices = segment_indices(total, num_frames)
    wanted = sorted(set(indices))
    arrays = _decode_decord(file, total, wanted) if decoder == "decord" and _decord_is_right(header) else None
    if arrays is None:
        arrays = _decode_pyav(file, header, wanted)
    absent = [index for index in wanted if index not in arrays]
    if absent:
        raise VideoError(file, f"frame {absent[0]} of {total} cannot be decoded ({len(absent)} of {len(wanted)} missing)", "unreadable")
    pixels = np.stack([arrays[index] for index in indices])
    if header.quarter_turns:
        pixels = np.ascontiguousarray(np.rot90(pixels, k=header.quarter_turns, axes=(1, 2)))
    duration_s = total / header.fps if header.duration_s is None else header.duration_s
    return Frames(pixels, tuple(indices), header.fps, duration_s, total, str(path))


def find_videos(folder: str | Path) -> list[Path]:
    """The video files (by name) in a folder and below it, sorted by path; hidden ones left out.

    Raises:
        VideoError: there is no such folder, or no video in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise VideoError(folder, "is a file, not a folder of videos" if root.exists() else "no such folder", "missing")
    inside = (path for path in root.rglob("*") if not any(part.startswith(".") for part in path.relative_to(root).parts))
    videos = sorted(path for path in inside if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
    if not videos:
        raise VideoError(folder, f"no video in this folder (looked for {', '.join(sorted(VIDEO_SUFFIXES))})", "empty")
    return videos


def _read_header(file: Path) -> _Header:
    """What both decoders need to know first, and every error that can be told without decoding more than one frame."""
    try:
        if file.is_dir():
            raise VideoError(file, "is a folder, not a video", "not_a_video")
        if file.stat().st_size == 0:
            raise VideoError(file, "the file is empty (0 bytes)", "empty")
        container = inspect(file)
    except FileNotFoundError as error:
        raise VideoError(file, "no such file", "missing") from error
    except OSError as error:
        raise VideoError(file, f"cannot be read: {error.strerror or error}", "unreadable") from error
    if container.cut is not None:
        raise VideoError(file, container.cut, "truncated")
    av = _av()
    try:
        with av.open(str(file)) as opened:
            if any(name in opened.format.name for name in _NOT_VIDEO_FORMATS):
                raise VideoError(file, f"not a video (read as {opened.format.name})", "not_a_video")
            stream = _video_stream(opened, file)
            read = [
                (_Packet(packet.pts, packet.dts, packet.is_keyframe), packet.is_discard) for packet in opened.demux(stream) if packet.size
            ]
            packets = tuple(packet for packet, discard in read if not discard)
            if packets:
                opened.seek(min(packet.seek_to for packet, _ in read), stream=stream)
            first = next(opened.decode(stream), None) if packets else None
            if first is None:
                raise VideoError(file, "0 decodable frames", "zero_frames")
            rate = stream.average_rate or stream.guessed_rate
            duration_s = _duration_s(opened, stream)
            turns = round(first.rotation / 90) % 4
            return _Header(container.kind, float(rate) if rate else 25.0, duration_s, turns, packets, len(packets) < len(read))
    except av.FFmpegError as error:
        if container.kind is None and isinstance(error, av.InvalidDataError):
            raise VideoError(file, "not a video (no container that FFmpeg knows)", "not_a_video") from error
        raise VideoError(file, f"cannot be decoded: {_words(error)}", "unreadable") from error


def _av() -> Any:
    try:
        import av
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("reading videos needs PyAV: pip install av", name="av") from error
    return av


def _video_stream(opened: Any, file: Path) -> Any:
    for stream in opened.streams.video:
        if not stream.disposition & _av().stream.Disposition.attached_pic:  # the cover of a song is no video
            return stream
    kinds = ", ".join(sorted({stream.type for stream in opened.streams})) or "nothing"
    raise VideoError(file, f"has no video stream (it holds: {kinds})", "no_video_stream")


def _duration_s(opened: Any, stream: Any) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return opened.duration / 1_000_000 if opened.duration else None


def _words(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _decord_is_right(header: _Header) -> bool:
    return header.kind in ("mp4", "matroska") and not header.hidden and not header.quarter_turns


def _decode_decord(file: Path, total: int, wanted: Sequence[int]) -> dict[int, Pixels] | None:
    """The wanted frames by decord, or None where it is absent or counts other frames."""
    try:
        import decord
    except ModuleNotFoundError:  # it has no wheel for ARM; the frame numbers are the same either way
        return None
    decord.logging.set_level(decord.logging.FATAL)  # its C++ log would repeat on stderr what VideoError says
    try:
        reader = decord.VideoReader(str(file), ctx=decord.cpu(0), num_threads=1)
        if len(reader) != total:
            return None
        batch = reader.get_batch(wanted)
    except (decord.DECORDError, RuntimeError, StopIteration) as error:
        raise VideoError(file, f"cannot be decoded: {_words(error)}", "unreadable") from error
    pixels: Pixels = batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch)  # a bridge may have made it a tensor
    return dict(zip(wanted, pixels, strict=True))


def _decode_pyav(file: Path, header: _Header, wanted: Sequence[int]) -> dict[int, Pixels]:
    """The wanted frames by PyAV: seeking where the container knows when each frame is shown, else counting from the start."""
    av = _av()
    try:
        with av.open(str(file)) as opened:
            stream = _video_stream(opened, file)
            size = {"width": stream.width, "height": stream.height, "format": "rgb24"}  # some streams change size midway
            times = {packet.pts for packet in header.packets if packet.pts is not None}
            if header.kind != "avi" and len(times) == len(header.packets):  # AVI has no display times; FFmpeg makes some up
                found = _frames_by_seeking(opened, stream, header.packets, wanted, size)
                if found is not None:
                    return found
                opened.seek(min(packet.seek_to for packet in header.packets), stream=stream)
            keep = set(wanted)
            counted = islice(enumerate(opened.decode(stream)), wanted[-1] + 1)
            return {index: frame.to_ndarray(**size) for index, frame in counted if index in keep}
    except av.FFmpegError as error:
        raise VideoError(file, f"cannot be decoded: {_words(error)}", "unreadable") from error


def _frames_by_seeking(
    opened: Any, stream: Any, packets: Sequence[_Packet], wanted: Sequence[int], size: dict[str, Any]
) -> dict[int, Pixels] | None:
    """The wanted frames (numbers in display order), decoding from the key frame before each group of them only; None where the container
    lands behind its own key frames, or its times are not those of the frames."""
    ordered = sorted(packets, key=lambda packet: packet.pts or 0)
    keys = [packet for packet in ordered if packet.key]
    key_times = [packet.pts or 0 for packet in keys]
    start = min(packet.seek_to for packet in packets)
    groups: dict[int, dict[int, int]] = {}
    for index in wanted:
        pts = ordered[index].pts or 0
        before = bisect_right(key_times, pts) - 1
        groups.setdefault(keys[before].seek_to if before >= 0 else start, {})[pts] = index
    found: dict[int, Pixels] = {}
    for seek_to, group in groups.items():
        opened.seek(seek_to, stream=stream)
        frames = _frames_timed(opened.decode(stream), group, size)
        if frames is None or len(frames) < len(group):
            return None
        found |= frames
    return found


def _frames_timed(frames: Iterator[Any], wanted: dict[int, int], size: dict[str, Any]) -> dict[int, Pixels] | None:
    """The frames with the display times of `wanted` (time -> number). Decoders give frames in display order: times that do not rise are
    not theirs, and then None."""
    found: dict[int, Pixels] = {}
    last, before = max(wanted), None
    for frame in frames:
        if frame.pts is None or (before is not None and frame.pts <= before):
            return None
        before = frame.pts
        if before in wanted:
            found[wanted[before]] = frame.to_ndarray(**size)
        if before >= last:
            break
    return found


class FramePrefetcher:
    """Decode the next videos while the caller works on this one: iterate to get (path, frames or the error), in the order of `paths`.

    At most `depth` videos are decoded or being decoded ahead of the one handed out, so memory is bounded whatever the number of videos.
    `waited_s` is the time the caller has spent waiting for frames (the first video included), `decoding_s` the time the workers have
    spent decoding. Use as a context manager, or exhaust it: leaving drops what was not asked for. Errors other than `VideoError` are
    raised where the video would have come.

    Raises:
        ValueError: `depth` or `workers` is below 1.
    """

    def __init__(
        self,
        paths: Iterable[str | Path],
        *,
        num_frames: int,
        depth: int = 2,
        workers: int = 1,
        decoder: Decoder = "decord",
        read: Callable[..., Frames] = read_frames,
    ) -> None:
        if depth < 1 or workers < 1:
            raise ValueError(f"depth and workers must be at least 1, got depth={depth}, workers={workers}")
        self.waited_s = 0.0
        self.decoding_s = 0.0
        self._paths = iter(paths)
        self._depth = depth
        self._read = lambda path: read(path, num_frames=num_frames, decoder=decoder)
        self._pool = ThreadPoolExecutor(max_workers=min(workers, depth), thread_name_prefix="savi-frames")
        self._ahead: deque[tuple[Path, Future[tuple[Frames | VideoError, float]]]] = deque()

    def __iter__(self) -> Iterator[tuple[Path, Frames | VideoError]]:
        return self

    def __next__(self) -> tuple[Path, Frames | VideoError]:
        self._fill()
        if not self._ahead:
            self.close()
            raise StopIteration
        path, future = self._ahead.popleft()
        began = time.perf_counter()
        try:
            outcome, spent_s = future.result()
        except BaseException:
            self.close()
            raise
        self.waited_s += time.perf_counter() - began
        self.decoding_s += spent_s
        self._fill()  # the next ones start now, while the caller works on this one
        return path, outcome

    def _fill(self) -> None:
        while len(self._ahead) < self._depth:
            path = next(self._paths, None)
            if path is None:
                return
            self._ahead.append((Path(path), self._pool.submit(self._decode, Path(path))))

    def _decode(self, path: Path) -> tuple[Frames | VideoError, float]:
        began = time.perf_counter()
        outcome: Frames | VideoError
        try:
            outcome = self._read(path)
        except VideoError as error:
            outcome = error
        return outcome, time.perf_counter() - began

    def close(self) -> None:
        """Stop decoding ahead: what has not begun never will; what has is waited for and dropped."""
        self._paths = iter(())
        self._ahead.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> FramePrefetcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def prefetch(
    paths: Iterable[str | Path], *, num_frames: int, depth: int = 2, workers: int = 1, decoder: Decoder = "decord"
) -> Iterator[tuple[Path, Frames | VideoError]]:
    """`FramePrefetcher` as a plain iterator that cleans up after itself when it is dropped."""
    with FramePrefetcher(paths, num_frames=num_frames, depth=depth, workers=workers, decoder=decoder) as frames:
        yield from frames
