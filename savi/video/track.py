"""What a file says of its film before a picture is decoded: which track it is, its packets and their order, and every error seen so early.

A track is read from its first packet to its last; nothing is sought, since many containers land elsewhere than asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from savi.base.av_guard import ONLY_THIS_FILE
from savi.base.limits import Limits
from savi.video.frames import VideoError

_ALL_TRACKS_IN_HEADER = {"mp4": "mov", "matroska": "matroska"}
"""Containers whose tracks are known when the header is read, and their demuxer. With others PyAV must not be given options for the decoders
that look into the first pictures: it makes room for as many as there are tracks by then, and writes beyond it (PyAV 15)."""

_HELD_BYTES = 256 << 20
"""Packets of a film up to this size stay in memory; a bigger film is read a second time."""

_RATE_TOLERANCE = 0.1
"""What rounded times and the last picture's length, which no time tells, may make of a rate."""

Log = list[tuple[int, str, str]]
"""FFmpeg's messages of level error: (level, who, text)."""


class Packet(NamedTuple):
    pts: int | None
    key: bool
    shown: bool
    """Not hidden by an edit list."""
    corrupt: bool
    """The container says so."""


@dataclass(frozen=True)
class Track:
    """`packets` in decoding order, one a picture; `size`: width, height in pixels as decoded; `tick_s`: seconds of a time's
    unit; `alone`: the file's only video track."""

    kind: str | None
    codec: str
    stream: int
    size: tuple[int, int]
    fps: float
    duration_s: float | None
    tick_s: float
    packets: tuple[Packet, ...]
    held: tuple[Any, ...] | None
    alone: bool

    @cached_property
    def shown(self) -> tuple[int, ...]:
        """Packet numbers in display order by their times; in the file's order where times are missing."""
        numbers = [number for number, packet in enumerate(self.packets) if packet.shown]
        return tuple(sorted(numbers, key=lambda number: self.packets[number].pts or 0)) if self.timed else tuple(numbers)

    @cached_property
    def timed(self) -> bool:
        """Each picture has a display time of its own. AVI has none; FFmpeg makes some up."""
        times = [packet.pts for packet in self.packets if packet.shown]
        return self.kind != "avi" and None not in times and len(set(times)) == len(times)

    @cached_property
    def ordered(self) -> bool:
        """The times can be right: what is decoded before a key frame is shown before it, and what is decoded after it is shown after it,
        but for leading pictures, which come at once."""
        rank = {number: rank for rank, number in enumerate(self.shown)}
        latest = key = -1
        leading = False
        for number, own in sorted(rank.items()):
            if self.packets[number].key:
                if own < latest:
                    return False
                key, leading = own, True
            elif own > key:
                leading = False
            elif not leading:
                return False
            latest = max(latest, own)
        return self.timed


@contextmanager
def opened(file: Path, kind: str | None, limits: Limits) -> Iterator[tuple[Any, Log]]:
    """The file in PyAV, and the errors that FFmpeg tells of; no file but this one is read, and what ends FFmpeg becomes a `VideoError`."""
    av = import_av()
    known_kind = _ALL_TRACKS_IN_HEADER.get(kind or "")
    only_this_file = ONLY_THIS_FILE | ({"format_whitelist": known_kind} if known_kind else {})
    while_opening = {"threads": "1", "max_pixels": str(limits.max_pixels)} if kind in _ALL_TRACKS_IN_HEADER else {}
    known = False
    try:
        av.logging.set_level(av.logging.ERROR)
        with (
            av.logging.Capture() as log,
            av.open(str(file.absolute()), metadata_errors="replace", container_options=only_this_file, options=while_opening) as container,
        ):
            known = True
            yield container, log
    except av.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
        if not known and isinstance(error, ValueError) and kind is None:
            raise VideoError(file, "not a video (no container that is read here)", "not_a_video") from error
        raise VideoError(file, f"cannot be decoded: {words(error)}", "unreadable") from error


def read_track(container: Any, log: Log, file: Path, kind: str | None, limits: Limits) -> Track:
    """Choose the film among the video tracks and read its packets.

    Cover art, a track of one picture before the film, is passed over.

    Raises:
        VideoError: there is no video track, none with a picture, no decoder for it, or its pictures are too big.
    """
    av = import_av()
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]  # a song's cover is no video
    if not streams:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise VideoError(file, f"has no video stream (it holds: {kinds})", "no_video_stream")
    facts: dict[int, list[Packet]] = {stream.index: [] for stream in streams}
    held: dict[int, list[Any]] = {stream.index: [] for stream in streams}
    held_bytes = empty = 0
    for packet in container.demux(*streams):
        empty += not packet.size and packet.dts is not None  # the last one of each track is none of the file's
        if packet.size:
            facts[packet.stream_index].append(Packet(packet.pts, packet.is_keyframe, not packet.is_discard, packet.is_corrupt))
            held[packet.stream_index].append(packet)
            held_bytes += packet.size
            if held_bytes > _HELD_BYTES:
                for packets in held.values():
                    packets.clear()
    if lost := next((message for _, name, message in log if name == container.format.name), None):
        raise VideoError(file, f"its container is damaged: {lost.strip()}", "damaged")  # with packets lost, no frame is sure of its number
    if kind == "avi" and streams[0].frames > (held_packets := sum(map(len, facts.values())) + empty):
        raise VideoError(file, f"its header names {streams[0].frames:,} pictures, it holds {held_packets:,}", "damaged")
    if short := _lost_end(container, streams, facts):
        raise VideoError(file, short, "truncated")
    stream = max(streams, key=lambda stream: min(len(facts[stream.index]), 2))  # the first of more than one picture
    if not any(packet.shown for packet in facts[stream.index]):
        raise VideoError(file, "0 decodable frames", "zero_frames")
    context = stream.codec_context
    if context is None:
        raise VideoError(file, "there is no decoder for its codec", "unreadable")
    check_size(file, context.width, context.height, limits)
    rate = stream.average_rate or stream.guessed_rate
    track = Track(
        kind,
        context.name,
        stream.index,
        (context.width, context.height),
        float(rate) if rate else 25.0,
        _duration_s(container, stream, kind),
        float(stream.time_base or 0),
        tuple(facts[stream.index]),
        tuple(held[stream.index]) if held_bytes <= _HELD_BYTES else None,
        len(container.streams.video) == 1,
    )
    return replace(track, fps=_measured_fps(track))


def _measured_fps(track: Track) -> float:
    """The average rate by the pictures' own times, where what the file says is another one: of a varying rate it names the finest."""
    times = [track.packets[number].pts or 0 for number in track.shown]
    if not track.timed or not track.tick_s or len(times) < 2:
        return track.fps
    measured = (len(times) - 1) / ((times[-1] - times[0]) * track.tick_s)
    return measured if abs(measured - track.fps) > _RATE_TOLERANCE * track.fps else track.fps


def check_size(file: Path, width: int, height: int, limits: Limits) -> None:
    """Raises VideoError where a picture is above the limit."""
    if width * height > limits.max_pixels:
        raise VideoError(
            file, f"pictures of {width} x {height} are above the limit of {limits.max_pixels:,} pixels (--max-pixels)", "too_large"
        )


def _lost_end(container: Any, streams: list[Any], facts: dict[int, list[Packet]]) -> str | None:
    """That pictures end long before the header says; for containers that are read to wherever they end."""
    if container.format.name not in ("flv", "asf") or len(container.streams) > 1 or not container.duration:
        return None
    stream = streams[0]
    times = sorted(packet.pts for packet in facts[stream.index] if packet.pts is not None)
    if len(times) < 2:
        return None
    step = (times[-1] - times[0]) / (len(times) - 1)
    end_s, said_s = float((times[-1] + step) * stream.time_base), container.duration / 1_000_000
    return f"truncated at {end_s:.1f} s of {said_s:.1f} s" if said_s > end_s + 2.5 * step * float(stream.time_base) else None


def _duration_s(container: Any, stream: Any, kind: str | None) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if not container.duration:
        return None
    before = container.start_time if kind == "matroska" and container.start_time else 0  # its length counts from time 0
    return max(container.duration - before, 0) / 1_000_000


def import_av() -> Any:
    try:
        import av
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("reading videos needs PyAV: pip install av", name="av") from error
    return av


def words(error: BaseException) -> str:
    """An FFmpeg error without its number and the names of functions and files."""
    return str(getattr(error, "strerror", "") or error or type(error).__name__).strip().splitlines()[0]
