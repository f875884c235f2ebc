"""Films of many codecs and containers, made with PyAV: each frame shows its own number in ten black or white blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT, LENGTH = 192, 96, 50


@dataclass(frozen=True)
class Film:
    """How a film is encoded; the container is the suffix of `name`."""

    name: str
    codec: str
    options: dict[str, str] = field(default_factory=dict)
    pix_fmt: str = "yuv420p"
    muxer: dict[str, str] = field(default_factory=dict)
    length: int = LENGTH
    rate: int = 10
    size: tuple[int, int] = (WIDTH, HEIGHT)


_B_FRAMES = {"g": "12", "bf": "2"}
_X265 = "log-level=none:keyint=12:bframes=3"
FILMS = [
    Film("h264.mp4", "libx264", {"g": "12", "bf": "3"}),
    Film("h264-opengop.mp4", "libx264", {"g": "12", "bf": "3", "x264-params": "open-gop=1"}),
    Film("h264-opengop.mkv", "libx264", {"g": "12", "bf": "3", "x264-params": "open-gop=1:b-pyramid=normal"}),
    Film("h264-refresh.mkv", "libx264", {"g": "20", "x264-params": "intra-refresh=1"}),
    Film("h264-interlaced.mp4", "libx264", {"g": "12", "bf": "2", "x264-params": "interlaced=1"}),
    Film("h264-10bit.mp4", "libx264", {"g": "12"}, "yuv420p10le"),
    Film("h264-fragments.mp4", "libx264", {"g": "12"}, muxer={"movflags": "frag_keyframe+empty_moov"}),
    Film("h264.mov", "libx264", {"g": "12", "bf": "2"}),
    Film("h264.mkv", "libx264", {"g": "12", "bf": "2"}),
    Film("h264.avi", "libx264", {"g": "12", "bf": "0"}),
    Film("h264-b.avi", "libx264", {"g": "12", "bf": "2"}),
    Film("h264.ts", "libx264", {"g": "12", "bf": "2"}),
    Film("h264.flv", "libx264", {"g": "12", "bf": "2"}),
    Film("hevc.mp4", "libx265", {"x265-params": _X265}),
    Film("hevc-opengop.mkv", "libx265", {"x265-params": _X265 + ":open-gop=1"}),
    Film("hevc-10bit.mp4", "libx265", {"x265-params": _X265}, "yuv420p10le"),
    Film("hevc.ts", "libx265", {"x265-params": _X265}),
    Film("mpeg4.mp4", "mpeg4", _B_FRAMES),
    Film("mpeg4.mkv", "mpeg4", _B_FRAMES),
    Film("mpeg4.avi", "mpeg4", _B_FRAMES),
    Film("mpeg2.mp4", "mpeg2video", _B_FRAMES),
    Film("mpeg2.mkv", "mpeg2video", _B_FRAMES),
    Film("mpeg2.ts", "mpeg2video", _B_FRAMES),
    Film("mpeg2.mpg", "mpeg2video", _B_FRAMES),
    Film("mpeg1.mpg", "mpeg1video", _B_FRAMES, rate=25),
    Film("vp8.webm", "libvpx", {"g": "12"}),
    Film("vp8-hidden.webm", "libvpx", {"g": "24", "auto-alt-ref": "1", "lag-in-frames": "16", "arnr-maxframes": "5"}),
    Film("vp9.webm", "libvpx-vp9", {"g": "12"}),
    Film("vp9-hidden.mp4", "libvpx-vp9", {"g": "24", "auto-alt-ref": "1", "lag-in-frames": "16"}),
    Film("vp9-live.webm", "libvpx-vp9", {"g": "12"}, muxer={"live": "1"}),
    Film("av1.mp4", "libsvtav1", {"g": "12", "preset": "12"}),
    Film("av1.webm", "libaom-av1", {"g": "12", "cpu-used": "8"}, length=30),
    Film("mjpeg.mov", "mjpeg", pix_fmt="yuvj420p"),
    Film("mjpeg.avi", "mjpeg", pix_fmt="yuvj420p"),
    Film("h263.3gp", "h263", {"g": "12"}, size=(176, 144)),
    Film("flv1.flv", "flv", {"g": "12"}),
    Film("wmv2.wmv", "wmv2", {"g": "12"}),
    Film("prores.mov", "prores", pix_fmt="yuv422p10le"),
    Film("ffv1.mkv", "ffv1", {"g": "1"}),
    Film("gif.gif", "gif", pix_fmt="rgb8"),
]


def numbered_frames(length: int = LENGTH, width: int = WIDTH, height: int = HEIGHT) -> list[np.ndarray]:
    """Frame i shows i as ten blocks (black 0, white 1, lowest bit first) above a texture that moves."""
    ys, xs = np.mgrid[:height, :width]
    frames = []
    for number in range(length):
        texture = 128 + 60 * np.sin((xs + 3 * number) / 9) + 40 * np.cos((ys - 2 * number) / 7)
        frame = np.repeat(texture.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
        for bit in range(10):
            frame[4:28, 4 + bit * 16 : 20 + bit * 16] = 255 * (number >> bit & 1)
        frames.append(frame)
    return frames


def numbers_of(pixels: np.ndarray) -> list[int]:
    """The number that each frame [T, H, W, 3] shows."""
    return [sum(1 << bit for bit in range(10) if frame[8:24, 8 + bit * 16 : 16 + bit * 16].mean() > 126) for frame in pixels]


def write_film(folder: Path, film: Film) -> Path:
    path = folder / film.name
    width, height = film.size
    with av.open(str(path), "w", options=film.muxer) as out:
        stream = out.add_stream(film.codec, rate=film.rate)
        stream.width, stream.height, stream.pix_fmt = width, height, film.pix_fmt
        stream.options = film.options
        if film.codec not in ("libx264", "libx265", "gif", "ffv1", "prores"):
            stream.bit_rate = 1_500_000
        stream.codec_context.time_base = Fraction(1, film.rate)
        for number, pixels in enumerate(numbered_frames(film.length, width, height)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            for packet in stream.encode(frame):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
    return path
