"""The controls of an alignment run: the same pairs with what makes them preferences taken away, or reversed.

A control is trained as the method is; what it gains, the critique did not give. The module knows pairs and their texts, no model.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from savi.loop.preferences import PreferencePair
from savi.loop.prompts import LETTERS, Question, Unreadable, choice, parse_question, question_shape, same_answer

Control = Literal["none", "reversed", "blind", "sft", "sft-initial"]
CONTROLS: tuple[Control, ...] = ("none", "reversed", "blind", "sft", "sft-initial")
SUPERVISED: frozenset[Control] = frozenset({"sft", "sft-initial"})
"""Trained on the chosen answers alone (method "sft")."""
CHANGE_PAIRS: frozenset[Control] = frozenset({"reversed", "blind", "sft-initial"})
"""Train on other pairs than those proposed."""

_MARK = re.compile(rf"(?<!\S)(\(?)([{LETTERS}])(?=[).:]*(?:\s|$))")


def transform_pairs(
    pairs: Sequence[PreferencePair], control: Control, *, seed: int = 0, unchanged: Sequence[PreferencePair] | None = None
) -> list[PreferencePair]:
    """The pairs of a control run.

    * "none": as they are. "sft": as they are, to be trained with method "sft" (chosen answers alone).
    * "sft-initial": the initial answers to all readable questions (`unchanged` brings the rest), to be trained with method "sft": learning
      from its own answers without a critique.
    * "reversed": chosen and rejected change places. If the critique helps, this must hurt.
    * "blind": as many pairs, made without the critique. Which questions get a pair is drawn from all readable ones (`unchanged` brings
      those whose answer the critique left alone: with yes/no, the mere choice of questions would hand on its verdict), and the chosen
      answer is another option of the same question, or another video's revised answer to a question of the same shape; never the initial
      answer itself. Where pairs of equal answers are among them (`AlignSettings.keep_equal`), as many questions keep their initial answer.

    The result depends on the pairs and the seed, not on the pairs' order. `meta` of a changed pair says what was done and keeps the
    revision.

    Raises:
        ValueError: an unknown control; "blind" or "sft-initial" without `unchanged`.
    """
    if control in ("none", "sft"):
        return list(pairs)
    if control == "reversed":
        return [replace(pair, chosen=pair.rejected, rejected=pair.chosen, meta={**pair.meta, "control": control}) for pair in pairs]
    if control not in CONTROLS:
        raise ValueError(f"control {control!r}: unknown; there are {', '.join(CONTROLS)}")
    if unchanged is None:
        raise ValueError(f"control {control!r} takes from all readable questions: pass unchanged=read_unchanged(dropped.jsonl)")
    everything = sorted({pair.pair_id: pair for pair in (*pairs, *unchanged)}.values(), key=lambda pair: (pair.video, pair.pair_id))
    if control == "sft-initial":
        return [_with_initial(pair, control) for pair in everything]
    questions = {pair.pair_id: _question(pair) for pair in everything}
    pool: dict[str, list[PreferencePair]] = {}
    for pair in everything:
        pool.setdefault(question_shape(questions[pair.pair_id]), []).append(pair)
    draw = random.Random(f"blind/{seed}")
    order = list(everything)
    draw.shuffle(order)
    made: list[PreferencePair] = []
    kept = [pair for pair in pairs if same_answer(pair.chosen, pair.rejected)]
    changes = len(pairs) - len(kept)
    for pair in order:
        if len(made) == len(pairs):
            break
        meta = {**pair.meta, "control": control, "revision": pair.chosen}
        if changes:
            question = questions[pair.pair_id]
            if others := _other_answers(pair, question, pool[question_shape(question)]):
                made.append(replace(pair, chosen=draw.choice(others), rejected=pair.initial, meta=meta))
                changes -= 1
                continue
        if kept:
            made.append(_with_initial(pair, control))
    return made


def _with_initial(pair: PreferencePair, control: Control) -> PreferencePair:
    """A pair that teaches its initial answer; `meta` keeps the revision."""
    meta = {**pair.meta, "control": control, "revision": pair.chosen}
    return replace(pair, chosen=pair.initial, rejected=pair.initial, meta=meta)


def _question(pair: PreferencePair) -> Question:
    read = parse_question(pair.question)
    return Question(pair.question) if isinstance(read, Unreadable) else read


def _other_answers(pair: PreferencePair, question: Question, same_shape: Sequence[PreferencePair]) -> list[str]:
    """Answers that differ from the initial one, found without looking at this question's critique."""
    if question.options:
        given = choice(pair.initial, question)
        return [_with_option(pair.initial, question, given, letter) for letter in question.letters if letter != given]
    found = {other.chosen for other in same_shape if other.video != pair.video and not same_answer(other.chosen, pair.initial)}
    return sorted(found)


def _with_option(answer: str, question: Question, given: str | None, letter: str) -> str:
    """The answer with another option in it: its letter in the letter's place, its text in the text's."""
    texts = dict(question.options)
    if given is None:
        return letter
    out = _MARK.sub(lambda mark: mark.group(1) + (letter if mark.group(2) == given else mark.group(2)), answer)
    out = re.sub(rf"(?<!\w){re.escape(texts[given])}(?!\w)", lambda _: texts[letter], out, flags=re.IGNORECASE)
    return out if out != answer else letter
