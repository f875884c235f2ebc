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

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor

from savi.base.errors import ExitCode, SaviError
from savi.engine.chat import ChatFormat
from savi.engine.model_folder import ModelError, hash_in_memory, load_native_model, load_tokenizer, read_preprocessing, write_folder
from savi.engine.sampling import GenerationSettings, uniforms
from savi.families import Family, FamilyError, Preprocessing, Timing, VideoFeatures, family_for
from savi.video.frames import Frames
from savi.video.read import read_frames

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from savi.engine.memory import Split
    from savi.engine.prefix import Prefix

__all__ = ["ContextError", "GenerationSettings", "ModelError", "Reply", "ResponseScore", "VideoLM", "Watched"]

_TOKENS_PER_FORWARD = 16_384
"""Prefix tokens of several short videos that go through the language model together."""


class ContextError(SaviError, ValueError):
    """A prefix and prompt longer than the model's context: names both numbers and what to lower."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True)
class Reply:
    """`text` without special tokens; `tokens` generated (end-of-turn included); `finished`: end-of-turn was seen."""

    text: str
    tokens: int
    finished: bool


@dataclass(frozen=True)
class ResponseScore:
    """`logp`: sum of the log-probabilities of a reply's `tokens` ids, end-of-turn included."""

    logp: float
    tokens: int


@dataclass
class Watched:
    """One video, encoded: its features (for training), its prefix (for asking), the model it belongs to."""

    lm: VideoLM
    features: VideoFeatures
    prefix: Prefix
    name: str = ""

    @property
    def frames(self) -> int:
        """Frames shown to the model."""
        return self.features.frames

    @overload
    def ask(  # type: ignore[overload-overlap]  # a string is a sequence of strings too: the first one that fits counts
        self,
        questions: str,
        *,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_p: float = ...,
        seed: int = ...,
        max_batch: int | None = ...,
        keys: Sequence[str] | None = ...,
    ) -> Reply: ...
    @overload
    def ask(
        self,
        questions: Sequence[str],
        *,
        max_new_tokens: int = ...,
        temperature: float = ...,
        top_p: float = ...,
        seed: int = ...,
        max_batch: int | None = ...,
        keys: Sequence[str] | None = ...,
    ) -> list[Reply]: ...
    def ask(
        self,
        questions: str | Sequence[str],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        max_batch: int | None = None,
        keys: Sequence[str] | None = None,
    ) -> Reply | list[Reply]:
        """Answer one question (a string: one reply) or several in one batch (a list: their replies, order kept).

        Keywords as in `GenerationSettings`; `keys`, one a question, as in `VideoLM.ask`.
        """
        settings = GenerationSettings(max_new_tokens, temperature, top_p, seed, max_batch)
        asked = [questions] if isinstance(questions, str) else questions
        replies = self.lm.ask([(self, question) for question in asked], settings, keys=keys)
        return replies[0] if isinstance(questions, str) else replies

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[ResponseScore]:
        """Log-probability of each (prompt, response)."""
        return self.lm.score([(self, prompt, response) for prompt, response in pairs])


@dataclass
class VideoLM:
    """A model, its tokenizer and its family. Made by `from_pretrained`, or from parts that are in memory already.

    `splits` records every batch that ran out of memory and was cut in two. `store_dtype` is what `save_pretrained` writes
    (a checkpoint stored in float16 stays one); None writes the dtype in memory.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    name: str = "model"
    store_dtype: torch.dtype | None = None
    source: Path | None = None
    splits: list[Split] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.family: Family = family_for(self.model.config, self.tokenizer, self.preprocessing, where=self.name)
        self.chat = ChatFormat(self.tokenizer, self.family, where=self.name)
        self.text_config: Any = self.model.config.get_text_config()
        sliding = sorted(set(getattr(self.text_config, "layer_types", None) or []) - {"full_attention"})
        if sliding:
            raise FamilyError(f"{self.name}: layers of type {', '.join(sliding)} cannot share a prefix; full attention is needed")
        self._fingerprint: str | None = None
        self.model.eval()

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, device: str = "auto", dtype: str = "auto", attn_implementation: str | None = None
    ) -> VideoLM:
        """Load a checkpoint, a folder or a hub id, with transformers' native classes; every key must be there and none left over.

        One published with code of its own (`internvl_chat`: InternVL2.5, VideoSAVi) is converted first, once, into a cache.

        `device`: "auto" takes CUDA where there is one. `dtype`: "auto" is the checkpoint's own, but float32 for float16 weights on a
        CPU or of a small model.

        Raises:
            NoSuchModelError, HubError: no such folder; not in the hub's cache and not to be had.
            ModelError, CheckpointError: a broken checkpoint, or one that cannot be converted.
            UnsupportedFamily: a model type without a family.
        """
        from savi.conversion.native import native_folder

        folder = native_folder(path)
        name = str(folder)
        model, stored = load_native_model(folder, device=device, dtype=dtype, attn_implementation=attn_implementation)
        return cls(
            model=model,
            tokenizer=load_tokenizer(name),
            preprocessing=read_preprocessing(name),
            name=Path(str(path)).name,
            store_dtype=stored if stored != model.dtype and dtype == "auto" else None,
            source=folder,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def fingerprint(self) -> str:
        """Hash of weights, tokenizer and config as they were loaded (not of later changes in memory)."""
        if self._fingerprint is None:
            if self.source is not None:
                from savi.conversion.checkpoint import weights_fingerprint

                self._fingerprint = weights_fingerprint(self.source)
            else:
                self._fingerprint = hash_in_memory(self.model, self.tokenizer)
        return self._fingerprint

    # watching

    def features(self, video: Frames | np.ndarray) -> VideoFeatures:
        """Vision tower and projector over one video's frames, once, without gradient."""
        return self.features_many([video])[0]

    def features_many(self, videos: Sequence[Frames | np.ndarray]) -> list[VideoFeatures]:
        """The same for several videos of one shape, together."""
        with self._evaluating(), torch.no_grad():
            return self.family.encode(self.model, [self.family.prepare(*_pixels_and_timing(video)) for video in videos])

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
        from savi.engine.prefix import PrefixCache, cache_keyword, complete_prefix, read_prefixes

        groups: dict[tuple[Any, ...], list[int]] = {}
        ids = [self.chat.prefix_ids(feature) for feature in features]
        for i, feature in enumerate(features):
            key = (tuple(self.family.pieces(feature)), feature.grid, self.family.clock(feature))
            groups.setdefault(key, []).append(i)
        prefixes: dict[int, Prefix] = {}
        for members in groups.values():
            tokens = ids[members[0]].to(self.device)
            positions, next_pos = self.family.positions(tokens, features[members[0]])
            cache = PrefixCache(self.text_config)
            stacked = tokens.expand(len(members), -1)
            forward = partial(
                self.model,
                input_ids=stacked,
                position_ids=positions.unsqueeze(-2).expand(*positions.shape[:-1], len(members), -1),
                mm_encoder_outputs=self.family.mm_encoder_outputs([features[i] for i in members]),
                use_cache=True,
                logits_to_keep=1,
                **{cache_keyword(self.model): cache},
            )
            with self._evaluating(), torch.no_grad():
                complete_prefix(forward)
            prefixes.update(zip(members, read_prefixes(cache, stacked, next_pos), strict=True))
        return [prefixes[i] for i in range(len(features))]

    # asking

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids of the rest of the user's turn after the prefix, with the header of the reply."""
        return self.chat.prompt_ids([prompt])[0]

    def response_ids(self, text: str) -> list[int]:
        """Ids of a reply with its end-of-turn token."""
        return self.chat.response_ids(text)

    @property
    def end_ids(self) -> list[int]:
        """Ids that end a reply: the template's end of turn, the tokenizer's and the generation config's eos."""
        ids = {self.chat.end_of_turn_id, self.tokenizer.eos_token_id}
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        ids |= set(configured) if isinstance(configured, (list, tuple)) else {configured}
        return sorted(i for i in ids if i is not None)

    def ask(self, items: Sequence[tuple[Watched, str]], settings: GenerationSettings, *, keys: Sequence[str] | None = None) -> list[Reply]:
        """Reply to prompts on any videos, in as few batches as memory allows; order kept.

        `keys` name the rows' random streams (default: their number in `items`): the same key and seed give the same draws whatever
        else is asked.

        Raises:
            ContextError: prefix, prompt and new tokens exceed the model's context.
            EngineMemoryError: one row alone does not fit.
        """
        from savi.engine.decoding import Branch, Generated, generate

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
            return generate(self.family, self.model, part, settings, self.end_ids)

        with self._evaluating():
            generated = self._in_batches(rows, settings.max_new_tokens, settings.max_batch, work)
        texts = self.tokenizer.batch_decode([g.ids for g in generated], skip_special_tokens=True) if generated else []
        return [Reply(text.strip(), len(g.ids), g.finished) for text, g in zip(texts, generated, strict=True)]

    def score(self, items: Sequence[tuple[Watched, str, str]], *, max_batch: int | None = None) -> list[ResponseScore]:
        """Log-probability of each response (with its end of turn) given its video and prompt; order kept.

        Raises:
            ContextError: prefix, prompt and response exceed the model's context.
        """
        from savi.engine.decoding import Branch, score

        self._check_ours([watched for watched, _, _ in items])
        rows, lengths = [], []
        for (watched, _, response), prompt in zip(items, self.chat.prompt_ids([prompt for _, prompt, _ in items]), strict=True):
            reply = self.chat.response_ids(response)
            self._check_context(watched.prefix.next_pos, len(prompt) + len(reply), 0, watched.frames)
            rows.append((Branch(watched.prefix, prompt + reply), len(reply)))
            lengths.append(len(reply))
        with self._evaluating():
            sums = self._in_batches(
                rows, 0, max_batch, lambda part: score(self.family, self.model, [row for row, _ in part], [n for _, n in part])
            )
        return [ResponseScore(total, length) for total, length in zip(sums, lengths, strict=True)]

    def _in_batches(self, rows: Sequence[Any], new_tokens: int, max_batch: int | None, work: Any) -> list[Any]:
        """Run `work` over batches that fit, results in the order of `rows`; a batch that does not fit is halved and recorded."""
        from savi.engine import memory
        from savi.engine.decoding import Branch, shares

        plain: list[Branch] = [row if isinstance(row, Branch) else row[0] for row in rows]
        dtype = next(self.model.parameters()).dtype

        shared = bool(plain) and shares([row.prefix for row in plain])
        numbers: dict[int, int] = {}
        videos = [numbers.setdefault(id(row.prefix), len(numbers)) for row in plain] if shared else None

        def cost(prefix_length: int, prompt_length: int) -> int:
            return memory.row_bytes(self.text_config, dtype, 0 if shared else prefix_length, prompt_length, new_tokens)

        def on_split(part: Sequence[Any], reason: BaseException) -> None:
            longest = max((row if isinstance(row, Branch) else row[0]).prefix.length for row in part)
            self.splits.append(memory.Split(len(part), longest, str(reason).splitlines()[0] if str(reason) else type(reason).__name__))

        sizes = [(row.prefix.length, len(row.ids)) for row in plain]
        result: list[Any] = [None] * len(rows)
        for indices in memory.plan(sizes, cost, memory.budget_bytes(self.device), max_batch, videos):
            for i, value in zip(indices, memory.run_halving(work, [rows[i] for i in indices], on_split), strict=True):
                result[i] = value
        return result

    def _check_ours(self, watched: Sequence[Watched]) -> None:
        for video in watched:
            if video.lm is not self:
                raise ValueError(f"{video.name or 'a video'} was watched by {video.lm.name}, not by {self.name}: watch it again")

    def _check_context(self, prefix: int, prompt: int, new_tokens: int, frames: int) -> None:
        limit = int(self.text_config.max_position_embeddings)
        total = prefix + prompt + new_tokens
        if total > limit:
            raise ContextError(
                f"prefix {prefix} + prompt {prompt} + {new_tokens} new tokens = {total}, but {self.name} has a context of {limit}; "
                f"show fewer than {frames} frames (num_frames) or lower max_new_tokens"
            )

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode for the time of a call: a trainer may own the model."""
        training = self.model.training
        if training:
            self.model.eval()
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
        write_folder(Path(path), self.model, self.tokenizer, self.preprocessing, store_dtype=self.store_dtype, state=state)


def _pixels_and_timing(video: Frames | np.ndarray) -> tuple[np.ndarray, Timing]:
    if isinstance(video, Frames):
        seconds = tuple(index / video.fps if video.fps else 0.0 for index in video.indices)
        return video.pixels, Timing(seconds, video.duration_s)
    if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != np.uint8 or len(video) == 0:
        raise ValueError(f"frames must be uint8 [T, H, W, 3] with T at least 1, not {video.dtype} {list(video.shape)}")
    return video, Timing.every(len(video))
