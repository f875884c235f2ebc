"""The worker process: takes requests from a socket, decodes, and hands the frames back in shared memory. Started by `savi.video.read`.

A limit that is broken, or a file that breaks the decoder, ends this process and no other. It ends by itself when its parent is gone.
"""

from __future__ import annotations

import mmap
import os
import resource
import signal
import socket
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from savi.base.limits import Limits
from savi.video.decode import decode_video
from savi.video.frames import Pixels, VideoError
from savi.video.link import receive, send
from savi.video.track import import_av


def main(handle: int) -> None:
    """Serve requests on an open socket until the other side closes it."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process also inside a decoder
    with suppress(ModuleNotFoundError):
        import_av()  # before the first limit on memory; a request will tell that it is missing
    with socket.socket(fileno=handle) as link:
        while request := receive(link):
            answer, memory = _answer(request)
            send(link, answer, memory)
            if memory is not None:
                os.close(memory)


def _answer(request: dict[str, Any]) -> tuple[dict[str, Any], int | None]:
    limits = Limits(**request["limits"])
    with suppress(ValueError, OSError):  # the machine's own limit is lower, or it knows none
        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (limits.memory_mb << 20 or most, most))
    signal.setitimer(signal.ITIMER_REAL, limits.timeout_s)
    memory = _Memory()
    try:
        frames = decode_video(
            Path(request["path"]),
            num_frames=request["num_frames"],
            decoder=request["decoder"],
            limits=limits,
            allocate=memory.allocate,
        )
    except VideoError as error:
        memory.close()
        return {"reason": error.reason, "kind": error.kind}, None
    except MemoryError:
        memory.close()
        return {"reason": f"needs more than {limits.memory_mb:,} MB of memory (--decode-memory)", "kind": "too_large"}, None
    except ModuleNotFoundError as error:
        return {"absent": str(error), "name": error.name}, None
    except Exception as error:  # noqa: BLE001  one file must not end the work on the others
        memory.close()
        return {"reason": f"cannot be decoded: {type(error).__name__}: {error}", "kind": "unreadable"}, None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    facts = {name: getattr(frames, name) for name in ("indices", "fps", "duration_s", "total", "decoder")}
    return {**facts, "shape": frames.pixels.shape}, memory.handle


class _Memory:
    """A nameless file in memory that two processes can map."""

    def __init__(self) -> None:
        self.handle: int | None = None

    def allocate(self, shape: tuple[int, ...]) -> Pixels:
        size = int(np.prod(shape))
        if hasattr(os, "memfd_create"):
            self.handle = os.memfd_create("savi-frames")
        else:
            with tempfile.TemporaryFile() as file:
                self.handle = os.dup(file.fileno())
        os.ftruncate(self.handle, size)
        try:
            return np.frombuffer(mmap.mmap(self.handle, size), np.uint8).reshape(shape)
        except OSError as error:
            raise MemoryError from error

    def close(self) -> None:
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None
