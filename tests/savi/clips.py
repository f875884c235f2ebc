"""Small real video files for the tests, made with PyAV: each frame carries its own number as a grey level."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

STEP = 8
"""Grey levels between two frames; H.264 at a low crf keeps a flat grey within about one level."""


def grey_frames(total: int, *, width: int = 64, height: int = 48) -> list[np.ndarray]:
    """Frame i is grey i * STEP, with a white square in the upper left corner so that a rotation shows."""
    frames = []
    for index in range(total):
        frame = np.full((height, width, 3), index * STEP % 240, np.uint8)
        frame[: height // 3, : width // 4] = 255
        frames.append(frame)
    return frames


def write_clip(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    fps: int = 10,
    times_ms: Sequence[int] | None = None,
    codec: str = "libx264",
    gop: int = 6,
    b_frames: int = 2,
    muxer_options: dict[str, str] | None = None,
    with_audio: bool = False,
    title: str = "",
) -> Path:
    """Encode frames; `times_ms` gives each its own display time (a variable frame rate)."""
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w", options=muxer_options or {}) as out:
        if title:
            out.metadata["title"] = title
        stream = out.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "4", "g": str(gop), "bf": str(b_frames)} if codec == "libx264" else {"g": str(gop)}
        if codec != "libx264":
            stream.bit_rate = 4_000_000
        stream.codec_context.time_base = Fraction(1, 1000) if times_ms else Fraction(1, fps)
        sound = out.add_stream("aac", rate=16000) if with_audio else None
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = times_ms[index] if times_ms else index
            frame.time_base = stream.codec_context.time_base
            for packet in stream.encode(frame):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
        if sound is not None:
            _encode_silence(out, sound)
    return path


def write_audio(path: Path) -> Path:
    with av.open(str(path), "w") as out:
        _encode_silence(out, out.add_stream("aac", rate=16000))
    return path


def _encode_silence(out: av.container.OutputContainer, stream: av.AudioStream, samples: int = 8192) -> None:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, samples), np.float32), format="fltp", layout="mono")
    frame.sample_rate, frame.pts = 16000, 0
    for packet in stream.encode(frame):
        out.mux(packet)
    for packet in stream.encode():
        out.mux(packet)


def cut_clip(source: Path, target: Path, *, start_s: float) -> Path:
    """Cut the beginning off an mp4 without re-encoding: the packets stay, shifted to before time 0, and an edit list hides them."""
    with av.open(str(source)) as read, av.open(str(target), "w") as out:
        stream = read.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for packet in read.demux(stream):
            if packet.dts is None or packet.pts is None:
                continue
            shift = int(start_s / packet.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
            out.mux(packet)
    return target


_QUARTERS = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


def rotate_clip(source: Path, target: Path, degrees_clockwise: int) -> Path:
    """Set the display matrix in an mp4's track header (ISO/IEC 14496-12, 8.3.2), as phones do for a camera held sideways."""
    data = bytearray(source.read_bytes())
    header = data.find(b"tkhd") + 4
    matrix = header + 4 + (32 if data[header] == 1 else 20) + 16
    a, b, c, d = _QUARTERS[degrees_clockwise]
    data[matrix : matrix + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    target.write_bytes(bytes(data))
    return target


def empty_track(source: Path, target: Path) -> Path:
    """An mp4 whose sample tables say 0 samples: a video stream without a frame."""
    data = bytearray(source.read_bytes())
    for name, count_at in ((b"stts", 8), (b"stsz", 12), (b"stsc", 8), (b"stco", 8), (b"ctts", 8), (b"stss", 8)):
        box = data.find(name)
        if box >= 0:
            data[box + count_at : box + count_at + 4] = bytes(4)
    target.write_bytes(bytes(data))
    return target


def grey_of(pixels: np.ndarray) -> list[int]:
    """The number of each frame [T, H, W, 3], read back from the grey of its lower right corner."""
    corner = pixels[:, -8:, -8:].reshape(len(pixels), -1).mean(axis=1)
    return [round(float(level) / STEP) for level in corner]
