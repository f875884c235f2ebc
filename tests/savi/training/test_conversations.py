"""Pairs with earlier turns and system messages: trained on as the chat template writes them, never in parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from savi.engine.chat import ChatTemplateError
from savi.engine.video_lm import VideoLM
from savi.families.base import FamilyError
from savi.training.examples import tokenise
from savi.training.settings import DPOSettings
from savi.training.trainer import train
from tests.savi.scripted import random_pairs, write_clips
from tests.savi.tiny import TEMPLATE, tiny_frames, tiny_video_lm

HISTORY = (("what is red", "x2 y3"), ("where is red", "left of the circle"))
SETTINGS = DPOSettings(num_frames=4, learning_rate=1e-3, pairs_per_step=4, epochs=2, logging_steps=1)
WITH_SYSTEM = "{% for message in messages %}{% if message['role'] == 'system' %}so {{ message['content'] }} {% endif %}{% endfor %}" + (
    TEMPLATE.replace("{% for message in messages %}", "{% for message in messages if message['role'] != 'system' %}")
)


def test_the_system_message_stands_in_the_prefix() -> None:
    lm = tiny_video_lm()
    lm.tokenizer.chat_template = WITH_SYSTEM
    lm = VideoLM(lm.model, lm.tokenizer, lm.preprocessing)
    own = lm.tokenizer.decode(lm.prefix_ids(tiny_frames(0, 1)))
    with lm.system_message("answer yes"):
        assert lm.tokenizer.decode(lm.prefix_ids(tiny_frames(0, 1))) == "so answer yes " + own
        assert lm.tokenizer.decode(lm.prompt_ids([*HISTORY[0], "is red"])).endswith("<user> is red <assistant>")
    assert lm.tokenizer.decode(lm.prefix_ids(tiny_frames(0, 1))) == own
    with pytest.raises(ChatTemplateError, match="system message"), lm.system_message("answer <eos>"):
        pass
    lm.tokenizer.chat_template = TEMPLATE.replace("in messages %}", "in messages if message['role'] != 'system' %}")
    with pytest.raises(FamilyError, match="system"), lm.system_message("answer yes"):
        pass


def test_training_sees_all_of_it(tmp_path: Path) -> None:
    """Each of system message and history changes the tokens and the result; several system messages are refused."""
    pairs = random_pairs(write_clips(tmp_path, 2))
    results = {}
    for name, more in {"plain": {}, "history": {"history": HISTORY}, "system": {"system": "answer yes"}}.items():
        lm = tiny_video_lm()
        lm.tokenizer.chat_template = WITH_SYSTEM
        lm = VideoLM(lm.model, lm.tokenizer, lm.preprocessing)
        given = [replace(pair, **more) for pair in pairs]  # type: ignore[arg-type]
        examples, _ = tokenise(lm, given, SETTINGS)
        assert (list(examples[0].tokens.question) == lm.prompt_ids(sorted(given, key=lambda p: (p.video, p.pair_id))[0].prompt)) == (
            name != "history"
        )
        results[name] = [row["loss"] for row in train(lm, given, SETTINGS, tmp_path / name).log]
        plain = SETTINGS.model_copy(update={"engine": "plain"})
        again = tiny_video_lm()
        again.tokenizer.chat_template = WITH_SYSTEM
        again = VideoLM(again.model, again.tokenizer, again.preprocessing)
        oracle = [row["loss"] for row in train(again, given, plain, tmp_path / f"{name}-plain").log]
        assert results[name] == pytest.approx(oracle, abs=1e-4)
    assert results["plain"] != results["history"] != results["system"] != results["plain"]
    mixed = [replace(pairs[0], system="answer yes"), *pairs[1:]]
    with pytest.raises(ValueError, match=r"2 system messages .* train on a file for each"):
        train(lm, mixed, SETTINGS, tmp_path / "mixed")
