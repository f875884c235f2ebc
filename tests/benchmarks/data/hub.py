"""A stand-in for the hub over loopback: one data set repository from a folder, with faults on demand. As far as huggingface_hub and
`datasets` ask: repository information, file lists, whole files and parts of files."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class Hub:
    """Serves `repos` (id -> folder). `cut`: paths whose next answers end after so many bytes; `gated`: ids that answer 403;
    `wrong`: paths of which other bytes are sent than promised; `sent`: bytes sent of each path."""

    def __init__(self, repos: dict[str, Path], commit: str = "c" * 40) -> None:
        self.repos, self.commit = repos, commit
        self.cut: dict[str, list[int]] = {}
        self.gated: set[str] = set()
        self.down = False
        self.wrong: set[str] = set()
        self.sent: Counter[str] = Counter()
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                hub._answer(self, body=True)

            def do_HEAD(self) -> None:
                hub._answer(self, body=False)

            def do_POST(self) -> None:
                hub._answer(self, body=True)

            def do_PUT(self) -> None:
                hub._answer(self, body=True)

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                pass  # a client that hangs up

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo: str) -> dict[str, Path]:
        root = self.repos[repo]
        return {p.relative_to(root).as_posix(): p for p in sorted(root.rglob("*")) if p.is_file()}

    def _answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        url = urlsplit(request.path)
        path = unquote(url.path)
        self.asked.append(f"{request.command} {path}")
        length = int(request.headers.get("Content-Length") or 0)
        posted = request.rfile.read(length) if length else b""
        if "/resolve/" in path and not self._refusal(path):
            self._file(request, path, body=body)
        else:
            _send(request, *self._reply(path, url.query, posted), body=body)

    def _repo(self, path: str) -> str | None:
        return next((r for r in self.repos if f"/datasets/{r}" in path), None)

    def _refusal(self, path: str) -> tuple[int, bytes, dict[str, str]] | None:
        repo = self._repo(path)
        if self.down:
            return 503, b"down", {}
        if repo is None:
            return 404, b"{}", {"X-Error-Code": "RepoNotFound"}
        if repo in self.gated and ("/resolve/" in path or path.endswith("/auth-check")):
            return 403, b"{}", {"X-Error-Code": "GatedRepo"}
        return None

    def _reply(self, path: str, query: str, posted: bytes) -> tuple[int, bytes, dict[str, str]]:
        if refusal := self._refusal(path):
            return refusal
        repo = self._repo(path)
        assert repo is not None
        rest = path.split(f"/datasets/{repo}", 1)[1]
        if rest == "/auth-check":
            return 200, b"{}", {}
        if rest.startswith("/revision/") and rest.split("/")[2] not in ("main", "video", self.commit):
            return 404, b"{}", {"X-Error-Code": "RevisionNotFound"}
        if rest.startswith("/tree/"):
            recursive = "true" in str(parse_qs(query).get("recursive")).lower()
            return 200, json.dumps(self._tree(repo, "/".join(rest.split("/")[3:]), recursive)).encode(), {}
        if rest.startswith("/paths-info/"):
            wanted = json.loads(posted)["paths"] if posted.startswith(b"{") else parse_qs(posted.decode())["paths"]
            every = {x["path"]: x for x in self._tree(repo, "", True)}
            return 200, json.dumps([every[p] for p in wanted if p in every]).encode(), {}
        siblings = [
            {"rfilename": n, "size": p.stat().st_size, "blobId": _sha(p)[:40], "lfs": {"sha256": _sha(p), **_lfs(p)}}
            for n, p in self.files(repo).items()
        ]
        info = {"id": repo, "sha": self.commit, "gated": repo in self.gated, "private": False, "tags": [], "siblings": siblings}
        return 200, json.dumps(info).encode(), {}

    def _tree(self, repo: str, folder: str, recursive: bool) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = []
        folders: set[str] = set()
        for name, p in self.files(repo).items():
            if folder and not name.startswith(folder + "/"):
                continue
            parents = name.removeprefix(folder).strip("/").split("/")[:-1]
            for depth in range(len(parents) if recursive else min(1, len(parents))):
                folders.add("/".join([*([folder] if folder else []), *parents[: depth + 1]]))
            if recursive or not parents:
                lfs = {"oid": _sha(p), **_lfs(p)}
                out.append({"type": "file", "path": name, "size": p.stat().st_size, "oid": _sha(p)[:40], "lfs": lfs})
        return [{"type": "directory", "path": f, "oid": "d" * 40, "size": 0} for f in sorted(folders)] + out

    def _file(self, request: BaseHTTPRequestHandler, asked: str, *, body: bool) -> None:
        repo, name = self._repo(asked) or "", asked.split("/resolve/", 1)[1].split("/", 1)[1]
        path = self.files(repo).get(name)
        if path is None:
            _send(request, 404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.commit}, body=body)
            return
        data = path.read_bytes()
        headers = {"X-Repo-Commit": self.commit, "ETag": f'"{_sha(path)}"', "Accept-Ranges": "bytes"}
        if name in self.wrong:
            middle = len(data) // 2
            data = data[:middle] + bytes(256 - b if b else 1 for b in data[middle : middle + 4]) + data[middle + 4 :]
        status = 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or ""):
            first, last = int(match[1]), int(match[2] or len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        end = self.cut[name].pop(0) if body and self.cut.get(name) else len(data)
        self.sent[name] += _send(request, status, data, headers, body=body, end=end)


def _lfs(path: Path) -> dict[str, int]:
    return {"size": path.stat().st_size, "pointerSize": 1}


def _send(
    request: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str] | None = None, *, body: bool, end: int | None = None
) -> int:
    """Sends in pieces, so that an answer that nobody reads to its end is not counted whole; returns the bytes sent."""
    sent = 0
    try:
        request.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        for start in range(0, len(data[:end]) if body else 0, 1 << 14):
            piece = data[start : min(start + (1 << 14), len(data) if end is None else end)]
            request.wfile.write(piece)
            sent += len(piece)
    except OSError:
        request.close_connection = True
    if body and sent < len(data):
        request.close_connection = True
    return sent


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
