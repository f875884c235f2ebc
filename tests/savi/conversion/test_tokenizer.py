"""The tokenizer and chat template of a converted checkpoint: the ids and texts of the original, and every way they can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from savi.conversion.checkpoint import CheckpointError, convert
from savi.conversion.sentencepiece_tokenizer import PROBES, AddedTokens, check_against_sentencepiece
from tests.savi.converted import edit_config, has_sentencepiece, load_tokenizer, tags
from tests.savi.internvl_chat import (
    internlm2_config,
    write_checkpoint,
    write_internlm2_tokenizer,
)


def test_the_tokenizer_loads_natively_with_names_and_end_of_turn(converted: tuple) -> None:
    config, _, source, native = converted
    tokenizer = load_tokenizer(native)
    assert (tokenizer.start_image_token, tokenizer.end_image_token, tokenizer.context_image_token) == ("<img>", "</img>", "<IMG_CONTEXT>")
    assert tokenizer.eos_token == tags(config)[3]
    added = json.loads((source / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    for index, entry in added.items():
        assert tokenizer.convert_tokens_to_ids(entry["content"]) == int(index)
        assert tokenizer(entry["content"], add_special_tokens=False)["input_ids"] == [int(index)]
    assert len(tokenizer) == config["llm_config"]["vocab_size"]
    assert json.loads((native / "config.json").read_text())["image_token_id"] == tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    assert json.loads((native / "generation_config.json").read_text())["eos_token_id"] == [tokenizer.eos_token_id]
    for text in PROBES:
        lossless = text.replace("▁", " ") if has_sentencepiece(config) else text  # sentencepiece writes a blank as that character
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == lossless


@pytest.mark.parametrize("dummy_prefix", [False, True])
def test_sentencepiece_ids_are_kept(tmp_path: Path, dummy_prefix: bool) -> None:
    """Ids of random texts against sentencepiece itself, also after a round trip through the files."""
    write_checkpoint(tmp_path / "fresh", internlm2_config())
    write_internlm2_tokenizer(tmp_path / "fresh", dummy_prefix=dummy_prefix)  # the same pieces, another setting
    tokenizer = load_tokenizer(convert(tmp_path / "fresh", tmp_path / "native"))
    added = AddedTokens({token: tokenizer.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>", "<img>")})
    rng = np.random.default_rng(0)
    alphabet = list("the red cup moves 123 了什么é🎬\n\t") + [" ", " ", " "]
    texts = ["".join(rng.choice(alphabet, rng.integers(1, 40))) for _ in range(200)]
    check_against_sentencepiece(tokenizer, tmp_path / "fresh" / "tokenizer.model", added, texts)
    plain = tokenizer("the red cup", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(plain)[0].startswith("▁") == dummy_prefix
    assert tokenizer.decode(plain) == "the red cup"


def test_the_check_against_sentencepiece_can_fail(source: Path, tmp_path: Path) -> None:
    from tokenizers import normalizers

    tokenizer = load_tokenizer(convert(source, tmp_path / "native"))
    added = AddedTokens({"<|im_end|>": 3, "<|im_start|>": 4})
    check_against_sentencepiece(tokenizer, source / "tokenizer.model", added)
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    with pytest.raises(CheckpointError, match="differs from sentencepiece"):
        check_against_sentencepiece(tokenizer, source / "tokenizer.model", added)


def test_broken_tokenizers(source: Path, tmp_path: Path) -> None:
    model = source / "tokenizer.model"
    whole, settings = model.read_bytes(), (source / "tokenizer_config.json").read_text()
    model.write_bytes(whole[:500])
    with pytest.raises(CheckpointError, match="sentencepiece model"):
        convert(source, tmp_path / "native")
    model.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="sentencepiece model"):
        convert(source, tmp_path / "native")
    model.unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: no such file"):
        convert(source, tmp_path / "native")
    write_internlm2_tokenizer(source, kind="unigram")
    with pytest.raises(CheckpointError, match="not a BPE model"):
        convert(source, tmp_path / "native")
    model.write_bytes(whole)
    config = json.loads(settings)
    config["added_tokens_decoder"]["5000"] = {"content": "<extra>"}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="'<extra>'"):
        convert(source, tmp_path / "native")
    config["added_tokens_decoder"] = {key: entry for key, entry in config["added_tokens_decoder"].items() if "IMG" not in entry["content"]}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="has no '<IMG_CONTEXT>'"):
        convert(source, tmp_path / "native")
    assert not (tmp_path / "native").exists()


CONVERSATION = """
raise SystemExit("this file must never be run")
register_conv_template(Conversation(name='other', sep_style=SeparatorStyle.CHATML, sep='x', roles=('a', 'b')))
register_conv_template(
    Conversation(
        name='internvl2_5',
        system_template='<|im_start|>system\\n{system_message}',
        # a comment
        system_message='You answer '
        'briefly. "Quoted" \\\\ and {braces}',
        roles=('<|im_start|>user\\n', '<|im_start|>assistant\\n'),
        sep_style=SeparatorStyle.MPT,
        sep='<|im_end|>\\n',
    )
)
"""


def test_the_system_message_is_read_from_the_checkpoints_own_file(source: Path, tmp_path: Path) -> None:
    (source / "conversation.py").write_text(CONVERSATION)
    tokenizer = load_tokenizer(convert(source, tmp_path / "native"))
    turns = [
        {"role": "user", "content": "one {{ x }}"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": [{"type": "text", "text": "three"}]},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == (
        '<s><|im_start|>system\nYou answer briefly. "Quoted" \\ and {braces}<|im_end|>\n<|im_start|>user\none {{ x }}<|im_end|>\n'
        "<|im_start|>assistant\ntwo<|im_end|>\n<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n"
    )
    own = [{"role": "system", "content": "mine"}, *turns[:1]]
    assert tokenizer.apply_chat_template(own, tokenize=False) == (
        "<s><|im_start|>system\nmine<|im_end|>\n<|im_start|>user\none {{ x }}<|im_end|>\n"
    )


@pytest.mark.parametrize(
    ("template", "code", "message"),
    [
        ("other", CONVERSATION, "another style than MPT"),
        ("vicuna", CONVERSATION, "template 'vicuna' is not known"),
        ("phi3-chat", CONVERSATION, r"the tokenizer has no '<\|end\|>'"),
        ("internvl2_5", "def broken(:", "cannot be parsed"),
    ],
)
def test_conversations_that_cannot_be_read(source: Path, tmp_path: Path, template: str, code: str, message: str) -> None:
    (source / "conversation.py").write_text(code)
    edit_config(source, template=template)
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "native")
