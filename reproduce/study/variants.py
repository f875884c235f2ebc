"""What a study compares: the method, its controls, its rivals, and what might let the loop go on for longer. One entry a variant.

A variant is a few settings of a scale, nothing else, so that `python -m reproduce paper` runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from reproduce.scale import Scale

Kind = Literal["method", "control", "rival", "keeper"]
METHOD = "dpo"
NEXT_BASE = "NEXT-BASE"
"""Stands in `loop.critic` for the study's next base model."""


@dataclass(frozen=True)
class Variant:
    """`settings`: what differs from the study's settings, made from the scale; `source` says where the idea is from."""

    name: str
    kind: Kind
    title: str
    source: str
    settings: Callable[[Scale], Mapping[str, Any]]

    @property
    def other_critic(self) -> bool:
        """Whether it needs a second base model."""
        return self.name == "other-critic"


def _control(name: str) -> Callable[[Scale], Mapping[str, Any]]:
    return lambda scale: {"training.control": name}


def _one_kind(kind: str) -> Callable[[Scale], Mapping[str, Any]]:
    """As many questions a video as with both kinds."""
    return lambda scale: {"loop.kinds": [kind], "loop.questions_per_kind": 2 * scale.loop.questions_per_kind.value}


def _lora(scale: Scale) -> Mapping[str, Any]:
    return {"training.lora_r": 16, "training.lora_alpha": 32, "training.learning_rate": 10 * scale.training.learning_rate.value}


_PAPER_TABLE = "paper, Table 1: what SFT and SFT+ are trained on is not in the material at hand; read as "
VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(METHOD, "method", "the method: DPO on (revised, initial)", "paper", lambda scale: {}),
        Variant("reversed", "control", "chosen and rejected exchanged", "ours", _control("reversed")),
        Variant("blind", "control", "revisions that ignore the critique", "ours", _control("blind")),
        Variant("sft", "control", "SFT+: supervised on the revised answers", _PAPER_TABLE + "the revised answers", _control("sft")),
        Variant(
            "sft-initial", "rival", "SFT: supervised on the initial answers", _PAPER_TABLE + "the initial answers", _control("sft-initial")
        ),
        Variant(
            "no-critique", "rival", "no critique: the question asked once more, greedily", "ours", lambda scale: {"loop.critic": "none"}
        ),
        Variant(
            "other-critic", "rival", "another base model criticises", "paper, Table 5, with other critics",
            lambda scale: {"loop.critic": NEXT_BASE},
        ),
        Variant("spatial", "rival", "spatial questions only, as many", "paper: both kinds", _one_kind("spatial")),
        Variant("temporal", "rival", "temporal questions only, as many", "paper: both kinds", _one_kind("temporal")),
        Variant("base-critic", "keeper", "the base model criticises in every iteration", "ours", lambda scale: {"loop.critic": "base"}),
        Variant("lora", "keeper", "LoRA of rank 16 at ten times the rate", "ours", _lora),
        Variant(
            "replay", "keeper", "a quarter of the critiques taught again", "ours", lambda scale: {"training.replay_critiques": 0.25}
        ),
        Variant("early-stop", "keeper", "stopped by its own critiques", "ours", lambda scale: {"loop.early_stop": True}),
    )
}  # fmt: skip
