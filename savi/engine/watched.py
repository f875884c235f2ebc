"""What a `VideoLM` gives back: a video that was encoded once, and the replies and scores of what is asked about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from savi.base.errors import UsageError
from savi.engine.sampling import GenerationSettings

if TYPE_CHECKING:
    from savi.engine.prefix import Prefix
    from savi.engine.video_lm import VideoLM
    from savi.families import VideoFeatures


class ContextError(UsageError):
    """A prefix and prompt longer than the model's context: names both numbers and what to lower."""


@dataclass(frozen=True)
class Reply:
    """`text` without special tokens; `tokens` generated (end-of-turn included); `finished`: end-of-turn was seen."""

    text: str
    tokens: int
    finished: bool


@dataclass(frozen=True)
class ResponseScore:
    """`logp`: sum of the log-probabilities of a reply's `tokens` ids, end-of-turn included."""

    logp: float
    tokens: int


@dataclass
class Watched:
    """One video, encoded: its features (for training), its prefix (for asking), the model it belongs to."""

    lm: VideoLM
    features: VideoFeatures
    prefix: Prefix
    name: str = ""

    @property
    def frames(self) -> int:
        """Frames shown to the model."""
        return self.features.frames

    @overload
    def ask(  # type: ignore[overload-overlap]  # a string is a sequence of strings too: the first one that fits counts
        self,
        questions: str,
        *,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_p: float = ...,
        seed: int = ...,
        max_batch: int | None = ...,
        keys: Sequence[str] | None = ...,
        history: Sequence[tuple[str, str]] = ...,
    ) -> Reply: ...
    @overload
    def ask(
        self,
        questions: Sequence[str],
        *,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_p: float = ...,
        seed: int = ...,
        max_batch: int | None = ...,
        keys: Sequence[str] | None = ...,
        history: Sequence[tuple[str, str]] = ...,
    ) -> list[Reply]: ...
    def ask(
        self,
        questions: str | Sequence[str],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        max_batch: int | None = None,
        keys: Sequence[str] | None = None,
        history: Sequence[tuple[str, str]] = (),
    ) -> Reply | list[Reply]:
        """Answer one question (a string: one reply) or several in one batch (a list: their replies, order kept).

        Keywords as in `GenerationSettings`; `keys`, one a question, as in `VideoLM.ask`; `history`: earlier questions with their replies.
        """
        settings = GenerationSettings(max_new_tokens, temperature, top_p, seed, max_batch)
        asked = [questions] if isinstance(questions, str) else questions
        earlier = [text for turn in history for text in turn]
        replies = self.lm.ask([(self, (*earlier, question)) for question in asked], settings, keys=keys)
        return replies[0] if isinstance(questions, str) else replies

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[ResponseScore]:
        """Log-probability of each (prompt, response)."""
        return self.lm.score([(self, prompt, response) for prompt, response in pairs])
