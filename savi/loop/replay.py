"""Critiques as training texts of their own: what the model wrote as a critic is taught again, so that it does not forget how.

A lesson is a pair of equal answers, which only an NLL term learns from. The module knows pairs and their texts, no model.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from savi.loop.preferences import PreferencePair
from savi.loop.prompts import prompt_set


def critique_lessons(pairs: Sequence[PreferencePair], share: float, *, seed: int = 0) -> list[PreferencePair]:
    """The critiques of a share (0-1) of the pairs, each as the reply to the prompt that it was the reply to.

    Which ones is drawn by seed and pair, whatever the pairs' order. Pairs without a critique, or without the prompts they were made with,
    have nothing to teach.
    """
    return [
        _lesson(pair)
        for pair in pairs
        if pair.critique and "prompts" in pair.meta and random.Random(f"replay/{seed}/{pair.pair_id}").random() < share
    ]


def _lesson(pair: PreferencePair) -> PreferencePair:
    prompts = prompt_set(str(pair.meta["prompts"]))
    asked = prompts.fill("critique", pair.kind, question=pair.question, answer=pair.initial)
    meta = {key: value for key, value in pair.meta.items() if key != "prompts"}  # the question is the whole prompt
    return replace(
        pair,
        pair_id=f"{pair.pair_id}-critique",
        question=asked,
        initial=pair.critique,
        critique="",
        chosen=pair.critique,
        rejected=pair.critique,
        meta={**meta, "replayed": "critique"},
    )
