"""What every use of PyAV needs: tags of any bytes, no other file or address than the one that is opened, no picture above the limit, and no
death of the process for a codec without a decoder. Frames for models are read in worker processes, by `savi.video`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from savi.base.limits import current_limits

CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,asf,asf_o,ogg,gif,apng,webp_anim,nut,mxf,wtv,rm,dv,ivf,"
    "h264,hevc,vvc,obu,av1,m4v,h263,h261,yuv4mpegpipe,swf,nsv,nuv,bink,smk,roq,avs,cavsvideo,vc1,dirac,amv"
)
"""FFmpeg's demuxers that may open a file. Left out: texts (read as ANSI art), pictures, sound, and lists of other files or addresses."""
ONLY_THIS_FILE = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}


@contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """(container, its first video stream that can be decoded), in this process.

    Raises:
        ValueError: there is none, or its pictures are above the limit (`savi.base.limits`).
        av.error.FFmpegError, OSError: the file cannot be read.
    """
    import av

    with av.open(str(path.absolute()), metadata_errors="replace", container_options=ONLY_THIS_FILE) as container:
        streams = list(container.streams.video)
        stream = next((stream for stream in streams if stream.codec_context is not None), None)
        if stream is None:  # decoding it would end the process (PyAV 15)
            raise ValueError("there is no decoder for its codec" if streams else "it has no video stream")
        most, context = current_limits().max_pixels, stream.codec_context
        if context.width * context.height > most:
            raise ValueError(f"pictures of {context.width} x {context.height} are above the limit of {most:,} pixels")
        context.options = {"max_pixels": str(most)}
        yield container, stream
