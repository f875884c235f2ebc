"""Requests to an OpenAI-compatible server: sent again where a fault may pass, held back where the server says so.

A reply that is late, cut off, empty or not JSON is a fault of the way and asked for again; a request that the server refuses is not. The
module knows HTTP and the form of a chat completion, no videos.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from savi.base.errors import SaviError, UsageError, one_line
from savi.server.settings import Server, ServerSettings, read_key
from savi.server.usage import ServedReply, Usage

if TYPE_CHECKING:
    import httpx

_LONGEST_WAIT_S = 60.0
_LONGEST_TOLD_WAIT_S = 3600.0
_NO_SUCH_MODEL = (400, 404, 422, 500)
"""What servers say to a name that they do not know; 500 where they tried to load it."""
_EMPTY_TWICE = 2
"""An empty text is asked for again so often, then taken: a model may have nothing to say."""


class ServerError(SaviError):
    """A server that cannot be worked with: names it, what it said, and the fix."""


class RefusedError(ServerError):
    """One request that the server does not take, whatever the others."""


class _Fault(Exception):
    """Something that may pass; `wait_s` as the server says."""

    def __init__(self, what: str, wait_s: float | None = None, reply: ServedReply | None = None) -> None:
        super().__init__(what)
        self.wait_s, self.reply = wait_s, reply


@dataclass
class Client:
    """Sends requests to one server; used inside `async with client:`."""

    server: Server
    settings: ServerSettings
    _next: float = field(default=0.0, init=False)
    _open: Any = field(default=None, init=False)
    _slots: Any = field(default=None, init=False)
    _failed: ServerError | None = field(default=None, init=False)
    _answered: dict[str, Mapping[str, Any]] = field(default_factory=dict, init=False)
    """A request of each URL that was answered."""

    async def __aenter__(self) -> Client:
        import httpx

        limits = httpx.Limits(max_connections=self.settings.concurrency, max_keepalive_connections=self.settings.concurrency)
        timeout = httpx.Timeout(self.settings.timeout_s, connect=min(30.0, self.settings.timeout_s), pool=None)
        self._open = httpx.AsyncClient(timeout=timeout, limits=limits, verify=_certificates(), headers={"User-Agent": "videosavi-harness"})
        self._slots = asyncio.Semaphore(self.settings.concurrency)
        self._failed = None
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def complete(self, url: str, body: Mapping[str, Any]) -> ServedReply:
        """The reply to a chat completion's request. Once one has failed for good no other is sent; those under way go on to their end.

        Raises:
            RefusedError: the server does not take this request, or breaks on it each time while it still answers others.
            ServerError: it takes none, or gave no whole reply in all tries.
        """
        async with self._slots:
            try:
                return await self._complete(url, body)
            except RefusedError:
                raise
            except ServerError as error:
                self.end(error)
                raise

    def end(self, error: ServerError) -> None:
        """Send no other request: each raises this error."""
        self._failed = self._failed or error

    async def try_once(self, url: str, body: Mapping[str, Any]) -> httpx.Response | None:
        """What a server says to a request that is sent once, of whatever status; None where nothing comes back."""
        import httpx

        try:
            return await self._open.post(f"{url}/chat/completions", json=body, headers=self._headers(url))
        except httpx.HTTPError:
            return None

    async def _complete(self, url: str, body: Mapping[str, Any]) -> ServedReply:
        import httpx

        why, broke, others = "", False, False
        for attempt in range(self.settings.retries + 1):
            await self._turn()
            if self._failed is not None:
                raise self._failed
            wait_s = None
            if broke and attempt == self.settings.retries:
                others = await self._answers_others(url)
            try:
                response = await self._open.post(f"{url}/chat/completions", json=body, headers=self._headers(url))
                reply = _counted(read_completion(response, url, self.settings), attempt, self.settings)
                self._answered[url] = body
                return reply
            except httpx.HTTPError as error:
                broke = False
                why = f"{type(error).__name__}: {one_line(error)}" if str(error) else type(error).__name__
            except _Fault as fault:
                if fault.reply is not None and attempt >= min(_EMPTY_TWICE, self.settings.retries):
                    return _counted(fault.reply, attempt, self.settings)
                why, wait_s, broke = str(fault), fault.wait_s, response.status_code == 500
            if attempt < self.settings.retries:
                await self._back_off(attempt, wait_s)
        tries = self.settings.retries + 1
        if broke and others:
            raise RefusedError(f"{url}: broke on this request in {tries} tries, and answered another in between (last: {why})")
        raise ServerError(f"{url}: no whole reply in {tries} tries (last: {why}); run the same command to go on")

    async def _answers_others(self, url: str) -> bool:
        """Whether the server answers a request that it answered before, while it breaks on another."""
        if url not in self._answered:
            return False
        response = await self.try_once(url, {**self._answered[url], self.settings.limit_name: 1})
        return response is not None and response.status_code == 200

    async def check(self) -> None:
        """Look whether the server is there and serves the model. One that does not list it is asked for a token of it: `transformers serve`
        lists what is in its cache, not what it serves.

        Raises:
            ServerError: nothing answers, or the key is refused.
            UsageError: it serves other models.
        """
        import httpx

        for url in self.server.urls:
            try:
                response = await self._open.get(f"{url}/models", headers=self._headers(url))
            except httpx.HTTPError as error:
                raise ServerError(f"{url}: no server answers ({type(error).__name__}); start it, or correct the URL") from error
            _refuse_key(response, url)
            try:
                names = [str(model["id"]) for model in response.json()["data"]] if response.status_code == 200 else []
            except (ValueError, KeyError, TypeError):
                names = []  # not every server lists its models
            if names and self.server.model not in names:
                body = {"model": self.server.model, "messages": [{"role": "user", "content": "?"}], self.settings.limit_name: 1}
                asked = await self.try_once(url, body)
                if asked is not None and asked.status_code in _NO_SUCH_MODEL:
                    raise UsageError(
                        f"{url}: serves {', '.join(names[:5])}, not {self.server.model} (status {asked.status_code}: {_words(asked)}); "
                        "correct what follows the #"
                    )

    def _headers(self, url: str) -> dict[str, str]:
        key = read_key(url, self.settings)
        return {"Authorization": f"Bearer {key}"} if key else {}

    async def _turn(self) -> None:
        """Wait for this request's turn: none starts before `_next`, which faults and the rate limit move on."""
        while (wait_s := self._next - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)
        if self.settings.requests_per_minute is not None:
            self._next = time.monotonic() + 60.0 / self.settings.requests_per_minute

    async def _back_off(self, attempt: int, told_s: float | None) -> None:
        """Wait before a request is sent again; a wait that the server asks for holds back all others too."""
        if told_s is not None:
            self._next = max(self._next, time.monotonic() + min(told_s, _LONGEST_TOLD_WAIT_S))
            return
        await asyncio.sleep(min(_LONGEST_WAIT_S, self.settings.backoff_s * 2.0**attempt) * random.uniform(0.5, 1.0))


@cache
def _certificates() -> ssl.SSLContext:
    """Read once: it takes longer than a request."""
    import httpx

    return httpx.create_ssl_context()


def _counted(reply: ServedReply, retries: int, settings: ServerSettings) -> ServedReply:
    """A reply with its retries and its price."""
    used = reply.usage
    cost = (used.input_tokens * settings.input_price + used.output_tokens * settings.output_price) / 1e6
    usage = Usage(1, retries, used.input_tokens, used.cached_tokens, used.output_tokens, cost)
    return ServedReply(reply.text, reply.tokens, reply.finished, usage)


def may_pass(status: int) -> bool:
    """Whether a status is of a fault that may pass by itself."""
    return status in (408, 409, 425, 429) or status >= 500


def read_completion(response: httpx.Response, url: str, settings: ServerSettings) -> ServedReply:
    """The reply in a server's response.

    Raises:
        _Fault: one that may pass.
        RefusedError, ServerError: as `Client.complete`.
    """
    status = response.status_code
    if status != 200:
        _refuse_key(response, url)
        said = _words(response)
        if status == 429 and "insufficient_quota" in response.text:
            raise ServerError(f"{url}: no quota is left ({said}); the replies so far are kept: run the same command to go on")
        if may_pass(status):
            raise _Fault(f"status {status}: {said}", _told_wait(response.headers))
        if status in (400, 413, 415, 422):
            raise RefusedError(f"{url}: refused the request with status {status}: {said}")
        raise ServerError(f"{url}: status {status}: {said}; the URL ends before /chat/completions, often in /v1")
    try:
        value = response.json()
        choice = value["choices"][0]
        message, ended = choice["message"], choice.get("finish_reason")
        text = message.get("content") or message.get("refusal") or ""
        if not isinstance(text, str):
            raise TypeError("content is no text")
        usage = _usage(value.get("usage"))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _Fault(f"not a chat completion ({type(error).__name__}: {one_line(error)[:120]})") from error
    reply = ServedReply(text.strip(), usage.output_tokens, ended != "length", usage)
    if not reply.text and ended != "content_filter":
        raise _Fault("an empty reply", reply=reply)
    return reply


def read_input_tokens(response: httpx.Response | None) -> int:
    """The input tokens that a server counted for a request; 0 where it did not answer or does not count."""
    try:
        return _usage(response.json()["usage"]).input_tokens if response is not None else 0
    except (ValueError, KeyError, TypeError, AttributeError):
        return 0


def _usage(found: Any) -> Usage:
    """The tokens as the server counted them; zeros where it does not."""
    counts = found if isinstance(found, Mapping) else {}
    details = counts.get("prompt_tokens_details") or {}

    def number(value: Any) -> int:
        return value if isinstance(value, int) and value >= 0 else 0

    return Usage(
        input_tokens=number(counts.get("prompt_tokens")),
        cached_tokens=number(details.get("cached_tokens")),
        output_tokens=number(counts.get("completion_tokens")),
    )


def _refuse_key(response: httpx.Response, url: str) -> None:
    if response.status_code in (401, 403):
        raise ServerError(
            f"{url}: refuses the key (status {response.status_code}: {_words(response)}); set OPENAI_API_KEY, or the variable "
            "named by --server key=NAME"
        )


def _words(response: httpx.Response) -> str:
    """What a server says of an error, on one line."""
    try:
        value = json.loads(response.text)
        error = value.get("error") or value.get("detail") or value if isinstance(value, dict) else value
        said = error.get("message", error) if isinstance(error, dict) else error
    except ValueError:
        said = response.text
    return one_line(said)[:300] or "no reason given"


def _told_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: Retry-After in seconds or as a date, or retry-after-ms."""
    try:
        if milliseconds := headers.get("retry-after-ms"):
            return max(0.0, float(milliseconds) / 1000)
        told = headers.get("retry-after")
        if not told:
            return None
        if told.strip().replace(".", "", 1).isdigit():
            return float(told)
        return max(0.0, parsedate_to_datetime(told).timestamp() - time.time())
    except ValueError:
        return None
