"""A video file to frames in this process, by PyAV: each frame known by the packet it came from, and none that comes out of damage.

Frame k of a film is the k-th packet in display order. Decoding begins at the key frame before a group of wanted frames; every packet
carries its number through the decoder, so a frame that was dropped, concealed or put elsewhere is seen. Where packets and frames do not
match that way, the film is decoded from its start and counted. `savi.video.read` calls this in a worker process, which a file may end.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np

from savi.base.limits import Limits
from savi.video.containers import inspect
from savi.video.crosscheck import cross_checked
from savi.video.frames import Decoder, Frames, Pixels, VideoError, segment_indices
from savi.video.holes import has_hole, nal_length_bytes
from savi.video.track import Track, check_size, import_av, opened, read_track, words

Allocate = Callable[[tuple[int, ...]], Pixels]

_MAY_SHOW_NOTHING = {"mpeg4", "vp8", "vp9", "flv1", "h263", "msmpeg4v3", "msmpeg4v2", "wmv1", "wmv2"}
"""Codecs in which a packet can lawfully give no picture (not coded, or not shown)."""
_FULL_RANGE, _LIMITED_RANGE, _BT601 = 2, 1, 5


def decode_video(
    file: Path, *, num_frames: int, decoder: Decoder, limits: Limits, allocate: Allocate = lambda shape: np.empty(shape, np.uint8)
) -> Frames:
    """Decode `num_frames` frames, by `segment_indices`, into memory from `allocate`.

    Raises:
        VideoError: the file gives no such frames; its `kind` says why.
        MemoryError: the process may not have as much memory.
    """
    kind = _check_file(file)
    with opened(file, kind, limits) as (container, log):
        track = read_track(container, log, file, kind, limits)
        total = len(track.shown)
        indices = segment_indices(total, num_frames)
        film = _Film(file, container, track, limits)
        found = film.by_packets(indices) if track.ordered else None
        if found is None:
            total, found = film.by_counting(num_frames)
            indices = segment_indices(total, num_frames)
    duration_s = total / track.fps if track.duration_s is None else track.duration_s
    pixels = _stacked(found, indices, film.quarter_turns, allocate)
    used: Decoder = "pyav"
    if decoder != "pyav" and not film.quarter_turns and cross_checked(decoder, file, track, indices, pixels):
        used = decoder
    return Frames(pixels, tuple(indices), track.fps, duration_s, total, str(file), used)


def _check_file(file: Path) -> str | None:
    """The container's kind, and every error that needs no decoder."""
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
    if container.damage is not None:
        raise VideoError(file, container.damage, "damaged")
    return container.kind


def _stacked(found: dict[int, Pixels], indices: Sequence[int], quarter_turns: int, allocate: Allocate) -> Pixels:
    """The frames [T, H, W, 3] in the order of `indices`, turned counter-clockwise."""
    first = np.rot90(found[indices[0]], k=quarter_turns)
    out = allocate((len(indices), *first.shape))
    last = {index: place for place, index in enumerate(indices)}
    for place, index in enumerate(indices):
        out[place] = np.rot90(found[index], k=quarter_turns)
        if last[index] == place:
            del found[index]  # the copy in `out` is enough: memory for each frame once
    return out


class _DamageError(Exception):
    """What is wrong with the packet of this number."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(number, what)
        self.number, self.what = number, what


def _decoder_of(stream: Any, codec: str) -> Any:
    """The stream's decoder; for VP9 that of its makers, which notices garbage where FFmpeg's own shows it."""
    av = import_av()
    if codec == "vp9" and "libvpx-vp9" in av.codecs_available:
        context = av.CodecContext.create("libvpx-vp9", "r")
        context.extradata = stream.codec_context.extradata
        return context
    return stream.codec_context


class _Film:
    """One track being decoded."""

    def __init__(self, file: Path, container: Any, track: Track, limits: Limits) -> None:
        self.quarter_turns = 0
        """Counter-clockwise, as the file asks for."""
        self._file, self._track, self._limits = file, track, limits
        self._stream = container.streams[track.stream]
        self._context = _decoder_of(self._stream, track.codec)
        self._context.thread_count = 1  # what comes out of a damaged film would depend on timing
        self._context.copy_opaque = True
        self._context.options = {"max_pixels": str(limits.max_pixels), "err_detect": "crccheck+bitstream+buffer+explode"}
        self._rank = {number: rank for rank, number in enumerate(track.shown)}
        self._by_time = {track.packets[number].pts: number for number in track.shown} if track.timed else {}
        self._interlaced = False
        self._length_bytes = nal_length_bytes(track.codec, self._context.extradata or b"")

    def by_packets(self, indices: Sequence[int]) -> dict[int, Pixels] | None:
        """The wanted frames by index, or None where they do not come out as the packets' times and numbers say."""
        keys = [number for number, packet in enumerate(self._track.packets) if packet.key and packet.shown]
        groups: dict[int, set[int]] = {}
        for number in sorted({self._track.shown[index] for index in indices}):
            before = keys[: bisect_right(keys, number)]
            start = next((key for key in reversed(before) if self._rank[key] <= self._rank[number]), 0)
            groups.setdefault(start, set()).add(number)
        found: dict[int, Pixels] = {}
        for start, wanted in groups.items():
            try:
                self._group(start, wanted, found)
            except _DamageError:
                return None
            if wanted:
                return None
        return found

    def _group(self, start: int, wanted: set[int], found: dict[int, Pixels]) -> None:
        """Move the wanted packets' frames into `found`. Each frame must be the first, in display order, of those that are due."""
        due: list[int] = []
        first = self._rank.get(start, 0)
        for fed, frames in self._decoded(start, lenient=lambda number: self._rank.get(number, first) < first):
            if self._rank.get(fed, -1) >= first:
                heappush(due, self._rank[fed])
            for number, frame in frames:
                rank = self._rank.get(number, -1)
                if rank < first:  # shown before the key frame, decoded after it: it may need frames from before
                    continue
                if not due or rank != heappop(due):
                    raise _DamageError(number, "a picture is missing before it")
                if number in wanted:
                    found[rank] = self._rgb(frame)
                    wanted.remove(number)
            if not wanted:
                return

    def by_counting(self, num_frames: int) -> tuple[int, dict[int, Pixels]]:
        """(number of frames, the wanted ones by index), in the order in which the decoder gives them, from the start.

        Raises:
            VideoError: a part of the film is damaged.
        """
        total = len(self._track.shown)
        try:
            for _ in range(2):
                counted, found = self._counted(set(segment_indices(total, num_frames)))
                if counted == total:
                    return total, found
                if not counted:
                    raise VideoError(self._file, "0 decodable frames", "zero_frames")
                total = counted
        except _DamageError as error:
            number, total = error.number, len(self._track.packets)
            raise VideoError(self._file, f"damaged at packet {number + 1:,} of {total:,}: {error.what}", "damaged") from error
        raise VideoError(self._file, "gives another number of frames each time it is decoded", "damaged")

    def _counted(self, wanted: set[int]) -> tuple[int, dict[int, Pixels]]:
        found: dict[int, Pixels] = {}
        counted = 0
        undecodable = self._undecodable()
        reordered, latest = self._track.timed and list(self._track.shown) != sorted(self._track.shown), -1
        missing = dict.fromkeys(self._rank)
        for _, frames in self._decoded(0, lenient=undecodable.__contains__):
            for number, frame in frames:
                missing.pop(number, None)
                if reordered and number not in undecodable:
                    if self._rank.get(number, -1) <= latest:
                        raise _DamageError(number, "its picture comes out at another place than its container says")
                    latest = self._rank[number]
                if counted in wanted:
                    found[counted] = self._rgb(frame)
                counted += 1
        lawful = self._interlaced or self._track.codec in _MAY_SHOW_NOTHING
        if lost := [number for number in missing if number not in undecodable and not lawful]:
            raise _DamageError(lost[0], "no picture comes out of it")
        return counted, found

    def _undecodable(self) -> set[int]:
        """Packets that need pictures from before the film's beginning: shown before its first key frame, or, in a stream that was recorded
        from somewhere on, in the file before it."""
        first = next((number for number, packet in enumerate(self._track.packets) if packet.key), 0)
        first_rank = self._rank.get(first, 0) if self._track.timed else 0
        cut_in = self._track.kind in (None, "mpegts")
        return {number for number, rank in self._rank.items() if (rank < first_rank and number > first) or (cut_in and number < first)}

    def _decoded(self, start: int, lenient: Callable[[int], bool]) -> Iterator[tuple[int, list[tuple[int, Any]]]]:
        """(packet number, [(number of a frame's packet, frame)]) from a packet on, then -1 with the frames left in the decoder.

        Raises:
            _DamageError: a packet that is not `lenient` is damaged.
        """
        av = import_av()
        self._context.flush_buffers()
        for number, packet in chain(self._packets(start), [(-1, None)]):
            if packet is not None:
                packet.opaque = number
                if self._track.packets[number].corrupt and not lenient(number):
                    raise _DamageError(number, "its container marks it as corrupt")
                if not lenient(number) and has_hole(self._track.codec, self._length_bytes, bytes(packet)):
                    raise _DamageError(number, "zeros where its data should be")
            try:
                frames = self._context.decode(packet)
            except av.FFmpegError as error:
                if isinstance(error, MemoryError):
                    raise
                if not lenient(number):
                    raise _DamageError(number, words(error)) from error
                continue
            known = []
            for frame in frames:
                check_size(self._file, frame.width, frame.height, self._limits)
                own = frame.opaque if frame.opaque is not None else self._by_time.get(frame.pts, -1)
                if not frame.is_corrupt:
                    known.append((own, frame))
                elif not lenient(own):
                    raise _DamageError(own, "its picture is concealed")
                self._interlaced |= frame.interlaced_frame
            yield number, known

    def _packets(self, start: int) -> Iterator[tuple[int, Any]]:
        """The packets from one on, with their numbers."""
        if self._track.held is not None:
            yield from zip(count(start), self._track.held[start:])
            return
        with opened(self._file, self._track.kind, self._limits) as (again, _):
            stream = again.streams[self._track.stream]
            every = (packet for packet in again.demux(stream) if packet.size)
            yield from islice(enumerate(every), start, None)

    def _rgb(self, frame: Any) -> Pixels:
        """[H, W, 3]; YUV is read by the frame's own matrix and range (PyAV's `to_ndarray` takes BT.601 for all)."""
        self.quarter_turns = round(frame.rotation / 90) % 4
        width, height = self._track.size
        pixels: Pixels = frame.reformat(
            width=width or None,  # some films change size midway
            height=height or None,
            format="rgb24",
            src_colorspace=int(frame.colorspace),
            dst_colorspace=_BT601,
            src_color_range=_FULL_RANGE if frame.color_range == _FULL_RANGE else _LIMITED_RANGE,
            dst_color_range=_LIMITED_RANGE,
        ).to_ndarray()
        return pixels
