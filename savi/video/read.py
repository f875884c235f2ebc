"""`read_frames`: a video decoded in a worker process with limits, so that the worst a file can do is to be an error.

Workers are started when first needed, kept for the next video, and gone with this process. Frames come back in shared memory, uncopied.
"""

from __future__ import annotations

import atexit
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from savi.base.limits import Limits, current_limits
from savi.video.frames import DECODERS, Decoder, Frames, VideoError
from savi.video.link import receive, send

_GRACE_S = 10.0
"""A worker ends itself at its time limit; one that cannot (a file system that hangs) is given up after so many seconds more."""

_CODE = "import sys; sys.path.insert(0, sys.argv[2]); from savi.video.serve import main; main(int(sys.argv[1]))"


def read_frames(path: str | Path, *, num_frames: int, decoder: Decoder = "pyav", limits: Limits | None = None) -> Frames:
    """Decode `num_frames` frames of a video, by `segment_indices`.

    "pyav" reads everything. With "decord" or "torchcodec" the other library's frames are taken where it is installed and its frames are
    those of PyAV; `Frames.decoder` says which was used. `limits`: by default those of the environment (`savi.base.limits`).

    Raises:
        VideoError: the file gives no such frames, or broke a limit or the decoder; its `kind` says why.
        ValueError: `num_frames` is below 1, or `decoder` is unknown.
        ModuleNotFoundError: PyAV is not installed.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    if decoder not in DECODERS:
        raise ValueError(f"unknown decoder {decoder!r}: use one of {', '.join(DECODERS)}")
    bounds = limits or current_limits()
    try:
        return _read(str(path), num_frames, decoder, bounds)
    except VideoError as error:
        if error.kind != "crashed":
            raise
    close_workers()  # it may have been the other library, or something that an earlier video left behind
    return _read(str(path), num_frames, "pyav", bounds)


def _read(path: str, num_frames: int, decoder: Decoder, limits: Limits) -> Frames:
    with _worker() as worker:
        answer = worker.ask(
            {"path": str(Path(path).absolute()), "num_frames": num_frames, "decoder": decoder, "limits": asdict(limits)}, limits.timeout_s
        )
    if "absent" in answer:
        raise ModuleNotFoundError(answer["absent"], name=answer["name"])
    if "reason" in answer:
        raise VideoError(path, answer["reason"], answer["kind"])
    size = int(np.prod(answer["shape"]))
    pixels = np.frombuffer(mmap.mmap(answer["memory"], size), np.uint8).reshape(answer["shape"])
    os.close(answer["memory"])  # the mapping stays as long as the array
    return Frames(pixels, tuple(answer["indices"]), answer["fps"], answer["duration_s"], answer["total"], path, answer["decoder"])


class _Worker:
    """One worker process, its end of the socket, and how it ended."""

    def __init__(self) -> None:
        self._link, other = socket.socketpair()
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-W", "ignore", "-c", _CODE, str(other.fileno()), str(Path(__file__).resolve().parents[2])],
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The worker's answer; its death is an answer too."""
        try:
            self._link.settimeout(timeout_s + _GRACE_S)
            with suppress(ConnectionError):
                send(self._link, request)
                if answer := receive(self._link):
                    return answer
        except TimeoutError:
            self.close()
            return _too_slow(timeout_s)
        except BaseException:  # interrupted: the answer would be taken for that of the next request
            self.close()
            raise
        status = self._process.wait()
        if status == -signal.SIGALRM:
            return _too_slow(timeout_s)
        how = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        return {"reason": f"ended the decoder's process ({how})", "kind": "crashed"}

    def close(self) -> None:
        self._link.close()
        self._process.kill()
        self._process.wait()


def _too_slow(timeout_s: float) -> dict[str, Any]:
    return {"reason": f"not decoded within {timeout_s:g} s (--decode-timeout)", "kind": "timeout"}


_idle: list[_Worker] = []
_owner = os.getpid()
_lock = threading.Lock()


@contextmanager
def _worker() -> Iterator[_Worker]:
    """An idle worker, or a new one; kept for the next request where it is still alive."""
    global _owner
    with _lock:
        if _owner != os.getpid():  # after a fork the workers are the parent's
            _idle.clear()
            _owner = os.getpid()
        while _idle and not _idle[-1].alive:
            _idle.pop()
        worker = _idle.pop() if _idle else _Worker()
    try:
        yield worker
    finally:
        if worker.alive:
            with _lock:
                _idle.append(worker)


@atexit.register
def close_workers() -> None:
    """End the idle workers; the next video starts a new one."""
    with _lock:
        while _idle and _owner == os.getpid():
            _idle.pop().close()
