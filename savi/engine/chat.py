"""The text around a video: the tokenizer's own chat template, rendered once and cut right after the last visual token.

What stands before the cut is the prefix (system message, the user's tag, the frames); what follows it is rendered again for
every prompt. The module knows a tokenizer and a family's way to write a video, no model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from savi.base.errors import ExitCode, UsageError
from savi.families.base import Family, FamilyError, VideoFeatures

_REMEMBERED = 64
"""Distinct prefixes kept: families that write times have a new one for nearly every video."""

_VIDEO, _PROMPT, _REPLY, _LATER = "SAVI0VIDEO0HERE", "SAVI0PROMPT0HERE", "SAVI0REPLY0HERE", "SAVI0LATER0HERE"

Prompt = str | Sequence[str]
"""A question on a video, or a conversation about it: question, reply, question, ..., question."""


class ChatTemplateError(FamilyError):
    """A chat template that cannot be used: names the checkpoint and what is wrong."""

    exit_code = ExitCode.BROKEN


class ChatFormat:
    """Prefix ids, prompt ids and response ids of one tokenizer and family. `system`: a system message instead of the template's own.

    Raises:
        FamilyError: no chat template, or one that drops or changes what the user or the system message says.
    """

    def __init__(self, tokenizer: Any, family: Family, where: str = "the tokenizer", *, system: str | None = None) -> None:
        self.tokenizer, self.family, self.where, self.system = tokenizer, family, where, system
        self.before, self.between, self.after = self._placed_by_template() or self._placed_by_us()
        answered = self._render([("user", _PROMPT), ("assistant", _REPLY)], add_generation_prompt=False)
        tail = answered.split(_REPLY)[-1] if _REPLY in answered else ""
        self.visual_token = str(tokenizer.convert_ids_to_tokens(family.visual_token_id))
        # Only tokens marked special steer the model; other added tokens are words like any other, and prompts may hold them.
        added = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special and t.content}
        specials = sorted(added | set(tokenizer.all_special_tokens), key=len, reverse=True)
        self._special = re.compile("|".join(re.escape(t) for t in specials)) if specials else None
        self.end_of_turn_id = self._end_of_turn(tail, set(specials))
        self._prefix_cache: dict[tuple[str | int, ...], Tensor] = {}
        if system is not None and (system not in self.before or (self._special and self._special.search(system))):
            raise ChatTemplateError(f"{where}: the chat template does not write the system message {system[:60]!a} as it is")

    def _placed_by_template(self) -> tuple[str, str, str] | None:
        """Texts before the video, between video and prompt, and after both, where the template itself places a video."""
        mark = self.family.placeholder
        if not mark or not self.tokenizer.chat_template:
            return None
        content = [{"type": "video"}, {"type": "text", "text": _PROMPT}]
        first = [] if self.system is None else [{"role": "system", "content": [{"type": "text", "text": self.system}]}]
        messages = [*first, {"role": "user", "content": content}]
        try:
            turn = str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except Exception:  # noqa: BLE001 - a template may fail by any error; placing the video as text says what is wrong
            return None
        if turn.count(mark) != 1 or turn.count(_PROMPT) != 1 or turn.index(mark) > turn.index(_PROMPT):
            return None
        before, rest = turn.split(mark)
        between, after = rest.split(_PROMPT)
        return before, self.family.outro + between, after

    def _placed_by_us(self) -> tuple[str, str, str]:
        """The same where the video is text in the user's turn."""
        turn = self._render([("user", _VIDEO + self.family.after_video + _PROMPT)], add_generation_prompt=True)
        if turn.count(_VIDEO) != 1 or turn.count(_PROMPT) != 1:
            raise ChatTemplateError(f"{self.where}: the chat template does not keep the user's text as it is")
        before, rest = turn.split(_VIDEO)
        between, after = rest.split(_PROMPT)
        return before, between, after

    def _render(self, turns: Sequence[tuple[str, str]], *, add_generation_prompt: bool) -> str:
        """The template's text; templates that want a list of parts get one. The system message stands first."""
        turns = [*([] if self.system is None else [("system", self.system)]), *turns]
        if not self.tokenizer.chat_template:
            raise ChatTemplateError(f"{self.where}: no chat template; put chat_template.jinja beside the tokenizer")
        plain = [{"role": role, "content": text} for role, text in turns]
        parts = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
        why = ""
        for messages in (plain, parts):
            try:
                text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
            except Exception as error:  # noqa: BLE001 - a template may refuse a form by any error
                why = f" ({' '.join(str(error).split())[:200]})"
                continue
            if all(said in text for _, said in turns):
                return str(text)
        said_by = " and ".join(role for role, _ in turns)
        raise ChatTemplateError(f"{self.where}: the chat template takes neither plain text nor text parts of {said_by}{why}")

    def _end_of_turn(self, tail: str, specials: set[str]) -> int:
        ids = self._encode(tail.lstrip()) if tail.strip() else []
        if ids and str(self.tokenizer.convert_ids_to_tokens(ids[0])) in specials:
            return ids[0]
        if self.tokenizer.eos_token_id is None:
            raise FamilyError(f"{self.where}: neither the chat template nor eos_token says how a reply ends")
        return int(self.tokenizer.eos_token_id)

    def _encode(self, text: str, **kwargs: Any) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, **kwargs)["input_ids"])

    def prefix_ids(self, features: VideoFeatures) -> Tensor:
        """Ids `[P]` from the start to the end of the last frame. Videos written alike share one tensor: do not write into it."""
        pieces = self.family.pieces(features)
        key = tuple(pieces)
        if key not in self._prefix_cache:
            if len(self._prefix_cache) >= _REMEMBERED:
                self._prefix_cache.clear()
            self._prefix_cache[key] = self._encode_pieces(pieces)
        return self._prefix_cache[key]

    def _encode_pieces(self, pieces: Sequence[str | int]) -> Tensor:
        runs = [piece for piece in pieces if isinstance(piece, int)]
        text = self.before + "".join(self.visual_token if isinstance(piece, int) else piece for piece in pieces)
        ids, out, run = self._encode(text), [], 0
        for token in ids:
            if token == self.family.visual_token_id and run < len(runs):
                out += [token] * runs[run]
                run += 1
            else:
                out.append(token)
        if run != len(runs) or ids.count(self.family.visual_token_id) != len(runs):
            raise FamilyError(
                f"{self.where}: {len(runs)} runs of visual tokens were written as {ids.count(self.family.visual_token_id)}; "
                f"{self.visual_token!r} must be one special token"
            )
        return torch.tensor(out)

    def anchor(self) -> str:
        """The special token the prefix ends with: what follows is tokenised as in the whole."""
        return self.family.last_token() or self.visual_token

    @cached_property
    def _turns(self) -> tuple[str, str]:
        """Texts before an earlier reply, and between it and the next question, as the template writes a conversation."""
        said = [("user", _PROMPT), ("assistant", _REPLY), ("user", _LATER)]
        text = self._render(said, add_generation_prompt=True)
        parts = re.split("|".join((_PROMPT, _REPLY, _LATER)), text)
        if len(parts) != 4 or parts[3] != self.after:
            raise ChatTemplateError(f"{self.where}: the chat template does not take a second question; ask each on its own")
        return parts[1], parts[2]

    def _fixed(self, texts: int) -> list[str]:
        """What stands before each of the `texts` of a conversation, and after the last one."""
        return [self.between, *(list(self._turns) * (texts // 2) if texts > 1 else []), self.after]

    def prompt_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Ids of all that follows the video, with the header of the reply, for each prompt.

        A text that spells a special token is split into ordinary ones: it cannot end a turn.

        Raises:
            FamilyError: nothing at all follows the video, so there is nothing to predict a reply from; a template of one question only.
        """
        said = [(prompt,) if isinstance(prompt, str) else tuple(prompt) for prompt in prompts]
        anchor = self.anchor()
        lead = len(self._encode(anchor))
        plain: dict[tuple[str, ...], str] = {}
        encoded: dict[tuple[str, ...], list[int]] = {}
        for texts in said:
            if len(texts) % 2 == 0:
                raise ValueError(f"a conversation of {len(texts)} texts does not end with a question")
            for text in texts:
                _refuse_surrogates(text)
            fixed = self._fixed(len(texts))
            if self._special and any(map(self._special.search, texts)):
                ids = self._encode(anchor + fixed[0])[lead:]
                for text, after in zip(texts, fixed[1:], strict=True):
                    ids += self._as_text(text) + self._encode(after)
                encoded[texts] = ids
            else:
                plain[texts] = anchor + fixed[0] + "".join(text + after for text, after in zip(texts, fixed[1:], strict=True))
        if plain:  # a tokenizer fails on an empty list
            found = self.tokenizer(list(plain.values()), add_special_tokens=False)["input_ids"]
            encoded |= {texts: list(ids[lead:]) for texts, ids in zip(plain, found, strict=True)}
        if not all(encoded.values()):
            raise FamilyError(f"{self.where}: the chat template puts nothing after an empty prompt; ask something")
        return [encoded[texts] for texts in said]

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of a prompt that the tokenizer can only write as its unknown token, each once; byte-level tokenizers have none."""
        unknown = self.tokenizer.unk_token_id
        if unknown is None:
            return []
        return [word for word in dict.fromkeys(prompt.split()) if unknown in self._as_text(word)]

    def response_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each reply with its end-of-turn token; special tokens spelled in it are split."""
        plain = [text for text in dict.fromkeys(texts) if self._special is None or not self._special.search(text)]
        for text in plain:
            _refuse_surrogates(text)
        found = self.tokenizer(plain, add_special_tokens=False)["input_ids"] if plain else []  # a tokenizer fails on an empty list
        known = dict(zip(plain, found, strict=True))
        return [[*(known[text] if text in known else self._as_text(text)), self.end_of_turn_id] for text in texts]

    def end_ids(self, generation_config: Any) -> list[int]:
        """Ids that end a reply: the template's end of turn, the tokenizer's and the generation config's eos."""
        configured = getattr(generation_config, "eos_token_id", None)
        ids = [self.end_of_turn_id, self.tokenizer.eos_token_id, *(configured if isinstance(configured, (list, tuple)) else [configured])]
        # by their text: a damaged config may hold anything, and whoever loads it names what is no id
        return [i for _, i in sorted({str(i): i for i in ids if i is not None}.items())]

    def _as_text(self, text: str) -> list[int]:
        """Ids of a text in which nothing is a special token, whatever it spells."""
        _refuse_surrogates(text)
        spelled = set(self._special.findall(text)) if self._special else set()
        if not spelled:
            return self._encode(text)
        ids = self._encode(text, split_special_tokens=True)
        if not spelled & set(self.tokenizer.convert_ids_to_tokens(ids)):
            return ids
        # a word-level vocabulary holds the special token as a word: break the spelling itself
        return self._encode(re.sub("|".join(map(re.escape, spelled)), lambda m: f"{m[0][0]} {m[0][1:]}", text))


def _refuse_surrogates(text: str) -> None:
    """A lone surrogate is half a character: bytes that were no UTF-8 where the text came from. No tokenizer takes it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"{text[:80]!a} is not text: half a character at place {error.start + 1}; write it in UTF-8") from error
