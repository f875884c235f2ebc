"""What was asked of a server and what it cost, and replies that say so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from pydantic import ConfigDict

from savi.engine.watched import Reply


@dataclass(frozen=True)
class Usage:
    """`requests` that were answered or refused, `retries` before that, tokens as the server counted them (`cached_tokens` of the input
    were in its cache), and the `cost` by the prices given."""

    requests: int = 0
    retries: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def line(self) -> str:
        """One line for people."""
        cached = f" ({self.cached_tokens:,} of them cached)" if self.cached_tokens else ""
        again = f", {self.retries} sent again" if self.retries else ""
        cost = f", cost {self.cost:.2f}" if self.cost else ""
        return f"{self.requests:,} requests{again}, {self.input_tokens:,} tokens in{cached}, {self.output_tokens:,} out{cost}"


@dataclass(frozen=True)
class ServedReply(Reply):
    """A server's reply; `refused` holds its words where it gave none."""

    usage: Usage = Usage()
    refused: str = ""


def total_usage(replies: Iterable[Reply]) -> Usage:
    """The sum over the replies that came from a server."""
    return sum((reply.usage for reply in replies if isinstance(reply, ServedReply)), Usage())
