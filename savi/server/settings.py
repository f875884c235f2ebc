"""A server as a user names it, `openai:URL#NAME`, and how it is asked. The module sends nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from savi.base.errors import UsageError, one_line

SCHEME = "openai:"
_DEFAULT_KEY = "OPENAI_API_KEY"


def _read_json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _leaves_the_question(fields: dict[str, Any]) -> dict[str, Any]:
    if fixed := [name for name in ("model", "messages", "stream") if name in fields]:
        raise ValueError(f"{', '.join(fixed)} cannot be set here")
    return fields


class ServerSettings(BaseModel):
    """How a server is asked.

    `frames`: images in JPEG or PNG (lossless), or "video_url": one part with all frames, in vLLM's form `data:video/jpeg;base64,A,B,...`.
    `concurrency`: requests under way at a time, over all URLs; `requests_per_minute`: at most so many. A request that fails by a fault
    that may pass is sent again up to `retries` times, after `backoff_s`, twice that, and so on up to a minute, or after what the server
    says (Retry-After). `input_price` and `output_price`: of a million tokens, in any currency. `key`: the environment variable that holds
    the key; by default OPENAI_API_KEY, which is not sent unencrypted to another machine. `limit_name`: what the server calls the most
    tokens of a reply. `extra_body`: further fields of each request, in JSON; null leaves out a field that is sent otherwise.
    `check_frames`: refuse a server that seems to leave out the frames.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    frames: Literal["jpeg", "png", "video_url"] = "jpeg"
    concurrency: int = Field(8, ge=1)
    requests_per_minute: float | None = Field(None, gt=0)
    timeout_s: float = Field(300.0, gt=0)
    retries: int = Field(8, ge=0)
    backoff_s: float = Field(1.0, gt=0)
    input_price: float = Field(0.0, ge=0)
    output_price: float = Field(0.0, ge=0)
    key: str = ""
    limit_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    extra_body: Annotated[dict[str, Any], BeforeValidator(_read_json), AfterValidator(_leaves_the_question)] = Field(default_factory=dict)
    check_frames: bool = True


@dataclass(frozen=True)
class Server:
    """One model on one server or on several that serve the same one."""

    urls: tuple[str, ...]
    model: str

    @property
    def where(self) -> str:
        """Its name in messages."""
        return f"{self.model} at {self.urls[0]}" + (f" and {len(self.urls) - 1} more" if len(self.urls) > 1 else "")


def is_server(model: str) -> bool:
    """Whether a model's name is a server's."""
    return model.startswith(SCHEME)


def parse_server(text: str) -> Server:
    """Read `openai:URL#NAME`; several URLs of one model are separated by commas. A URL ends before `/chat/completions`.

    Raises:
        UsageError: it is not of that form, or holds a password.
    """
    places, _, model = text.removeprefix(SCHEME).partition("#")
    if not model or not places:
        raise UsageError(f"--model {text}: write openai:URL#NAME, as openai:http://localhost:8000/v1#Qwen/Qwen2.5-VL-7B-Instruct")
    urls = []
    for place in places.split(","):
        url = _split(place)
        if url is None or url.scheme not in ("http", "https") or not url.hostname:
            raise UsageError(f"openai:{place}: not an http or https URL")
        if url.username is not None or url.password is not None or url.query:
            raise UsageError(
                f"openai:{url.scheme}://{url.hostname}: put the key into an environment variable ({_DEFAULT_KEY}), not the URL"
            )
        urls.append(place.rstrip("/").removesuffix("/chat/completions"))
    return Server(tuple(urls), model)


def _split(place: str) -> SplitResult | None:
    try:
        url = urlsplit(place)
        _ = url.port  # read late: a port that is no number is an error only now
    except ValueError:
        return None
    return url


def read_settings(given: Sequence[str]) -> tuple[ServerSettings, ServerSettings]:
    """The settings of the model's server and of the critic's, from `NAME=VALUE` texts; `critic.NAME=VALUE` is for the critic alone.

    Raises:
        UsageError: a setting is unknown or its value cannot be.
    """
    values: dict[str, str] = {}
    critic: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--server {text}: write NAME=VALUE, as concurrency=16")
        if name.startswith("critic."):
            critic[name.removeprefix("critic.")] = value
        else:
            values[name] = value
    try:
        return ServerSettings.model_validate(values), ServerSettings.model_validate({**values, **critic})
    except ValidationError as error:
        first = error.errors()[0]
        known = ", ".join(ServerSettings.model_fields)
        raise UsageError(f"--server {'.'.join(map(str, first['loc']))}: {one_line(first['msg'])}; there are {known}") from error


def read_key(url: str, settings: ServerSettings) -> str | None:
    """The key for a URL, from the environment; None where there is none.

    Raises:
        UsageError: the variable that was asked for is not set.
    """
    if settings.key:
        if not (found := os.environ.get(settings.key)):
            raise UsageError(f"--server key={settings.key}: the environment has no such variable")
        return found
    parts = urlsplit(url)
    safe = parts.scheme == "https" or parts.hostname in ("localhost", "127.0.0.1", "::1")
    return os.environ.get(_DEFAULT_KEY) or None if safe else None
