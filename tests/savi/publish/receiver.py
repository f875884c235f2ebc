"""A stand-in for the hub that takes commits, over loopback: what `savi push` calls, and nothing else."""

from __future__ import annotations

import base64
import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from tests.benchmarks.data.hub import Hub, _send


class Receiver(Hub):
    """Keeps what it is sent below `root`/kind/owner/name. `public`: repositories that are; `tokens`: those it was shown; `refuse`: the
    status it answers every commit with."""

    def __init__(self, root: Path, token: str) -> None:
        super().__init__({})
        self.root, self.token = root, token
        self.public: set[str] = set()
        self.created: dict[str, dict[str, Any]] = {}
        self.stored: dict[str, bytes] = {}
        self.commits: list[list[str]] = []
        self.refuse: int | None = None

    def _answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        data = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        path = request.path.partition("?")[0]
        self.asked.append(f"{request.command} {path}")
        if path.startswith("/stored/"):
            self.stored[path.removeprefix("/stored/")] = data
            _send(request, 200, b"", body=body)
            return
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            _send(request, 401, json.dumps({"error": "Invalid credentials"}).encode(), body=body)
            return
        status, value = self._take(path, data)
        _send(request, status, json.dumps(value).encode(), body=body)

    def _take(self, path: str, data: bytes) -> tuple[int, Any]:
        if path == "/api/repos/create":
            asked = json.loads(data)
            name = f"{asked['organization']}/{asked['name']}"
            exists = name in self.public or name in self.created
            self.created.setdefault(name, asked)
            return (409 if exists else 200), {"url": f"{self.url}/{name}", "error": "You already created this"}
        if path == "/api/validate-yaml":
            return 200, {"warnings": [], "errors": []}
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(data)["objects"]
            actions = [{**one, "actions": {"upload": {"href": f"{self.url}/stored/{one['oid']}"}}} for one in objects]
            return 200, {"transfer": "basic", "objects": actions}
        _, _, kinds, owner, name, *rest = path.split("/")
        repository = f"{owner}/{name}"
        if not rest:
            return 200, {"id": repository, "sha": self.commit, "private": repository not in self.public, "tags": [], "siblings": []}
        if rest[0] == "preupload":
            modes = []
            for file in json.loads(data)["files"]:
                mode = "lfs" if file["path"].endswith((".safetensors", ".mp4")) else "regular"
                modes.append({"path": file["path"], "uploadMode": mode})
            return 200, {"files": [{**one, "shouldIgnore": False, "oid": None} for one in modes]}
        if rest[0] == "commit":
            if self.refuse is not None:
                return self.refuse, {"error": "You don't have the rights"}
            self._commit(self.root / kinds / owner / name, [json.loads(line) for line in data.splitlines()])
            return 200, {"commitUrl": f"{self.url}/{repository}/commit/{self.commit}", "commitOid": self.commit, "pullRequestUrl": ""}
        return 404, {"error": f"not foreseen: {path}"}

    def _commit(self, folder: Path, lines: list[dict[str, Any]]) -> None:
        names = []
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                continue
            target = folder / value["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self.stored[value["oid"]] if line["key"] == "lfsFile" else base64.b64decode(value["content"]))
            names.append(value["path"])
        self.commits.append(sorted(names))
