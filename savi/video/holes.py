"""Holes: zeros where a download or a disk lost a part of a film, which decoders of modern codecs show as pictures, with no error."""

from __future__ import annotations

_RUN = bytes(32)
_ARITHMETIC = {"vp8", "vp9", "av1", "libdav1d", "libvpx", "libvpx-vp9"}
"""Their packets are entropy coded to the last byte: a run of zeros that long does not occur."""


def nal_length_bytes(codec: str, header: bytes) -> int:
    """How many bytes say the length of each unit in H.264 or HEVC packets (their headers' avcC and hvcC); 0: no such lengths."""
    at = {"h264": 4, "hevc": 21}.get(codec, -1)
    return (header[at] & 3) + 1 if 0 <= at < len(header) and header[0] == 1 else 0


def has_hole(codec: str, length_bytes: int, data: bytes) -> bool:
    """Whether a packet holds zeros that no encoder writes.

    H.264 and HEVC break up three zeros in a row (emulation prevention: ITU-T H.264, 7.4.1).
    """
    if codec in _ARITHMETIC:
        return _RUN in data
    if not length_bytes or b"\0\0\0" not in data:
        return False
    position = 0
    while position + length_bytes <= len(data):
        start = position + length_bytes
        position = start + int.from_bytes(data[position:start], "big")
        if b"\0\0\0" in data[start:position].rstrip(b"\0"):
            return True
    return False
