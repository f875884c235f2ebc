"""The model that lmms-eval asks: a `savi.VideoLM` behind lmms-eval's interface of a simple model.

All requests of a call arrive together. They are grouped by video; a video is decoded and encoded once, whatever the number of questions on
it, and questions of many videos are asked in one batch. Each batch is journalled before the next is asked. The only module of the harness
that knows savi.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from savi.base.torchvision import fix_torchvision

fix_torchvision()  # before lmms-eval imports transformers

from lmms_eval.api.model import lmms  # noqa: E402

from benchmarks.catalog import of_task  # noqa: E402
from benchmarks.data.layout import MediaIndex  # noqa: E402
from harness.run.journal import Answer, Journal, answer_key  # noqa: E402
from harness.run.made_from import made_by  # noqa: E402
from harness.run.offline import InfrastructureError  # noqa: E402
from harness.scoring import describe, question_id  # noqa: E402
from savi.engine.sampling import GenerationSettings  # noqa: E402
from savi.video.frames import DECODERS, Decoder, Frames, VideoError, segment_indices  # noqa: E402
from savi.video.prefetch import FramePrefetcher  # noqa: E402

if TYPE_CHECKING:
    from savi.engine.video_lm import VideoLM, Watched

DEFAULT_MAX_NEW_TOKENS = 1024
"""Where a task sets no limit (three of the six): what lmms-eval's internvl2 adapter, used by the release, takes."""
SAMPLING_RULE = "middle of equal segments"
_SMALL_PARAMETERS = 100_000_000
_ROWS_SMALL, _ROWS_BIG = 384, 8

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Note:
    """What is known of one answer beside its text. `error` says why there is none."""

    text: str
    frames: int
    tokens: int
    finished: bool
    error: str | None = None
    decoder: str = ""


@dataclass
class _Row:
    """One request: where it came from, what is asked, how, and under which key it is journalled."""

    index: int
    task: str
    doc_id: int
    prompt: str
    settings: GenerationSettings
    video: str
    """Path, or a name for frames that lmms-eval hands over as pictures."""
    pictures: list[Any] | None
    question: str
    error: str | None = None
    key: str = ""
    decoder: str = ""
    note: Note | None = None


@dataclass
class _Group:
    """The rows on one video."""

    video: str
    rows: list[_Row] = field(default_factory=list)


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
        InfrastructureError: there is no such checkpoint, or its files cannot be read.
    """
    if isinstance(model, (str, Path)):
        from savi.conversion.checkpoint import CheckpointError, weights_fingerprint

        try:
            return weights_fingerprint(Path(model))
        except (CheckpointError, OSError) as e:
            raise InfrastructureError(f"no usable checkpoint: {e}") from e
    return model.fingerprint


def load_model(path: str | Path, *, device: str = "auto", dtype: str = "auto", attn_implementation: str | None = None) -> VideoLM:
    """`VideoLM.from_pretrained`.

    Raises:
        InfrastructureError: nothing usable there; the message has the reason.
    """
    from savi.base.errors import SaviError
    from savi.engine.video_lm import VideoLM

    try:
        return VideoLM.from_pretrained(path, device=device, dtype=dtype, attn_implementation=attn_implementation)
    except (SaviError, OSError) as e:
        raise InfrastructureError(f"the model could not be loaded: {e}") from e


class SaviLmms(lmms):
    """lmms-eval model `savi`.

    Arguments (`--model_args pretrained=PATH,num_frames=8,...`): `pretrained` a checkpoint; `num_frames` shown of each video; `rows`
    questions asked in one batch (default: by the model's size); `max_new_tokens` where the task sets none; `decoder` pyav, decord or
    torchcodec; `journal` a folder for the journal; `dtype`, `attn_implementation`, `seed`. `lm` hands over a model in memory instead of
    `pretrained`, `media` the digests of videos.
    lmms-eval's `batch_size` and `max_batch_size` are accepted and mean nothing here: batches are made of videos.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "",
        *,
        num_frames: int = 32,
        rows: int | None = None,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        decoder: Decoder = "pyav",
        device: str | None = None,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        journal: str = "",
        seed: int = 0,
        lm: VideoLM | None = None,
        media: MediaIndex | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if lm is None and not pretrained:
            raise ValueError("savi: name a checkpoint with --model_args pretrained=PATH")
        if int(num_frames) < 1:
            raise ValueError(f"savi: num_frames is {num_frames}; it must be at least 1")
        if decoder not in DECODERS:
            raise ValueError(f"savi: unknown decoder {decoder!r}; use one of {', '.join(DECODERS)}")
        self._join_processes()
        self.lm = (
            lm
            if lm is not None
            else load_model(pretrained, device=self._device_name(device), dtype=dtype, attn_implementation=attn_implementation)
        )
        self.device = self.lm.device
        self.num_frames = int(num_frames)
        self.max_new_tokens = int(max_new_tokens)
        self.decoder: Decoder = decoder
        self.seed = int(seed)
        small = sum(p.numel() for p in self.lm.model.parameters()) < _SMALL_PARAMETERS
        self.rows = int(rows) if rows else _ROWS_SMALL if small else _ROWS_BIG
        self.journal = Journal(Path(journal), rank=self._rank, made_by=made_by(), tell=warnings.warn) if journal else None
        self.media = media if media is not None else MediaIndex(Path(os.environ.get("HF_HOME") or "."))
        self.progress: Progress | None = None
        self.retry_failed = False
        """Ask questions again whose failure is in the journal."""
        self.notes: dict[tuple[str, int], Note] = {}
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
        """One evaluation: what is asked inside goes into `journal`, `notes` begins empty, and the journal is closed at the end."""
        self.notes.clear()
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
        """Answer all requests, in their order; a padding document of a multi-process run gets an empty answer without being asked."""
        rows = [self._row(i, r) for i, r in enumerate(requests) if not (r.metadata or {}).get("__padding_only__")]
        for row in rows:
            self._seal(row)
        self.media.save()
        total = len(rows)
        groups = self._grouped([r for r in rows if r.error is None])
        chunks = list(_chunks(groups, self.rows))
        # A chunk is asked as a whole or not at all, so that a resumed run makes the same batches as an uninterrupted one.
        pending = [c for c in chunks if not self._recall(c)]
        done = total - sum(len(g.rows) for c in pending for g in c)
        self._report(done, total)
        files = [Path(g.video) for c in pending for g in c if g.rows[0].pictures is None]
        with FramePrefetcher(
            files, num_frames=self.num_frames, depth=8, workers=1 if self.rows > _ROWS_BIG else 2, decoder=self.decoder
        ) as frames:
            for chunk in pending:
                self._answer(chunk, frames)
                done += sum(len(g.rows) for g in chunk)
                self._report(done, total)
        out = [""] * len(requests)
        for row in rows:
            note = row.note or Note("", 0, 0, False, row.error or "no answer was made")
            self.notes[(row.task, row.doc_id)] = note
            out[row.index] = note.text
        return out

    def _report(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done, total)

    def _row(self, index: int, request: Any) -> _Row:
        prompt, kwargs, doc_to_visual, doc_id, task, split = request.args
        settings = generation_settings(dict(kwargs), max_new_tokens=self.max_new_tokens, seed=self.seed)
        self.generation[task] = settings_record(settings)
        doc = self.task_dict[task][split][doc_id]
        b = of_task(task)
        row = _Row(index, task, int(doc_id), prompt, settings, f"{task}/{doc_id}", None, f"{task}/{doc_id}")
        if b is not None:
            row.question = question_id(task, describe(b, task, doc))
        try:
            visuals = doc_to_visual(doc)
        except (SystemExit, FileNotFoundError) as e:  # three tasks leave the process where a video is missing
            row.error = f"missing: {e}"
            return row
        if len(visuals) == 1 and isinstance(visuals[0], str):
            row.video = str(Path(visuals[0]).absolute())
        elif visuals and all(hasattr(v, "convert") for v in visuals):
            row.pictures = list(visuals)
        else:
            row.error = f"no video: the task hands over {[type(v).__name__ for v in visuals][:3]}; one path or a list of pictures is needed"
        return row

    def _seal(self, row: _Row) -> None:
        """Give a row its journal key."""
        if row.error is not None:
            return
        media = "pictures"
        if row.pictures is None:
            path = Path(row.video)
            if not path.exists():
                row.error = f"missing: {row.video} is not there"
                return
            media = self.media.digest(path) if self.journal is not None else ""
        row.key = answer_key(
            weights=self.lm.fingerprint if self.journal is not None else "",
            question=row.question,
            media=media,
            prompt=row.prompt,
            generation=settings_record(row.settings),
            frames=self.frame_settings,
        )

    def _grouped(self, rows: Sequence[_Row]) -> list[_Group]:
        groups: dict[str, _Group] = {}
        for row in rows:
            groups.setdefault(row.video, _Group(row.video)).rows.append(row)
        return list(groups.values())

    def _recall(self, chunk: Sequence[_Group]) -> bool:
        """Take a chunk's answers from the journal; False where one is missing."""
        if self.journal is None:
            return False
        found = [(row, self.journal.get(row.key)) for g in chunk for row in g.rows]
        if any(a is None or (a.error and self.retry_failed) for _, a in found):
            return False
        for row, a in found:
            if a is not None:
                row.note = Note(a.text, a.frames, a.tokens, a.finished, a.error or None, a.decoder)
        return True

    def _answer(self, chunk: Sequence[_Group], frames: Iterator[tuple[Path, Frames | VideoError]]) -> None:
        """Ask a chunk's questions in one batch for each kind of settings, and journal the answers."""
        seen: list[tuple[_Group, Frames | np.ndarray]] = []
        for group in chunk:
            pictures = group.rows[0].pictures
            got = next(frames)[1] if pictures is None else _stack(pictures, self.num_frames)
            if isinstance(got, (VideoError, str)):
                _fail(group.rows, f"{got.kind}: {got}" if isinstance(got, VideoError) else got)
            else:
                seen.append((group, got))
                for row in group.rows:
                    row.decoder = got.decoder if isinstance(got, Frames) else ""
        asked = [(row, w) for group, w in self._watch(seen) for row in group.rows]
        by_settings: dict[GenerationSettings, list[tuple[_Row, Watched]]] = {}
        for row, w in asked:
            by_settings.setdefault(row.settings, []).append((row, w))
        for settings, items in by_settings.items():
            self._ask(items, replace(settings, max_batch=self.rows))
        if self.journal is not None:
            self.journal.add(
                [
                    Answer(r.key, n.text, n.tokens, n.finished, n.frames, n.decoder, n.error or "")
                    for group in chunk
                    for r in group.rows
                    if (n := r.note) is not None
                ]
            )

    def _watch(self, seen: Sequence[tuple[_Group, Frames | np.ndarray]]) -> list[tuple[_Group, Watched]]:
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

    def _ask(self, items: Sequence[tuple[_Row, Watched]], settings: GenerationSettings) -> None:
        from savi.engine.video_lm import ContextError

        try:
            replies = self.lm.ask([(w, row.prompt) for row, w in items], settings, keys=[row.question for row, _ in items])
        except ContextError as e:
            if len(items) == 1:
                _fail([items[0][0]], f"too long: {e}")
            else:
                for item in items:
                    self._ask([item], settings)
            return
        for (row, w), reply in zip(items, replies, strict=True):
            row.note = Note(reply.text, w.frames, reply.tokens, reply.finished, decoder=row.decoder)


def _fail(rows: Sequence[_Row], error: str) -> None:
    for row in rows:
        row.note = Note("", 0, 0, False, error)


def _chunks(groups: Sequence[_Group], rows: int) -> Iterator[list[_Group]]:
    """Whole videos until a chunk has at least `rows` questions."""
    chunk: list[_Group] = []
    for g in groups:
        chunk.append(g)
        if sum(len(x.rows) for x in chunk) >= rows:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _stack(pictures: Sequence[Any], num_frames: int) -> np.ndarray | str:
    """Pictures as frames `[T, H, W, 3]` uint8, or why that cannot be."""
    picked = [pictures[i].convert("RGB") for i in segment_indices(len(pictures), num_frames)]
    sizes = {p.size for p in picked}
    return (
        np.stack([np.asarray(p, dtype=np.uint8) for p in picked])
        if len(sizes) == 1
        else f"pictures of one video differ in size: {sorted(sizes)}"
    )
