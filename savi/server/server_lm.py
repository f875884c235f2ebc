"""A model behind a server in the place of a `VideoLM`: it watches videos and replies to prompts.

Frames are sent with every prompt, always first and always the same bytes, and a video's first request goes ahead of its others: a server
with a prefix cache (vLLM, SGLang, most hosted ones) computes them once. With a log, every reply is on disk as soon as it is there and is
never asked for again.
"""

from __future__ import annotations

import asyncio
import base64
import glob
import hashlib
import io
import warnings
from collections.abc import Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from savi.base.digests import sha256_json
from savi.base.errors import FileFormatError
from savi.base.files import JsonlWriter, read_jsonl
from savi.engine.sampling import GenerationSettings
from savi.server.client import Client, RefusedError, ServerError, may_pass, read_input_tokens
from savi.server.settings import Server, ServerSettings, parse_server
from savi.server.usage import ServedReply, Usage
from savi.video.frames import Frames

T = TypeVar("T")

_JPEG_QUALITY = 92
_TEMPLATE_TOKENS = 64
"""More than a chat template adds to a message."""
_WARM = 0.5
_ENOUGH = 4
"""So many equal replies at that temperature are no chance."""
_REPLY = TypeAdapter(ServedReply)


@dataclass(frozen=True)
class Shown:
    """A video as it is sent: the parts of a message, and their digest."""

    parts: tuple[dict[str, Any], ...]
    digest: str


class ServerLM:
    """What the loop asks of a model (`savi.loop.propose.Asker`), by a server: `ServerLM("openai:http://localhost:8000/v1#NAME")`.

    A reply depends on what is asked, the settings and the row's key, as far as the server honours `seed`.

    Raises:
        ServerError, UsageError: the server does not answer, refuses the key or serves other models.
    """

    def __init__(self, server: Server | str, settings: ServerSettings | None = None) -> None:
        self.server = parse_server(server) if isinstance(server, str) else server
        self.settings = settings or ServerSettings()
        self.name = self.server.model
        self._client = Client(self.server, self.settings)
        self._log: JsonlWriter | None = None
        self._known: dict[str, ServedReply] = {}
        self._answered = False
        self._shown: set[str] = set()
        self._blind: dict[str, bool] = {}
        self._told = False

        async def check() -> None:
            async with self._client:
                await self._client.check()

        _run(check())

    @property
    def fingerprint(self) -> str:
        """Of the model's name, the form of its frames and the fields added to requests; a server may move to another URL."""
        extra = [self.settings.extra_body] if self.settings.extra_body else []
        return sha256_json(["openai", self.server.model, self.settings.frames, *extra])

    def log_to(self, path: Path, rank: int = 0) -> None:
        """Keep replies in a file (process `rank` of several in NAME-RANK.jsonl), and take those that are there, whoever kept them.

        Raises:
            FileFormatError: a line is no reply.
        """
        if self._log is not None:
            self._log.close()
        self._known = read_replies(path)
        self._log = JsonlWriter(path.with_name(f"{path.stem}-{rank}.jsonl") if rank else path)

    def watch_batch(self, videos: Sequence[Frames]) -> list[Shown]:
        """Encode frames as they are sent."""
        return [self._show(video) for video in videos]

    def _show(self, video: Frames) -> Shown:
        from PIL import Image

        kind = "png" if self.settings.frames == "png" else "jpeg"
        texts = []
        for frame in video.pixels:
            file = io.BytesIO()
            Image.fromarray(frame).save(file, kind, **({} if kind == "png" else {"quality": _JPEG_QUALITY}))
            texts.append(base64.b64encode(file.getvalue()).decode())
        if self.settings.frames == "video_url":
            urls = [("video_url", f"data:video/jpeg;base64,{','.join(texts)}")]
        else:
            urls = [("image_url", f"data:image/{kind};base64,{text}") for text in texts]
        parts: list[dict[str, Any]] = [{"type": name, name: {"url": url}} for name, url in urls]
        if self.settings.frames != "video_url":
            parts.insert(0, {"type": "text", "text": f"These {len(texts)} images are frames of one video, in their order in time."})
        return Shown(tuple(parts), sha256_json(parts))

    def ask(
        self, items: Sequence[tuple[Shown, str]], settings: GenerationSettings, *, keys: Sequence[str] | None = None
    ) -> list[ServedReply]:
        """Reply to prompts on any videos; order kept. A prompt that the server refuses gives a reply with its words in `refused`.

        Raises:
            ServerError: the server, or the way to it, fails for good.
            RefusedError: it refuses all of these prompts, and answered none before.
        """
        names = [str(i) for i in range(len(items))] if keys is None else keys
        bodies = [self._body(shown, prompt, settings, key) for (shown, prompt), key in zip(items, names, strict=True)]
        digests = [
            sha256_json([self.fingerprint, shown.digest, key, {**body, "messages": prompt}])
            for (shown, prompt), body, key in zip(items, bodies, names, strict=True)
        ]
        groups: dict[str, list[int]] = {}
        for i, (shown, _) in enumerate(items):
            if digests[i] not in self._known:
                groups.setdefault(shown.digest, []).append(i)
        refused: list[RefusedError] = []
        found = dict(_run(self._ask_all(groups, bodies, digests, refused)))
        replies = [found.get(i) or self._known[digest] for i, digest in enumerate(digests)]
        self._tell_of_equal_replies(items, settings, replies)
        if not self._answered and refused and len(refused) == len(items):
            raise refused[0]
        self._answered = self._answered or len(refused) < len(items)
        return replies

    def _body(self, shown: Shown, prompt: str, settings: GenerationSettings, key: str) -> dict[str, Any]:
        seed = hashlib.sha256(f"{settings.seed}\x00{key}".encode(errors="surrogatepass")).digest()
        fields = {
            "model": self.server.model,
            "messages": [{"role": "user", "content": [*shown.parts, {"type": "text", "text": prompt}]}],
            self.settings.limit_name: settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": int.from_bytes(seed[:4]) >> 1,
            **self.settings.extra_body,
        }
        return {name: value for name, value in fields.items() if value is not None}

    async def _ask_all(
        self, groups: dict[str, list[int]], bodies: Sequence[dict[str, Any]], digests: Sequence[str], refused: list[RefusedError]
    ) -> list[tuple[int, ServedReply]]:
        """The replies to all rows, each logged as it comes; `groups` are the rows of each video."""
        found: list[tuple[int, ServedReply]] = []

        async def one(i: int, url: str) -> None:
            try:
                reply = await self._client.complete(url, bodies[i])
            except RefusedError as error:
                refused.append(error)
                found.append((i, ServedReply("", 0, True, Usage(requests=1), refused=str(error))))
                return
            async with looking:
                await self._check_sight(url, bodies[i], reply)
            found.append((i, reply))
            self._known[digests[i]] = reply
            if self._log is not None:
                self._log.write({"request": digests[i], **asdict(reply)})

        async def video(digest: str, rows: list[int]) -> None:
            url = self.server.urls[int(digest[:8], 16) % len(self.server.urls)]  # a video stays with one server, and its cache
            async with videos:
                if digest not in self._shown:
                    await one(rows[0], url)
                    self._shown.add(digest)
                    rows = rows[1:]
                await _all(one(i, url) for i in rows)

        looking = asyncio.Lock()
        videos = asyncio.Semaphore(self.settings.concurrency)  # one after the other, or a server's cache holds all and none
        async with self._client:
            await _all(video(digest, rows) for digest, rows in groups.items())
        return found

    async def _check_sight(self, url: str, body: dict[str, Any], reply: ServedReply) -> None:
        """End the run, before a reply is kept, where a server silently leaves out the frames (`transformers serve` does so for a model
        without a vision tower): it then counts as many tokens for the request as for its text alone. Asked once a server, and only where
        the count is small enough for that.

        Raises:
            ServerError: it sees no frames.
        """
        if self.settings.check_frames and url not in self._blind:
            (message,) = body["messages"]
            texts = [part for part in message["content"] if part["type"] == "text"]
            counted = reply.usage.input_tokens
            if counted > _TEMPLATE_TOKENS + sum(len(part["text"].encode()) for part in texts) or not counted:
                self._blind[url] = False
                return
            bare = {**body, "messages": [{**message, "content": texts}], self.settings.limit_name: 1}
            response = await self._client.try_once(url, bare)
            if response is None or may_pass(response.status_code):
                return  # the next reply is looked at
            self._blind[url] = read_input_tokens(response) == counted
        if self._blind.get(url):
            error = ServerError(
                f"{url}: {self.server.model} there sees no frames (as many input tokens with them as without, "
                f"{reply.usage.input_tokens}); serve a model that takes images (if it does, and only its count leaves them out: "
                "--server check_frames=false)"
            )
            self._client.end(error)
            raise error

    def _tell_of_equal_replies(
        self, items: Sequence[tuple[Shown, str]], settings: GenerationSettings, replies: Sequence[ServedReply]
    ) -> None:
        """Warn once where sampled replies to the same prompt are all the same: the server draws nothing."""
        if self._told or settings.temperature < _WARM:
            return
        texts: dict[tuple[str, str], list[str]] = {}
        for (shown, prompt), reply in zip(items, replies, strict=True):
            if not reply.refused:
                texts.setdefault((shown.digest, prompt), []).append(reply.text)
        several = [found for found in texts.values() if len(found) > 1]
        if sum(map(len, several)) >= _ENOUGH and all(len(set(found)) == 1 for found in several):
            self._told = True
            warnings.warn(
                f"{self.server.where}: the same reply to each seed at temperature {settings.temperature:g}; it seems not to sample "
                "(docs/servers.md has what transformers serve needs for that)",
                stacklevel=2,
            )


def read_replies(path: Path) -> dict[str, ServedReply]:
    """The replies kept in a log, and in those of other processes beside it, by the digests of their requests.

    Raises:
        FileFormatError: a line is no reply.
    """
    known: dict[str, ServedReply] = {}
    for kept in sorted(path.parent.glob(f"{glob.escape(path.stem)}*.jsonl")):
        for number, row in enumerate(read_jsonl(kept), start=1):
            try:
                known[str(row.pop("request"))] = _REPLY.validate_python(row)
            except (KeyError, ValidationError) as error:
                raise FileFormatError(f"{kept}:{number}: not a reply; delete that line to have it asked for again") from error
    return known


async def _all(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run coroutines together to their ends; the first error is raised then, as it is."""
    for error in await asyncio.gather(*work, return_exceptions=True):
        if error is not None:
            raise error


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also where an event loop is running already (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
