"""The next videos decoded while the caller works on this one, in worker processes."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from savi.base.processes import cores
from savi.video.frames import Decoder, Frames, VideoError
from savi.video.read import read_frames

_waited_s = [0.0]


def waited_s() -> float:
    """Seconds this process has waited for frames so far, in all: the share of a stage's time in which its model had nothing to do."""
    return _waited_s[0]


def decoders() -> int:
    """How many videos to decode at a time: the cores of this process's share of the machine, less the one that feeds the model, at most 8.
    A long video takes a core for seconds, and a GPU asks for the next one several times a second."""
    share = cores() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))
    return min(8, max(1, share - 1))


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
        decoder: Decoder = "pyav",
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
        waited = time.perf_counter() - began
        self.waited_s += waited
        _waited_s[0] += waited
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
        """Stop decoding ahead; a video that is being decoded is waited for and dropped."""
        self._paths = iter(())
        self._ahead.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> FramePrefetcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def prefetch(
    paths: Iterable[str | Path], *, num_frames: int, depth: int = 2, workers: int = 1, decoder: Decoder = "pyav"
) -> Iterator[tuple[Path, Frames | VideoError]]:
    """`FramePrefetcher` as a plain iterator that cleans up after itself when it is dropped."""
    with FramePrefetcher(paths, num_frames=num_frames, depth=depth, workers=workers, decoder=decoder) as frames:
        yield from frames
