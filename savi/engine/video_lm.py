"""A video language model that encodes a video once and answers any number of prompts on it, many videos at a time.

    lm = VideoLM.from_pretrained(path)                       # native classes only, no remote code
    video = lm.watch("clip.mp4", num_frames=32)              # decoded and encoded once: a `Watched`
    video.ask("What is left of the cup?").text               # one question, one `Reply`; a list of questions gives a list
    lm.ask([(video, prompt), (other, prompt)], GenerationSettings())     # rows of any videos in one batch, order kept

`watch` runs the vision tower and then the language model over system message and frames: a `Prefix` of keys and values, cut right
after the last visual token. `ask` and `score` continue it; the prefix is never computed again, also not for later stages (critique,
revision) on the same video. Greedy output equals one prompt at a time token for token in float32, and a sampled row depends on its
key and the seed only, not on its neighbours.

For training on the same inputs the pieces are public: `lm.features(frames)` (vision features, computed once, no gradient),
`lm.prefix_ids(features)`, `lm.family.positions(ids, features)` -> positions and `next_pos`, `lm.prompt_ids`, `lm.response_ids`, and
`lm.family.mm_encoder_outputs([features, ...])`, the keyword the stock `model.forward(..., mm_encoder_outputs=...)` takes in the place
of pixels; see `savi.families.base`. The module must not know benchmarks, losses or what is asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from savi.engine.chat import ChatFormat, Prompt
from savi.engine.decoder.either import Decoders
from savi.engine.model_folder import ModelError, hash_in_memory, load_native_model, load_tokenizer, read_preprocessing, write_folder
from savi.engine.reading import reading
from savi.engine.rope import LengthRope
from savi.engine.sampling import GenerationSettings, uniforms
from savi.engine.watched import ContextError, Reply, ResponseScore, Watched
from savi.families import Family, FamilyError, Preprocessing, VideoFeatures, family_for
from savi.families.base import pixels_and_timing
from savi.video.frames import Frames
from savi.video.read import read_frames

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from savi.engine.decoding import Branch, Generated
    from savi.engine.memory import Split
    from savi.engine.prefix import Prefix, PrefixCache

T = TypeVar("T")

__all__ = ["ContextError", "GenerationSettings", "ModelError", "Reply", "ResponseScore", "VideoLM", "Watched"]

_TOKENS_PER_FORWARD = 16_384
"""Prefix tokens of several short videos that go through the language model together."""


@dataclass
class VideoLM:
    """A model, its tokenizer and its family. Made by `from_pretrained`, or from parts that are in memory already.

    `splits` records every batch that ran out of memory and was cut in two. `store_dtype` is what `save_pretrained` writes
    (a checkpoint stored in float16 stays one); None writes the dtype in memory. `decoders` generate replies.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    name: str = "model"
    store_dtype: torch.dtype | None = None
    source: Path | None = None
    splits: list[Split] = field(default_factory=list)
    decoders: Decoders = field(default_factory=Decoders)

    def __post_init__(self) -> None:
        self.family: Family = family_for(self.model.config, self.tokenizer, self.preprocessing, where=self.name)
        self.chat = ChatFormat(self.tokenizer, self.family, where=self.name)
        self.text_config: Any = self.model.config.get_text_config()
        sliding = sorted(set(getattr(self.text_config, "layer_types", None) or []) - {"full_attention"})
        if sliding:
            raise FamilyError(f"{self.name}: layers of type {', '.join(sliding)} cannot share a prefix; full attention is needed")
        self.rope = LengthRope.of(self.text_config)
        self._fingerprint: str | None = None
        self.model.eval()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        attn_implementation: str | None = None,
        max_tiles: int = 1,
        input_size: int | None = None,
    ) -> VideoLM:
        """Load a checkpoint, a folder or a hub id, with transformers' native classes; every key must be there and none left over.

        One published with code of its own (`internvl_chat`: InternVL2.5, VideoSAVi) is converted first, once, into a cache.
        `device`: "auto" takes CUDA where there is one. `dtype`: "auto" is the checkpoint's own, but float32 for float16 weights on a
        CPU or of a small model. `max_tiles`, `input_size`: how frames are cut (`Preprocessing`; InternVL only).

        Raises:
            NoSuchModelError, HubError: no such folder; not in the hub's cache and cannot be fetched.
            ModelError, CheckpointError: a broken checkpoint, or one that cannot be converted.
            UnsupportedFamily: a model type without a family.
        """
        from savi.conversion.native import native_folder

        folder = native_folder(path)
        model, stored = load_native_model(folder, device=device, dtype=dtype, attn_implementation=attn_implementation)
        tokenizer = load_tokenizer(folder)
        preprocessing = replace(read_preprocessing(folder), max_tiles=max_tiles, input_size=input_size)
        store_dtype = stored if stored != model.dtype and dtype == "auto" else None
        with reading(folder, "tokenizer, chat template and config"):
            lm = cls(model, tokenizer, preprocessing, name=Path(str(path)).name, store_dtype=store_dtype, source=folder)
        vocabulary = int(lm.text_config.vocab_size)
        if odd := [i for i in lm.end_ids if not isinstance(i, int) or not 0 <= i < vocabulary]:
            raise ModelError(f"{folder}: a reply is said to end with token {odd[0]!r}, of {vocabulary}: see eos_token_id in its configs")
        if (highest := max(tokenizer.get_vocab().values(), default=0)) >= vocabulary:
            raise ModelError(
                f"{folder}: the tokenizer has token {highest}, but the model {vocabulary} embeddings; they do not belong together"
            )
        return lm

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def fingerprint(self) -> str:
        """Hash of weights, tokenizer and config as they were loaded (not of later changes in memory), and of how frames are cut."""
        if self._fingerprint is None:
            if self.source is not None:
                from savi.conversion.checkpoint import weights_fingerprint

                self._fingerprint = weights_fingerprint(self.source)
            else:
                self._fingerprint = hash_in_memory(self.model, self.tokenizer)
            if self.preprocessing.tiled:
                tiles = f"{self._fingerprint} {self.preprocessing.max_tiles} {self.preprocessing.input_size}"
                self._fingerprint = hashlib.sha256(tiles.encode()).hexdigest()
        return self._fingerprint

    # watching

    def features(self, video: Frames | np.ndarray) -> VideoFeatures:
        """Vision tower and projector over one video's frames, once, without gradient."""
        return self.features_many([video])[0]

    def features_many(self, videos: Sequence[Frames | np.ndarray]) -> list[VideoFeatures]:
        """The same for several videos of one shape, together."""
        with self._evaluating(), torch.no_grad():
            return self.family.encode(self.model, [self.family.prepare(*pixels_and_timing(video)) for video in videos])

    def prefix_ids(self, video: VideoFeatures | Frames | np.ndarray) -> Tensor:
        """Ids `[P]` of system message and frames, up to and with the last visual token (frames are encoded first)."""
        return self.chat.prefix_ids(video if isinstance(video, VideoFeatures) else self.features(video))

    def watch(self, video: str | Path | Frames | np.ndarray, *, num_frames: int | None = None) -> Watched:
        """Decode (a path needs `num_frames`) and encode a video once.

        Raises:
            VideoError: the file gives no frames.
            ContextError: the prefix alone is longer than the model's context.
        """
        if isinstance(video, (str, Path)):
            if num_frames is None:
                raise ValueError(f"{video}: num_frames says how many frames to read; it was not given")
            video = read_frames(video, num_frames=num_frames)
        return self.watch_batch([video])[0]

    def watch_batch(self, videos: Sequence[Frames | np.ndarray]) -> list[Watched]:
        """Encode several videos; those of one shape go through the model together. Same numbers as one by one."""
        result: list[Watched | None] = [None] * len(videos)
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, video in enumerate(videos):
            groups.setdefault((video.pixels if isinstance(video, Frames) else video).shape, []).append(i)
        for members in groups.values():
            start = 0
            while start < len(members):
                first = self.features_many([videos[members[start]]])
                ids = self.chat.prefix_ids(first[0])
                self._check_context(len(ids), 0, 1, first[0].frames)
                count = max(1, _TOKENS_PER_FORWARD // len(ids))
                chunk = members[start : start + count]
                features = first + (self.features_many([videos[i] for i in chunk[1:]]) if len(chunk) > 1 else [])
                for i, feature, prefix in zip(chunk, features, self._prefixes(features), strict=True):
                    video = videos[i]
                    result[i] = Watched(self, feature, prefix, video.path if isinstance(video, Frames) else "")
                start += len(chunk)
        return [watched for watched in result if watched is not None]

    def _prefixes(self, features: Sequence[VideoFeatures]) -> list[Prefix]:
        """The language model over the prefixes; those written with the same ids in one forward."""
        from savi.engine.prefix import read_prefixes

        groups: dict[tuple[Any, ...], list[int]] = {}
        ids = [self.chat.prefix_ids(feature) for feature in features]
        for i, feature in enumerate(features):
            key = (tuple(self.family.pieces(feature)), feature.grid, self.family.clock(feature))
            groups.setdefault(key, []).append(i)
        prefixes: dict[int, Prefix] = {}
        for members in groups.values():
            tokens = ids[members[0]].to(self.device)
            positions, next_pos = self.family.positions(tokens, features[members[0]])
            stacked = tokens.expand(len(members), -1)
            with self._evaluating():
                cache = self._fill(stacked, positions, [features[i] for i in members])
            prefixes.update(zip(members, read_prefixes(cache, stacked, next_pos), strict=True))
        return [prefixes[i] for i in range(len(features))]

    def _fill(self, tokens: Tensor, positions: Tensor, features: Sequence[VideoFeatures]) -> PrefixCache:
        """The language model's keys and values over `tokens [B, L]` at `positions [L]` (or `[3, L]`), one video a row."""
        from savi.engine.branch_attention import attention_as
        from savi.engine.causal import reading_implementation
        from savi.engine.prefix import PrefixCache, cache_keyword, complete_prefix

        cache, config = PrefixCache(self.text_config), self.family.text_model(self.model).config
        forward = partial(
            self.model,
            input_ids=tokens,
            position_ids=positions.unsqueeze(-2).expand(*positions.shape[:-1], len(tokens), -1),
            mm_encoder_outputs=self.family.mm_encoder_outputs(features),
            use_cache=True,
            logits_to_keep=1,
            **{cache_keyword(self.model): cache},
        )
        with torch.no_grad(), attention_as(config, reading_implementation(self.model, self.text_config)):
            complete_prefix(forward)
        return cache

    # asking

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Ids of the rest of the user's turn after the prefix, with the header of the reply."""
        return self.chat.prompt_ids([prompt])[0]

    @contextmanager
    def system_message(self, text: str | None) -> Iterator[None]:
        """Whatever is encoded in the block stands under this system message instead of the model's own; None: its own.

        Raises:
            FamilyError: the chat template takes no such system message.
        """
        own = self.chat
        try:
            if text is not None:
                self.chat = ChatFormat(self.tokenizer, self.family, where=self.name, system=text)
            yield
        finally:
            self.chat = own

    def response_ids(self, text: str) -> list[int]:
        """Ids of a reply with its end-of-turn token."""
        return self.chat.response_ids([text])[0]

    @property
    def end_ids(self) -> list[int]:
        """Ids that end a reply (`ChatFormat.end_ids`)."""
        return self.chat.end_ids(self.model.generation_config)

    def ask(
        self, items: Sequence[tuple[Watched, Prompt]], settings: GenerationSettings, *, keys: Sequence[str] | None = None
    ) -> list[Reply]:
        """Reply to prompts on any videos, in as few batches as memory allows; order kept.

        A prompt is a question, or a conversation: question, reply, question, ..., of which the last question is answered.
        `keys` name the rows' random streams (default: their number in `items`): the same key and seed give the same draws whatever
        else is asked.

        Raises:
            ContextError: prefix, prompt and new tokens exceed the model's context.
            EngineMemoryError: one row alone does not fit.
        """
        from savi.engine.decoding import Branch

        if keys is not None and len(keys) != len(items):
            raise ValueError(f"{len(items)} items but {len(keys)} keys")
        self._check_ours([watched for watched, _ in items])
        prompts = self.chat.prompt_ids([prompt for _, prompt in items])
        draws: Sequence[Tensor | None] = [None] * len(items)
        if settings.temperature > 0:
            draws = list(uniforms(settings.seed, [str(i) for i in range(len(items))] if keys is None else keys, settings.max_new_tokens))
        rows = []
        for (watched, _), ids, draw in zip(items, prompts, draws, strict=True):
            self._check_context(watched.prefix.next_pos, len(ids), settings.max_new_tokens, watched.frames)
            rows.append(Branch(watched.prefix, ids, draw))

        def work(part: Sequence[Branch]) -> list[Generated]:
            return self.decoders.generate(self, part, settings, self.end_ids)

        with self._evaluating():
            generated = self._run([watched for watched, _ in items], rows, settings.max_new_tokens, settings.max_batch, work)
        texts = self.tokenizer.batch_decode([g.ids for g in generated], skip_special_tokens=True) if generated else []
        return [Reply(text.strip(), len(g.ids), g.finished) for text, g in zip(texts, generated, strict=True)]

    def score(self, items: Sequence[tuple[Watched, str, str]], *, max_batch: int | None = None) -> list[ResponseScore]:
        """Log-probability of each response (with its end of turn) given its video and prompt; order kept.

        Raises:
            ContextError: prefix, prompt and response exceed the model's context.
        """
        from savi.engine.decoding import Branch, score

        self._check_ours([watched for watched, _, _ in items])
        rows = []
        prompts = self.chat.prompt_ids([prompt for _, prompt, _ in items])
        replies = self.chat.response_ids([response for _, _, response in items])
        for (watched, *_), prompt, reply in zip(items, prompts, replies, strict=True):
            self._check_context(watched.prefix.next_pos, len(prompt) + len(reply), 0, watched.frames)
            rows.append(Branch(watched.prefix, prompt + reply, reply=len(reply)))

        def work(part: Sequence[Branch]) -> list[float]:
            return score(self.family, self.model, part, [row.reply for row in part])

        with self._evaluating():
            sums = self._run([watched for watched, _, _ in items], rows, 0, max_batch, work)
        return [ResponseScore(total, row.reply) for total, row in zip(sums, rows, strict=True)]

    def _run(
        self,
        videos: Sequence[Watched],
        rows: Sequence[Branch],
        new_tokens: int,
        max_batch: int | None,
        work: Callable[[Sequence[Branch]], list[T]],
    ) -> list[T]:
        """`work` over all rows in batches; a row whose length changes the angles of its video's keys is computed whole and alone."""
        if self.rope is None:
            return self._in_batches(rows, new_tokens, max_batch, work)
        result: dict[int, T] = {}
        together: dict[bool, list[int]] = {}
        for i, row in enumerate(rows):
            prefix = row.prefix.next_pos
            if self.rope.shares(prefix, prefix + len(row.ids) + new_tokens):
                together.setdefault(prefix > self.rope.limit, []).append(i)
            else:
                self.rope.begin(self.family.text_model(self.model))
                alone = self._read_whole(videos[i].features, row)
                result[i] = self._in_batches([alone], new_tokens, max_batch, work)[0]
        for members in together.values():
            self.rope.begin(self.family.text_model(self.model))
            result |= zip(members, self._in_batches([rows[i] for i in members], new_tokens, max_batch, work), strict=True)
        return [result[i] for i in range(len(rows))]

    def _read_whole(self, features: VideoFeatures, row: Branch) -> Branch:
        """The same text with a prefix that was read as a part of it: only the last token of the prompt, and a reply, are left to read."""
        from savi.engine.prefix import Prefix, read_prefixes

        device, first = self.device, row.prefix.ids.to(self.device)
        positions, next_pos = self.family.positions(first, features)
        positions = torch.cat([positions, self.family.branch_positions(next_pos, len(row.ids), device)], -1)
        tokens = torch.cat([first, torch.tensor(row.ids, device=device)])[None]
        whole = read_prefixes(self._fill(tokens, positions, [features]), tokens, next_pos + len(row.ids))[0]
        left = row.reply + 1
        cut = whole.length - left
        kv = [(keys[:, :, :cut], values[:, :, :cut]) for keys, values in whole.kv]
        return replace(row, prefix=Prefix(whole.ids[:cut], kv, cut, whole.next_pos - left), ids=row.ids[-left:])

    def _in_batches(
        self, rows: Sequence[Branch], new_tokens: int, max_batch: int | None, work: Callable[[Sequence[Branch]], list[T]]
    ) -> list[T]:
        """Run `work` over batches that fit, results in the order of `rows`; a batch that does not fit is halved and recorded."""
        from savi.engine.batches import in_batches

        stacks = new_tokens > 0 and self.decoders.stacks(self)
        return in_batches(self, rows, new_tokens, max_batch, work, stacks=stacks, held_bytes=self.decoders.held_bytes)

    def _check_ours(self, watched: Sequence[Watched]) -> None:
        for video in watched:
            if video.lm is not self:
                raise ValueError(f"{video.name or 'a video'} was watched by {video.lm.name}, not by {self.name}: watch it again")

    def _check_context(self, prefix: int, prompt: int, new_tokens: int, frames: int) -> None:
        limit = int(self.text_config.max_position_embeddings)
        total = prefix + prompt + new_tokens
        if total > limit and not (self.rope and self.rope.endless):
            tiles = ", cut them into fewer tiles (max_tiles)" if self.preprocessing.max_tiles > 1 else ""
            raise ContextError(
                f"prefix {prefix} + prompt {prompt} + {new_tokens} new tokens = {total}, but {self.name} has a context of {limit}; "
                f"show fewer than {frames} frames (num_frames){tiles} or lower max_new_tokens"
            )

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode for the time of a call: a trainer may own the model."""
        training = self.model.training
        if training:
            self.model.eval()
        if self.rope is not None:
            self.rope.begin(self.family.text_model(self.model))
        try:
            yield
        finally:
            if training:
                self.model.train()

    # saving

    def save_pretrained(self, path: str | Path, *, state: Mapping[str, Tensor] | None = None) -> None:
        """Write a plain checkpoint that `from_pretrained` (and transformers) loads: weights, tokenizer, preprocessor settings.

        `state`: the whole weights, where the model in memory holds only its shards of them.
        """
        write_folder(
            Path(path), self.model, self.tokenizer, self.preprocessing, store_dtype=self.store_dtype, state=state, source=self.source
        )
