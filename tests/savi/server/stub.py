"""An OpenAI-compatible server over loopback that answers by a function, and a proxy that puts faults in its way."""

from __future__ import annotations

import base64
import http.client
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

FRAME_TOKENS = 256
"""What the stand-in counts for a frame."""
Answer = Callable[[list[np.ndarray], str, dict[str, Any]], tuple[str, int, bool]]
"""(frames, prompt, request) -> (text, tokens, whether it ended by itself)."""


def read_frames_of(content: list[dict[str, Any]]) -> list[np.ndarray]:
    """The frames in a message, as images or as one video of images."""
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    for part in content:
        if part["type"] == "video_url":
            head, texts = part["video_url"]["url"].split(",", 1)
            assert head == "data:video/jpeg;base64"
            urls += [f"data:image/jpeg;base64,{text}" for text in texts.split(",")]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1])))) for url in urls]


@dataclass
class Seen:
    """What a server was sent: the bodies in the order they came, the headers of each, and how many were under way at most."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    now: int = 0
    most: int = 0
    lock: Any = field(default_factory=threading.Lock)

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][0]["content"][-1]["text"] for body in self.bodies]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length", 0)))


@contextmanager
def _served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def serve(
    answer: Answer, *, model: str = "stub", listed: str | None = None, delay_s: float = 0.0, key: str | None = None, sees: bool = True
) -> Iterator[tuple[str, Seen]]:
    """A server of one model; yields its URL and what it is sent. With `key`, requests need it. `listed`: what it says that it serves;
    `sees`: whether it counts, and gives `answer`, the frames."""
    seen = Seen()
    cache: set[str] = set()

    class Handler(_Handler):
        def do_GET(self) -> None:
            if key and self.headers.get("authorization") != f"Bearer {key}":
                return self.reply(401, b'{"error": {"message": "Incorrect API key provided"}}')
            return self.reply(200, json.dumps({"object": "list", "data": [{"id": listed or model, "object": "model"}]}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.body())
            if body["model"] != model:
                return self.reply(404, json.dumps({"detail": f"no model {body['model']}"}).encode())
            if isinstance(body["messages"][0]["content"], str):
                body["messages"][0]["content"] = [{"type": "text", "text": body["messages"][0]["content"]}]
            with seen.lock:
                seen.bodies.append(body)
                seen.headers.append({name.lower(): value for name, value in self.headers.items()})
                seen.now += 1
                seen.most = max(seen.most, seen.now)
                content = body["messages"][0]["content"]
                prefix = json.dumps(content[:-1])
                known = prefix in cache
            time.sleep(delay_s)
            frames = read_frames_of(content) if sees else []
            text, tokens, ended = answer(frames, content[-1]["text"], body)
            with seen.lock:
                seen.now -= 1
                cache.add(prefix)
            looked = FRAME_TOKENS * len(frames)
            usage = {
                "prompt_tokens": looked + len(content[-1]["text"].split()),
                "completion_tokens": tokens,
                "prompt_tokens_details": {"cached_tokens": looked if known else 0},
            }
            choice = {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop" if ended else "length",
            }
            row = {"id": "chatcmpl-1", "object": "chat.completion", "model": model, "choices": [choice], "usage": usage}
            return self.reply(200, json.dumps(row).encode())

    with _served(Handler) as url:
        yield url, seen


FAULTS = ("time-out", "429", "500", "cut", "malformed", "empty body", "empty reply", "no choices", "closed")


@contextmanager
def faulty(
    upstream: str,
    fault_of: Callable[[int], str | None] = lambda n: None,
    *,
    fault_in: Callable[[dict[str, Any]], str | None] = lambda body: None,
    retry_after: str | None = None,
    late_s: float = 2.0,
) -> Iterator[str]:
    """A proxy before a server: `fault_of` says what goes wrong with the n-th request for a completion, `fault_in` with one of this body
    (None: nothing)."""
    count = iter(range(10**9))
    lock = threading.Lock()
    place = urlsplit(upstream)

    class Handler(_Handler):
        def forward(self, method: str, data: bytes) -> tuple[int, bytes]:
            connection = http.client.HTTPConnection(place.hostname or "", place.port)
            headers = {"content-type": "application/json"}
            if "authorization" in self.headers:
                headers["authorization"] = self.headers["authorization"]
            connection.request(method, self.path, data or None, headers)
            response = connection.getresponse()
            return response.status, response.read()

        def do_GET(self) -> None:
            self.reply(*self.forward("GET", b""))

        def do_POST(self) -> None:
            data = self.body()
            with lock:
                fault = fault_of(next(count)) or fault_in(json.loads(data))
            if fault is None:
                return self.reply(*self.forward("POST", data))
            if fault == "time-out":
                time.sleep(late_s)
            if fault in ("time-out", "closed"):
                self.close_connection = True
                return None
            if fault in ("429", "500", "400", "404", "401"):
                told = {"retry_after": retry_after} if retry_after and fault == "429" else {}
                return self.reply(int(fault), json.dumps({"error": {"message": f"fault {fault}"}}).encode(), **told)
            status, whole = self.forward("POST", data)
            if fault == "cut":
                self.send_response(status)
                self.send_header("content-length", str(len(whole)))
                self.end_headers()
                self.wfile.write(whole[: len(whole) // 2])
                self.close_connection = True
                return None
            row = json.loads(whole)
            if fault == "empty reply":
                row["choices"][0]["message"]["content"] = ""
            if fault == "no choices":
                row["choices"] = []
            changed = {"malformed": whole[:-20], "empty body": b""}.get(fault, json.dumps(row).encode())
            return self.reply(status, changed)

    with _served(Handler) as url:
        yield url
