"""Where a data set's files come from: a repository on the hub at one commit, read by pieces, or a folder with the same files.

A file on the hub is opened without being downloaded: reads become range requests, and a connection that is cut is taken up again where
it ended. Knows no benchmark.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from benchmarks.data.layout import DatasetError

TRIES = 5
"""Times that a read is tried without a single byte before it fails."""
WAIT_S = 1.0
"""Seconds before the second try; twice as long before each further one."""
_FIRST_WINDOW, _LAST_WINDOW = 1 << 16, 1 << 26
"""Bytes of the first request after a jump; doubled with each further one, so that a long file takes few requests and a short one little."""
_NEAR = 1 << 16
"""A seek forward by less than this reads on instead of asking again."""


@dataclass(frozen=True)
class SourceFile:
    """A file of a source. `sha256` where the source knows it."""

    path: str
    size: int
    sha256: str = ""


class Source(Protocol):
    """Files by path (POSIX, relative)."""

    @property
    def commit(self) -> str:
        """What the files belong to; empty for a plain folder."""

    @property
    def files(self) -> Sequence[SourceFile]: ...

    def open(self, path: str) -> IO[bytes]:
        """A seekable binary file."""


class FolderSource:
    """The hub's files in a folder on this machine."""

    commit = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = (p for p in sorted(folder.rglob("*")) if p.is_file())
        self.files = tuple(SourceFile(p.relative_to(folder).as_posix(), p.stat().st_size) for p in found)

    def open(self, path: str) -> IO[bytes]:
        return (self.folder / path).open("rb")


class HubSource:
    """A data set's repository at one commit.

    Raises:
        DatasetError: the hub cannot be reached, has no such repository or revision, or asks for a licence that was not accepted.
    """

    def __init__(self, repo: str, revision: str | None, *, gated: bool) -> None:
        from huggingface_hub import HfApi

        self.repo = repo
        with _hub_errors(repo):
            api = HfApi()
            if gated:
                api.auth_check(repo, repo_type="dataset")
            info = api.dataset_info(repo, revision=revision, files_metadata=True)
        self.commit = str(info.sha)
        self.files = tuple(
            SourceFile(s.rfilename, int(s.size or 0), str(s.lfs.sha256) if s.lfs else "")
            for s in sorted(info.siblings or (), key=lambda s: s.rfilename)
        )
        self._sizes = {f.path: f.size for f in self.files}

    def open(self, path: str) -> IO[bytes]:
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(self.repo, path, repo_type="dataset", revision=self.commit)
        return io.BufferedReader(RemoteFile(url, self._sizes[path], self.repo), 1 << 16)


class RemoteFile(io.RawIOBase):
    """A file behind a URL, read in order or by jumps."""

    def __init__(self, url: str, size: int, repo: str) -> None:
        super().__init__()
        self._url, self._size, self._repo = url, size, repo
        self._at, self._until, self._window = 0, 0, _FIRST_WINDOW
        self._response: Any = None
        self._context: Any = None
        self._pieces: Any = None
        self._held = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        target = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        while self._pieces is not None and 0 < target - self._at < _NEAR:
            if not self._take(target - self._at):
                break
        if target != self._at:
            self._drop()
            self._at, self._window = target, _FIRST_WINDOW
        return target

    def readinto(self, buffer: Any) -> int:
        """Fill from the open answer; asks again where it was cut.

        Raises:
            DatasetError: the hub refused, or gave nothing in several tries.
        """
        if self._at >= self._size:
            return 0
        for attempt in range(TRIES):
            if attempt:
                time.sleep(WAIT_S * 2 ** (attempt - 1))
            data = self._take(len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
        raise DatasetError(
            f"{self._url}: no answer from byte {self._at:,} of {self._size:,} in {TRIES} tries; run the same command again, "
            "what has arrived is kept"
        )

    def _take(self, most: int) -> bytes:
        """Up to `most` bytes from here; none where the connection failed."""
        from huggingface_hub.errors import HfHubHTTPError, HTTPError

        try:
            if self._pieces is None or self._at == self._until:
                self._drop()
                self._ask()
            if not self._held:
                self._held = next(self._pieces, b"")
        except HfHubHTTPError as e:
            self._drop()
            if e.response.status_code < 500 and e.response.status_code != 429:
                raise DatasetError(explain(e, self._repo)) from e
        except (HTTPError, OSError):
            self._drop()
        data, self._held = self._held[:most], self._held[most:]
        if not data:
            self._drop()
        self._at += len(data)
        return data

    def _ask(self) -> None:
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        self._until = min(self._size, self._at + self._window)
        self._window = min(2 * self._window, _LAST_WINDOW)
        headers = {**build_hf_headers(), "Range": f"bytes={self._at}-{self._until - 1}", "Accept-Encoding": "identity"}
        self._context = get_session().stream("GET", self._url, headers=headers, follow_redirects=True)
        self._response = self._context.__enter__()
        hf_raise_for_status(self._response)
        if self._response.status_code != 206:
            raise DatasetError(f"{self._url}: the server gives no parts of files (status {self._response.status_code})")
        self._pieces = self._response.iter_raw(1 << 20)

    def _drop(self) -> None:
        context, self._context, self._response, self._pieces, self._held = self._context, None, None, None, b""
        if context is not None:
            context.__exit__(None, None, None)

    def close(self) -> None:
        if not self.closed:
            self._drop()
        super().close()


class _hub_errors:
    """The hub's errors as ours."""

    def __init__(self, repo: str) -> None:
        self.repo = repo

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from huggingface_hub.errors import HTTPError

        if isinstance(error, HTTPError | OSError):
            raise DatasetError(explain(error, self.repo)) from error


def explain(error: BaseException, repo: str) -> str:
    """One line with the fix for an error on the way to a repository."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"{constants.ENDPOINT}/datasets/{repo}"
    if isinstance(error, GatedRepoError):
        return f"{repo} is gated and your login has no access: accept its licence on {page}, then log in with `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo}: the revision is not on the hub any more; `prepare --update` takes the present one"
    if isinstance(error, RepositoryNotFoundError):
        return f"{repo}: not on the hub, or not visible for your login ({page})"
    text = (str(error).splitlines() or [""])[0]
    status = f"status {error.response.status_code}" if isinstance(error, HfHubHTTPError) else type(error).__name__
    return f"{repo}: the hub did not answer as expected ({status}: {text}); run the same command again, what has arrived is kept"
