"""The tokenizer of an `internvl_chat` checkpoint as a native fast tokenizer, with the family's chat template.

InternLM2's and a llama's are made from their sentencepiece model (`savi.conversion.sentencepiece_tokenizer`); Qwen's class is native.
Nothing of the checkpoint's code is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from savi.conversion.config import ChatConfig, CheckpointError, read_json
from savi.conversion.conversation import Conversation, chat_template, read_conversation
from savi.conversion.sentencepiece_tokenizer import AddedTokens, sentencepiece_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTEXT_TOKEN, START_TOKEN, END_TOKEN = "<IMG_CONTEXT>", "<img>", "</img>"
NAMED_TOKENS = {"start_image_token": START_TOKEN, "end_image_token": END_TOKEN, "context_image_token": CONTEXT_TOKEN}
"""The names under which transformers' InternVL processor, and this project, look the image tokens up."""
_VIDEO_MARKS = ("<video>", "<|video_pad|>", "<|plugin|>", "</quad>")
"""What may stand for a video until that processor replaces it by frames: the first that the checkpoint has. A token of its own would have
no embedding, and these no prompt spells."""


def added_tokens(folder: Path) -> AddedTokens:
    """What the checkpoint adds to its vocabulary: from tokenizer_config.json, added_tokens.json or tokenizer.json.

    Which of them lists the tokens depends on the version of transformers that wrote the checkpoint.

    Raises:
        CheckpointError: none of them does, or one is broken.
    """
    place = "tokenizer_config.json"
    decoder = read_json(folder / place).get("added_tokens_decoder")
    try:
        if isinstance(decoder, dict) and decoder:
            return _entries({int(index): entry for index, entry in decoder.items()})
        if (folder / (place := "added_tokens.json")).is_file():
            return AddedTokens({str(token): int(index) for token, index in read_json(folder / place).items()})
        if (folder / (place := "tokenizer.json")).is_file():
            return _entries({int(entry["id"]): entry for entry in read_json(folder / place).get("added_tokens") or ()})
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{folder / place}: its added tokens cannot be read ({error!r}); download it again") from error
    raise CheckpointError(f"{folder}: none of tokenizer_config.json, added_tokens.json and tokenizer.json lists the added tokens")


def named_tokens(added: AddedTokens) -> dict[str, str]:
    """The tokens by the names that transformers' InternVL processor looks them up under."""
    video = next((token for token in _VIDEO_MARKS if token in added.ids), None)
    return {**NAMED_TOKENS, **({"video_token": video} if video else {})}


def _entries(entries: dict[int, dict[str, Any]]) -> AddedTokens:
    def those(flag: str) -> frozenset[str]:
        return frozenset(str(entry["content"]) for entry in entries.values() if entry.get(flag))

    return AddedTokens({str(entry["content"]): index for index, entry in entries.items()}, those("lstrip"), those("rstrip"))


def convert_tokenizer(source: Path, config: ChatConfig) -> PreTrainedTokenizerBase:
    """The native tokenizer, checked.

    Raises:
        CheckpointError: a file is missing or broken, a token has no or another id, or an id does not fit the embeddings.
    """
    added = added_tokens(source)
    conversation = read_conversation(source, config.template, config.system_message)
    for token in (*NAMED_TOKENS.values(), conversation.end_of_turn):
        if token not in added.ids:
            raise CheckpointError(f"{source}: the tokenizer has no {token!r}; this is no InternVL tokenizer")
    tokenizer, bos = _tokenizer(source, config, added, conversation)
    for token, index in added.ids.items():
        found = tokenizer.convert_tokens_to_ids(token)
        if found != index:
            raise CheckpointError(f"{source}: token {token!r} should have id {index} and got {found}")
        if index >= config.llm_config.vocab_size:
            raise CheckpointError(f"{source}: token {token!r} has id {index}, but the model has {config.llm_config.vocab_size} embeddings")
    tokenizer.chat_template = chat_template(conversation, bos=bos, video=named_tokens(added).get("video_token", ""))
    tokenizer.eos_token = conversation.end_of_turn
    return tokenizer


def _tokenizer(source: Path, config: ChatConfig, added: AddedTokens, conversation: Conversation) -> tuple[PreTrainedTokenizerBase, bool]:
    """The tokenizer, and whether the original's begins a text with its bos token."""
    around = (conversation.user, conversation.separator)
    settings = {"bos_token": "<s>", "unk_token": "<unk>", "pad_token": "</s>", "extra_special_tokens": named_tokens(added)}
    path = source / "tokenizer.model"
    if config.language_model == "InternLM2ForCausalLM":
        return sentencepiece_tokenizer(path, added, prefix_each_part=True, around=around, **settings), True
    if config.language_model in ("LlamaForCausalLM", "Phi3ForCausalLM") and path.is_file():
        said = read_json(source / "tokenizer_config.json")
        legacy = said.get("legacy")
        tokenizer = sentencepiece_tokenizer(path, added, prefix_each_part=legacy is None or bool(legacy), around=around, **settings)
        return tokenizer, bool(said.get("add_bos_token", True))
    tokenizer = _native_tokenizer(source, config, named_tokens(added))
    _add_missing(tokenizer, added)
    return tokenizer, tokenizer.bos_token_id is not None and list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id]


def _native_tokenizer(source: Path, config: ChatConfig, named: dict[str, str]) -> PreTrainedTokenizerBase:
    """A tokenizer whose files transformers reads by itself."""
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    qwen = config.language_model in ("Qwen2ForCausalLM", "Qwen3ForCausalLM")
    other = ("vocab.json", "merges.txt") if qwen else ("tokenizer.model",)
    if not (source / "tokenizer.json").is_file() and not all((source / name).is_file() for name in other):
        raise CheckpointError(f"{source}: this tokenizer needs tokenizer.json, or {' and '.join(other)}")
    kind = Qwen2Tokenizer if qwen else PreTrainedTokenizerFast
    try:
        tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(str(source), extra_special_tokens=named)
    except Exception as error:  # the tokenizers library raises its own kinds for broken files
        raise CheckpointError(f"{source}: the tokenizer cannot be read ({str(error).splitlines()[0][:200]}); download it again") from error
    return tokenizer


def _add_missing(tokenizer: PreTrainedTokenizerBase, added: AddedTokens) -> None:
    """Give the tokenizer the added tokens that its own files leave out (transformers 4 kept them in added_tokens.json), in their order."""
    from tokenizers import AddedToken

    vocabulary = tokenizer.get_vocab()
    lacking = sorted((token for token in added.ids if token not in vocabulary), key=added.ids.__getitem__)
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=True) for token in lacking])
