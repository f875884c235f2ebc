"""Rotary embeddings whose angles depend on how long the text is: dynamic NTK (InternLM2) beyond its trained context, longrope (Phi-3).

There a prefix's keys are not the same in a short text and in a long one, so they are shared only where the lengths agree. The module
knows a text config and its rotary module, nothing of videos.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn


@dataclass(frozen=True)
class LengthRope:
    """`limit`: the length in tokens beyond which angles change, once (longrope) or with every token (dynamic)."""

    kind: Literal["dynamic", "longrope"]
    limit: int

    @classmethod
    def of(cls, text_config: Any) -> LengthRope | None:
        """The rule of a text config, or None where angles do not depend on the length."""
        said = getattr(text_config, "rope_parameters", None) or {}
        if said.get("rope_type") == "dynamic":
            return cls("dynamic", int(text_config.max_position_embeddings))
        if said.get("rope_type") == "longrope":
            return cls("longrope", int(said["original_max_position_embeddings"]))
        return None

    @property
    def endless(self) -> bool:
        """Whether a text may be longer than `max_position_embeddings`: that is what dynamic NTK is for."""
        return self.kind == "dynamic"

    def shares(self, prefix: int, longest: int) -> bool:
        """Whether a prefix's keys serve a text that grows to `longest` tokens."""
        if self.kind == "dynamic":
            return longest <= self.limit
        return (prefix > self.limit) == (longest > self.limit)

    def begin(self, text_model: nn.Module) -> None:
        """Forget the longest text so far: transformers' dynamic rotary module keeps its angles until a clearly shorter text comes."""
        rotary: Any = getattr(text_model, "rotary_emb", None)
        if self.kind == "dynamic" and rotary is not None:
            rotary.register_buffer("inv_freq", rotary.original_inv_freq.to(rotary.inv_freq.device), persistent=False)
            rotary.max_seq_len_cached = rotary.original_max_seq_len
