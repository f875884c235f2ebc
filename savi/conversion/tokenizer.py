"""The tokenizer of an `internvl_chat` checkpoint as a native fast tokenizer, with the family's chat template.

InternLM2's tokenizer is a sentencepiece model used by remote code; it becomes a `tokenizer.json` and is checked against sentencepiece
itself on texts of every awkward kind. Qwen2's class is native. Nothing of the checkpoint's code is run: its conversation.py is read as
text for the system message.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from savi.conversion.config import ChatConfig, CheckpointError, read_json
from savi.conversion.sentencepiece_file import PieceType, SentencePieceError, SentencePieceModel, read_sentencepiece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTEXT_TOKEN, START_TOKEN, END_TOKEN, END_OF_TURN = "<IMG_CONTEXT>", "<img>", "</img>", "<|im_end|>"
NAMED_TOKENS = {"start_image_token": START_TOKEN, "end_image_token": END_TOKEN, "context_image_token": CONTEXT_TOKEN}
"""The names under which transformers' InternVL processor, and this project, look the image tokens up."""

PROBES = (
    "What is left of the red cup?",
    "  two  spaces,\ttabs\n\nand lines \r\n",
    "ends with a space ",
    " starts with one",
    "12345 + 6.78 = 99% of $10",
    "视频中发生了什么？书生·万象",
    "naïve café — “quotes” … Ünïcödé",
    "emoji 🎬👩‍🚀 and rare 𓀀 ﷽",
    "def f(x):\n    return {'a': [1, 2]}\n",
    "don't CamelCase_snake-case www.example.org/a?b=c",
    "▁ already here ▁▁",
    "Frame1: ",
    "\n",
)
"""Texts that tell tokenizers apart: blanks at both ends and in runs, digits, scripts, bytes outside the vocabulary, code."""


@dataclass(frozen=True)
class Conversation:
    """How turns are written (the MPT style of the original's conversation.py): tag, text, separator."""

    system: str
    """The system turn whole, its tag included."""
    user: str
    assistant: str
    separator: str


_INTERNVL2_5 = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
_INTERNVL2 = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
_SYSTEM, _USER, _ASSISTANT = "<|im_start|>system\n", "<|im_start|>user\n", "<|im_start|>assistant\n"
KNOWN_CONVERSATIONS = {
    "internvl2_5": Conversation(_SYSTEM + _INTERNVL2_5, _USER, _ASSISTANT, "<|im_end|>\n"),
    "internlm2-chat": Conversation(_SYSTEM + _INTERNVL2, _USER, _ASSISTANT, "<|im_end|>"),
}
"""Used where the checkpoint comes without its conversation.py."""


def read_conversation(folder: Path, name: str) -> Conversation:
    """The conversation called `name`: from the checkpoint's conversation.py, parsed and never run, else from the known ones.

    Raises:
        CheckpointError: no such conversation, or one written in a style other than MPT.
    """
    path = folder / "conversation.py"
    if path.is_file():
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be parsed ({error})") from error
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Conversation":
                fields = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
                if "name" in fields and _literal(fields["name"]) == name:
                    return _from_source(path, name, fields)
    if name in KNOWN_CONVERSATIONS:
        return KNOWN_CONVERSATIONS[name]
    known = ", ".join(sorted(KNOWN_CONVERSATIONS))
    raise CheckpointError(f"{folder}: template {name!r} is not known (known: {known}) and {path.name} does not define it")


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _from_source(path: Path, name: str, fields: dict[str, ast.expr]) -> Conversation:
    style = fields.get("sep_style")
    if not isinstance(style, ast.Attribute) or style.attr != "MPT":
        raise CheckpointError(f"{path}: conversation {name!r} has another style than MPT, the only one supported")
    values = {key: _literal(fields[key]) if key in fields else None for key in ("system_template", "system_message", "roles", "sep")}
    template, message = values["system_template"] or "{system_message}", values["system_message"] or ""
    roles, separator = values["roles"], values["sep"]
    if not isinstance(roles, tuple) or len(roles) != 2 or not isinstance(separator, str):
        raise CheckpointError(f"{path}: conversation {name!r} does not spell out its roles and sep")
    return Conversation(str(template).replace("{system_message}", str(message)), str(roles[0]), str(roles[1]), separator)


def chat_template(conversation: Conversation, *, bos: bool) -> str:
    """The jinja template that writes what the original's `get_prompt` writes, after a `bos_token` where its tokenizer adds one.

    The family's system turn stands first unless the caller's messages begin with a system message.
    """

    def quoted(text: str) -> str:
        return json.dumps(text, ensure_ascii=False)

    system_tag = conversation.system.partition("\n")[0] + "\n"
    tags = f"{{'user': {quoted(conversation.user)}, 'assistant': {quoted(conversation.assistant)}, 'system': {quoted(system_tag)}}}"
    return (
        ("{{ bos_token }}" if bos else "")
        + f"{{% set tags = {tags} %}}{{% set sep = {quoted(conversation.separator)} %}}"
        + f"{{% if messages[0]['role'] != 'system' %}}{{{{ {quoted(conversation.system)} + sep }}}}{{% endif %}}"
        + "{% for message in messages %}"
        + "{{ tags[message['role']] }}"
        + "{% if message['content'] is string %}{{ message['content'] }}"
        + "{% else %}{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
        + "{% else %}{{ raise_exception('only text parts; frames are written by the caller') }}{% endif %}{% endfor %}{% endif %}"
        + "{{ sep }}{% endfor %}"
        + "{% if add_generation_prompt %}{{ tags['assistant'] }}{% endif %}"
    )


def added_tokens(folder: Path) -> dict[str, int]:
    """Token -> id of what the checkpoint adds to its vocabulary, from its tokenizer_config.json or added_tokens.json.

    Raises:
        CheckpointError: neither says so.
    """
    config = read_json(folder / "tokenizer_config.json")
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict) and decoder:
        return {str(entry["content"]): int(index) for index, entry in decoder.items()}
    if (folder / "added_tokens.json").is_file():
        return {str(token): int(index) for token, index in read_json(folder / "added_tokens.json").items()}
    raise CheckpointError(f"{folder}: neither tokenizer_config.json nor added_tokens.json lists the added tokens")


def convert_tokenizer(source: Path, config: ChatConfig) -> PreTrainedTokenizerBase:
    """The native tokenizer, checked.

    Raises:
        CheckpointError: a file is missing or broken, a token has no or another id, or an id does not fit the embeddings.
    """
    added = added_tokens(source)
    for token in (*NAMED_TOKENS.values(), END_OF_TURN):
        if token not in added:
            raise CheckpointError(f"{source}: the tokenizer has no {token}; this is no InternVL tokenizer")
    internlm2 = config.language_model == "InternLM2ForCausalLM"
    tokenizer = _internlm2_tokenizer(source, added) if internlm2 else _qwen2_tokenizer(source)
    for token, index in added.items():
        found = tokenizer.convert_tokens_to_ids(token)
        if found != index:
            raise CheckpointError(f"{source}: token {token!r} should have id {index} and got {found}")
        if index >= config.llm_config.vocab_size:
            raise CheckpointError(f"{source}: token {token!r} has id {index}, but the model has {config.llm_config.vocab_size} embeddings")
    tokenizer.chat_template = chat_template(read_conversation(source, config.template), bos=internlm2)
    tokenizer.eos_token = END_OF_TURN
    return tokenizer


def _qwen2_tokenizer(source: Path) -> PreTrainedTokenizerBase:
    from transformers import Qwen2Tokenizer

    if not (source / "tokenizer.json").is_file() and not ((source / "vocab.json").is_file() and (source / "merges.txt").is_file()):
        raise CheckpointError(f"{source}: a Qwen2 tokenizer needs tokenizer.json, or vocab.json and merges.txt")
    tokenizer: PreTrainedTokenizerBase = Qwen2Tokenizer.from_pretrained(str(source), extra_special_tokens=NAMED_TOKENS)
    return tokenizer


def _internlm2_tokenizer(source: Path, added: dict[str, int]) -> PreTrainedTokenizerBase:
    from transformers import PreTrainedTokenizerFast

    path = source / "tokenizer.model"
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; the InternLM2 tokenizer is made from it")
    try:
        model = read_sentencepiece(path)
    except SentencePieceError as error:
        raise CheckpointError(str(error)) from error
    if not model.is_bpe:
        raise CheckpointError(f"{path}: not a BPE model, so not InternLM2's")
    fast = _fast_bpe(model, added)
    special = {"bos_token": "<s>", "unk_token": "<unk>", "pad_token": "</s>"}
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=fast, extra_special_tokens=NAMED_TOKENS, clean_up_tokenization_spaces=False, **special
    )
    check_against_sentencepiece(tokenizer, path, added)
    return tokenizer


def _fast_bpe(model: SentencePieceModel, added: dict[str, int]) -> Any:
    """A `tokenizers.Tokenizer` with sentencepiece's ids. Reserved pieces ("[UNUSED_TOKEN_n]") take the names of the tokens added there."""
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    names = {index: token for token, index in added.items()}
    texts = [names.get(index, piece.text) for index, piece in enumerate(model.pieces)]
    vocabulary = {text: index for index, text in enumerate(texts)}
    if len(vocabulary) != len(texts):
        twice = next(text for index, text in enumerate(texts) if vocabulary[text] != index)
        raise CheckpointError(f"tokenizer: the name {twice!r} would be given to two ids")
    normal = {text: model.pieces[index].score for text, index in vocabulary.items() if model.pieces[index].type == PieceType.NORMAL}
    merges = [
        (score, text[:cut], text[cut:])
        for text, score in normal.items()
        for cut in range(1, len(text))
        if text[:cut] in vocabulary and text[cut:] in vocabulary
    ]
    # The piece merged first has the highest score; among the ways to make one piece the order is that of its parts' ids.
    merges.sort(key=lambda merge: (-merge[0], vocabulary[merge[1]], vocabulary[merge[2]]))
    unknown = next((text for text, piece in zip(texts, model.pieces, strict=True) if piece.type == PieceType.UNKNOWN), "<unk>")
    pairs = [(left, right) for _, left, right in merges]
    tokenizer = Tokenizer(BPE(vocabulary, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = [normalizers.Prepend("▁")] if model.add_dummy_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if model.add_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    literal = [text for text, piece in zip(texts, model.pieces, strict=True) if piece.type == PieceType.USER_DEFINED and text not in added]
    tokenizer.add_tokens([AddedToken(text.replace("▁", " "), normalized=False, special=False) for text in literal])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in sorted(added, key=added.__getitem__)])
    return tokenizer


def check_against_sentencepiece(
    tokenizer: PreTrainedTokenizerBase, path: Path, added: dict[str, int], texts: Sequence[str] = PROBES
) -> None:
    """Compare ids with sentencepiece's, text by text, specials in between as the original tokenizer treats them.

    Raises:
        CheckpointError: a text is tokenized otherwise.
    """
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=str(path))
    specials = re.compile("(" + "|".join(re.escape(token) for token in sorted(added, key=len, reverse=True)) + ")")
    for text in (*texts, *(f"<|im_start|>user\n{text}<|im_end|>\n" for text in texts)):
        expected: list[int] = []
        for part in specials.split(text):
            expected += [added[part]] if part in added else processor.encode(part) if part else []
        got = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if got != expected:
            raise CheckpointError(
                f"{path}: the fast tokenizer differs from sentencepiece on {text!r}: {got[:12]} instead of {expected[:12]}"
            )
