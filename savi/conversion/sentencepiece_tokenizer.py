"""A sentencepiece model file as a fast tokenizer with the same ids, checked against sentencepiece itself on texts of every awkward kind.

InternLM2's tokenizer comes with code of its own, a llama's with a class whose loader refuses many versions of protobuf; both are a
sentencepiece model and a list of added tokens, and become a `tokenizer.json`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from savi.conversion.config import CheckpointError
from savi.conversion.sentencepiece_file import PieceType, SentencePieceError, SentencePieceModel, read_sentencepiece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
class AddedTokens:
    """Token -> id of what a checkpoint adds to its vocabulary, and the tokens that swallow the blanks `left` or `right` of them."""

    ids: Mapping[str, int]
    left: frozenset[str] = field(default_factory=frozenset)
    right: frozenset[str] = field(default_factory=frozenset)


def sentencepiece_tokenizer(
    path: Path, added: AddedTokens, *, prefix_each_part: bool, around: tuple[str, str], **settings: Any
) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a `tokenizer.model`, checked.

    `prefix_each_part`: whether the blank that the model puts before a text stands after each added token too (a llama's `legacy`); else
    it stands nowhere, since a conversation has no text before its first added token. `around`: what stands around a user's text in a
    conversation, for the check.

    Raises:
        CheckpointError: no such file, a broken one, another algorithm, or ids that differ from sentencepiece's.
    """
    from transformers import PreTrainedTokenizerFast

    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; the tokenizer is made from it")
    try:
        model = read_sentencepiece(path)
    except SentencePieceError as error:
        raise CheckpointError(str(error)) from error
    if not model.is_bpe:
        raise CheckpointError(f"{path}: not a BPE model, so not InternLM2's or a llama's")
    fast = _fast_bpe(model, added, prefix_each_part)
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(tokenizer_object=fast, clean_up_tokenization_spaces=False, **settings)
    check_against_sentencepiece(tokenizer, path, added, prefix_each_part=prefix_each_part, around=around)
    return tokenizer


def _fast_bpe(model: SentencePieceModel, added: AddedTokens, prefix_each_part: bool) -> Any:
    """A `tokenizers.Tokenizer` with sentencepiece's ids. Reserved pieces ("[UNUSED_TOKEN_n]") take the names of the tokens added there."""
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    names = {index: token for token, index in added.ids.items()}
    texts = [names.get(index, piece.text) for index, piece in enumerate(model.pieces)]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(f"tokenizer: a token holds half a character ({error.reason}); download it again") from error
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
    prefixed = model.add_dummy_prefix and prefix_each_part
    prefix = [normalizers.Prepend("▁")] if prefixed else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    literal = [
        text for text, piece in zip(texts, model.pieces, strict=True) if piece.type == PieceType.USER_DEFINED and text not in added.ids
    ]
    tokenizer.add_tokens([AddedToken(text.replace("▁", " "), normalized=False, special=False) for text in literal])
    tokens = [
        AddedToken(token, normalized=False, special=True, lstrip=token in added.left, rstrip=token in added.right)
        for token in sorted(added.ids, key=added.ids.__getitem__)
    ]
    tokenizer.add_special_tokens(tokens)
    return tokenizer


def check_against_sentencepiece(
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    added: AddedTokens,
    texts: Sequence[str] = PROBES,
    *,
    prefix_each_part: bool = True,
    around: tuple[str, str] = ("<|im_start|>user\n", "<|im_end|>\n"),
) -> None:
    """Compare ids with sentencepiece's, text by text, added tokens in between as the original tokenizers treat them.

    Raises:
        CheckpointError: a text is tokenized otherwise.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        processor = SentencePieceProcessor(model_file=str(path))
    except RuntimeError as error:
        raise CheckpointError(f"{path}: not a sentencepiece model, or damaged ({error}); download it again") from error
    specials = re.compile("(" + "|".join(re.escape(token) for token in sorted(added.ids, key=len, reverse=True)) + ")")
    lead = processor.encode("<unk>")

    def plain(part: str) -> list[int]:
        """Ids of text between added tokens, with or without the model's own leading blank (without as transformers 4 did it)."""
        if not part:
            return []
        return list(processor.encode(part) if prefix_each_part else processor.encode("<unk>" + part)[len(lead) :])

    for text in (*texts, *(f"{around[0]}{text}{around[1]}" for text in texts)):
        expected: list[int] = []
        parts = specials.split(text)
        for i, part in enumerate(parts):
            if part in added.ids:
                expected.append(added.ids[part])
                continue
            part = part.lstrip() if i > 0 and parts[i - 1] in added.right else part
            part = part.rstrip() if i + 1 < len(parts) and parts[i + 1] in added.left else part
            expected += plain(part)
        got = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if got != expected:
            raise CheckpointError(
                f"{path}: the fast tokenizer differs from sentencepiece on {text!r}: {got[:12]} instead of {expected[:12]}"
            )
