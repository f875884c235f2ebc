"""The model that lmms-eval asks: a `savi.VideoLM` with lmms-eval's interface of a simple model.

All requests of a call arrive together. They are grouped by video; a video is decoded and encoded once, whatever the number of questions on
it, and questions of many videos are asked in one batch. Each batch is journalled before the next is asked. The only module of the harness
that knows savi.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from savi.base.torchvision import fix_torchvision

fix_torchvision()  # before lmms-eval imports transformers

from lmms_eval.api.model import lmms  # noqa: E402

from benchmarks.catalog import of_task  # noqa: E402
from benchmarks.data.layout import MediaIndex  # noqa: E402
from harness.run.journal import Answer, Journal, answer_key  # noqa: E402
from harness.run.made_from import PAPER_MAX_NEW_TOKENS, made_by  # noqa: E402
from harness.run.processes import PartDone  # noqa: E402
from harness.run.requests import BIG_ROWS, SMALL_ROWS, Chunk, Group, Row, chunked, deal  # noqa: E402
from harness.scoring import Asked, describe, question_id  # noqa: E402
from savi.base.errors import UsageError  # noqa: E402
from savi.base.processes import Processes  # noqa: E402
from savi.base.shipped import SHIPPED, named_folder  # noqa: E402
from savi.base.watch import working_on  # noqa: E402
from savi.engine.sampling import GenerationSettings  # noqa: E402
from savi.video.frames import DECODERS, Decoder, Frames, VideoError, segment_indices  # noqa: E402
from savi.video.prefetch import FramePrefetcher, decoders  # noqa: E402

if TYPE_CHECKING:
    from savi.engine.video_lm import VideoLM, Watched

SAMPLING_RULE = "middle of equal segments"
DEFAULT_FRAMES = 32
_SMALL_PARAMETERS = 100_000_000

Progress = Callable[[int, int], None]


def generation_settings(kwargs: Mapping[str, Any], *, max_new_tokens: int, seed: int) -> GenerationSettings:
    """A task's generation_kwargs as settings; `until` is left out, as by lmms-eval's internvl2 adapter (end-of-turn ends a reply).

    Raises:
        ValueError: the task asks for beam search, which is not made here.
    """
    if int(kwargs.get("num_beams") or 1) != 1:
        raise ValueError(f"num_beams={kwargs['num_beams']}: only 1 is supported; set it with --gen_kwargs num_beams=1")
    sampled = bool(kwargs.get("do_sample", False)) and float(kwargs.get("temperature") or 0) > 0
    return GenerationSettings(
        max_new_tokens=int(kwargs.get("max_new_tokens") or max_new_tokens),
        temperature=float(kwargs["temperature"]) if sampled else 0.0,
        top_p=float(kwargs.get("top_p") or 1.0) if sampled else 1.0,
        seed=seed,
    )


def settings_record(settings: GenerationSettings) -> dict[str, str | int | float | bool | None]:
    """Generation settings for journal keys and provenance; how rows are batched is no part of them, since answers do not depend on it."""
    return {k: v for k, v in asdict(settings).items() if k != "max_batch"}


def weights_of(model: str | Path | VideoLM) -> str:
    """Fingerprint of a checkpoint (a folder is hashed without loading it) or of a model in memory.

    Raises:
        UsageError: there is no such folder.
        CheckpointError: there is no checkpoint in it.
    """
    if isinstance(model, (str, Path)):
        from savi.conversion.checkpoint import weights_fingerprint

        folder = named_folder(model)
        if not folder.is_dir():
            raise UsageError(f"{model}: no such folder, and no model that comes with the project ({', '.join(SHIPPED)})")
        return weights_fingerprint(folder)
    return model.fingerprint


def load_model(path: str | Path, *, device: str = "auto", dtype: str = "auto", attn_implementation: str | None = None) -> VideoLM:
    """`VideoLM.from_pretrained`."""
    from savi.engine.video_lm import VideoLM

    return VideoLM.from_pretrained(path, device=device, dtype=dtype, attn_implementation=attn_implementation)


class SaviLmms(lmms):
    """lmms-eval model `savi`.

    Arguments (`--model_args pretrained=PATH,num_frames=8,...`): `pretrained` a checkpoint; `num_frames` shown of each video; `rows`
    questions asked in one batch (default: by the model's size); `max_new_tokens` where the task sets none; `decoder` pyav, decord or
    torchcodec; `journal` a folder for the journal; `dtype`, `attn_implementation`, `seed`. `lm` hands over a model in memory instead of
    `pretrained`, `media` the digests of videos, `processes` those that share the work; `retry_failed`: ask questions again whose
    failure is in the journal.
    `num_frame` and `modality=video`, as lmms-eval's internvl2 calls them, are taken too.
    lmms-eval's `batch_size` and `max_batch_size` are accepted and mean nothing here: batches are made of videos.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "",
        *,
        num_frames: int | None = None,
        num_frame: int | None = None,
        modality: str = "video",
        rows: int | None = None,
        max_new_tokens: int = PAPER_MAX_NEW_TOKENS,
        decoder: Decoder = "pyav",
        device: str | None = None,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        journal: str = "",
        seed: int = 0,
        lm: VideoLM | None = None,
        media: MediaIndex | None = None,
        processes: Processes | None = None,
        retry_failed: bool = False,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if lm is None and not pretrained:
            raise ValueError("savi: name a checkpoint with --model_args pretrained=PATH")
        frames = {int(number) for number in (num_frames, num_frame) if number is not None} or {DEFAULT_FRAMES}
        if len(frames) > 1 or min(frames) < 1:
            raise ValueError(f"savi: num_frames is {' and '.join(map(str, sorted(frames)))}; it must be one number, at least 1")
        if modality != "video":
            raise ValueError(f"savi: modality is {modality!r}; savi answers about videos only (modality=video)")
        if decoder not in DECODERS:
            raise ValueError(f"savi: unknown decoder {decoder!r}; use one of {', '.join(DECODERS)}")
        self._join_processes()
        self.lm = (
            lm
            if lm is not None
            else load_model(pretrained, device=self._device_name(device), dtype=dtype, attn_implementation=attn_implementation)
        )
        self.device = self.lm.device
        (self.num_frames,) = frames
        self.max_new_tokens = int(max_new_tokens)
        self.decoder: Decoder = decoder
        self.seed = int(seed)
        small = sum(p.numel() for p in self.lm.model.parameters()) < _SMALL_PARAMETERS
        self.rows = int(rows) if rows else SMALL_ROWS if small else BIG_ROWS
        self.journal = Journal(Path(journal), rank=self._rank, made_by=made_by(), tell=warnings.warn) if journal else None
        self.media = media if media is not None else MediaIndex(Path(os.environ.get("HF_HOME") or "."))
        self.progress: Progress | None = None
        self.processes = processes or Processes()
        self.retry_failed = retry_failed
        self.answers: dict[tuple[str, int], Answer] = {}
        """By task and document."""
        self.asked: dict[tuple[str, int], Asked] = {}
        """The same questions in common form."""
        self.generation: dict[str, dict[str, str | int | float | bool | None]] = {}
        """Settings used, by task."""

    def _join_processes(self) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import Accelerator

            self.accelerator = Accelerator()  # starts the process group; lmms-eval gathers through it
            self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes

    def _device_name(self, device: str | None) -> str:
        if self._world_size > 1:
            return str(self.accelerator.device)
        return device or "auto"

    @contextmanager
    def session(self, journal: Journal, progress: Progress | None = None) -> Iterator[None]:
        """One evaluation: what is asked inside goes into `journal`, which is closed at the end; `answers` and `asked` begin empty."""
        self.answers.clear()
        self.asked.clear()
        self.journal, self.progress = journal, progress
        try:
            yield
        finally:
            journal.close()
            self.journal = self.progress = None

    @property
    def frame_settings(self) -> dict[str, str | int | float | bool | None]:
        """What decides which frames are seen."""
        return {"num_frames": self.num_frames, "sampling": SAMPLING_RULE, "decoder": self.decoder}

    def clean(self) -> None:
        """Keep the model: lmms-eval's own version deletes it after the first evaluation."""

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Not offered: none of the six tasks asks for it."""
        raise NotImplementedError("savi answers by generating; choose a task of type generate_until (not a *_mcppl one)")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Not offered: none of the six tasks has several rounds."""
        raise NotImplementedError("savi answers one question at a time; choose a task of type generate_until")

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Answer all requests, in their order; a padding document of a multi-process run gets an empty answer without being asked.

        Raises:
            PartDone: this is one of several processes, not the first, and has handed in its answers.
        """
        rows = [self._row(i, r) for i, r in enumerate(requests) if not (r.metadata or {}).get("__padding_only__")]
        chunks = chunked([r for r in rows if r.answer is None], self.rows, self.processes.count)
        hands = self.processes.by_first(lambda: deal(chunks, self.processes.count))
        self._answer_all([chunks[number] for number in hands[self.processes.rank]])
        handed = self.processes.to_first(({r.index: r.answer for r in rows if r.answer is not None}, self.media.known))
        if handed is None:
            raise PartDone
        answers: dict[int, Answer] = {}
        for theirs, digests in handed:
            answers |= theirs
            self.media.learn(digests)
        self.media.save()
        out = [""] * len(requests)
        for row in rows:
            answer = answers[row.index]
            self.answers[row.task, row.doc_id] = answer
            out[row.index] = answer.text
        return out

    def _answer_all(self, chunks: Sequence[Chunk]) -> None:
        chunks = [[group for group in chunk if self._seal(group)] for chunk in chunks]
        # A chunk is asked as a whole or not at all, so that a resumed run makes the same batches as an uninterrupted one.
        pending = [c for c in chunks if not self._recall(c)]
        total = sum(len(g.rows) for c in chunks for g in c)
        done = total - sum(len(g.rows) for c in pending for g in c)
        self._report(done, total)
        files = [Path(g.video) for c in pending for g in c if g.rows[0].pictures is None]
        workers = 1 if self.rows > BIG_ROWS else max(2, decoders())
        with FramePrefetcher(files, num_frames=self.num_frames, depth=8, workers=workers, decoder=self.decoder) as frames:
            for chunk in pending:
                self._answer(chunk, frames)
                done += sum(len(g.rows) for g in chunk)
                self._report(done, total)

    def _report(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done, total)

    def _row(self, index: int, request: Any) -> Row:
        prompt, kwargs, doc_to_visual, doc_id, task, split = request.args
        settings = generation_settings(dict(kwargs), max_new_tokens=self.max_new_tokens, seed=self.seed)
        self.generation[task] = settings_record(settings)
        doc = self.task_dict[task][split][doc_id]
        b = of_task(task)
        row = Row(index, task, int(doc_id), prompt, settings, f"{task}/{doc_id}", None, f"{task}/{doc_id}")
        if b is not None:
            asked = self.asked[task, row.doc_id] = describe(b, task, doc)
            row.question = question_id(task, asked)
        try:
            visuals = doc_to_visual(doc)
        except (SystemExit, FileNotFoundError) as e:  # three tasks leave the process where a video is missing
            row.fail(f"missing: {e}")
            return row
        if len(visuals) == 1 and isinstance(visuals[0], str):
            row.video = str(Path(visuals[0]).absolute())
            if not Path(row.video).exists():
                row.fail(f"missing: {row.video} is not there")
        elif visuals and all(hasattr(v, "convert") for v in visuals):
            row.pictures = list(visuals)
        else:
            row.fail(f"no video: the task hands over {[type(v).__name__ for v in visuals][:3]}; one path or a list of pictures is needed")
        return row

    def _seal(self, group: Group) -> bool:
        """Give a video's rows their journal keys; False where the video cannot be read."""
        if self.journal is None:
            return True
        try:
            media = "pictures" if group.rows[0].pictures is not None else self.media.digest(Path(group.video))
        except OSError as e:
            _fail(group.rows, f"unreadable: {e}")
            return False
        for row in group.rows:
            row.key = answer_key(
                weights=self.lm.fingerprint,
                question=row.question,
                media=media,
                prompt=row.prompt,
                generation=settings_record(row.settings),
                frames=self.frame_settings,
            )
        return True

    def _recall(self, chunk: Chunk) -> bool:
        """Take a chunk's answers from the journal; False where one is missing."""
        if self.journal is None:
            return False
        found = [(row, self.journal.get(row.key)) for g in chunk for row in g.rows]
        if any(answer is None or (answer.error and self.retry_failed) for _, answer in found):
            return False
        for row, answer in found:
            row.answer = answer
        return True

    def _answer(self, chunk: Chunk, frames: Iterator[tuple[Path, Frames | VideoError]]) -> None:
        """Ask a chunk's questions in one batch for each kind of settings, and journal the answers."""
        seen: list[tuple[Group, Frames | np.ndarray]] = []
        for group in chunk:
            pictures = group.rows[0].pictures
            working_on(f"video {group.video} (evaluate)")
            got = next(frames)[1] if pictures is None else _stack(pictures, self.num_frames)
            if isinstance(got, (VideoError, str)):
                _fail(group.rows, f"{got.kind}: {got}" if isinstance(got, VideoError) else got)
            else:
                group.decoder = got.decoder if isinstance(got, Frames) else ""
                seen.append((group, got))
        by_settings: dict[GenerationSettings, list[tuple[Row, Watched, str]]] = {}
        for group, watched in self._watch(seen):
            for row in group.rows:
                by_settings.setdefault(row.settings, []).append((row, watched, group.decoder))
        for settings, items in by_settings.items():
            self._ask(items, replace(settings, max_batch=self.rows))
        if self.journal is not None:
            answers = [row.answer for group in chunk for row in group.rows]
            self.journal.add([a for a in answers if a is not None])

    def _watch(self, seen: Sequence[tuple[Group, Frames | np.ndarray]]) -> list[tuple[Group, Watched]]:
        from savi.engine.video_lm import ContextError

        if not seen:
            return []
        try:
            return list(zip([g for g, _ in seen], self.lm.watch_batch([f for _, f in seen]), strict=True))
        except ContextError as e:
            if len(seen) == 1:
                _fail(seen[0][0].rows, f"too long: {e}")
                return []
            return [x for one in seen for x in self._watch([one])]

    def _ask(self, items: Sequence[tuple[Row, Watched, str]], settings: GenerationSettings) -> None:
        from savi.engine.video_lm import ContextError

        try:
            replies = self.lm.ask([(w, row.prompt) for row, w, _ in items], settings, keys=[row.question for row, _, _ in items])
        except ContextError as e:
            if len(items) == 1:
                items[0][0].fail(f"too long: {e}")
            else:
                for item in items:
                    self._ask([item], settings)
            return
        for (row, w, decoder), reply in zip(items, replies, strict=True):
            row.answer = Answer(row.key, reply.text, reply.tokens, reply.finished, w.frames, decoder)


def _fail(rows: Sequence[Row], error: str) -> None:
    for row in rows:
        row.fail(error)


def _stack(pictures: Sequence[Any], num_frames: int) -> np.ndarray | str:
    """Pictures as frames `[T, H, W, 3]` uint8, or why that cannot be."""
    picked = [pictures[i].convert("RGB") for i in segment_indices(len(pictures), num_frames)]
    sizes = {p.size for p in picked}
    if len(sizes) > 1:
        return f"pictures of one video differ in size: {sorted(sizes)}"
    return np.stack([np.asarray(p, dtype=np.uint8) for p in picked])
