"""What every use of PyAV outside of savi.video needs: tags of any bytes, and no death of the process for a codec without a decoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """(container, its first video stream that can be decoded), in this process.

    Raises:
        ValueError: there is none.
        av.error.FFmpegError, OSError: the file cannot be read.
    """
    import av

    with av.open(str(path.absolute()), metadata_errors="replace") as container:
        streams = list(container.streams.video)
        stream = next((stream for stream in streams if stream.codec_context is not None), None)
        if stream is None:  # decoding it would end the process (PyAV 15)
            raise ValueError("there is no decoder for its codec" if streams else "it has no video stream")
        yield container, stream
