"""The loop's first half: from unlabelled videos to preference pairs, by the model alone.

For each video the model poses questions, answers them (sampled: the dispreferred answer), criticises its answer and revises it (the
preferred answer). A pair is made where the revision differs from the answer; the critique's own verdict is not read. Every question
leaves exactly one row, a pair or a dropped one with its reason. No right answers exist here, and none can be passed in.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from savi.base.digests import sha256_json
from savi.base.errors import ExitCode, SaviError
from savi.base.files import FailureLog, JsonlWriter, read_jsonl
from savi.engine.sampling import GenerationSettings
from savi.loop.preferences import PreferencePair, iter_rows, make_pair_id, read_pairs
from savi.loop.prompts import (
    KINDS,
    Kind,
    Question,
    Unreadable,
    parse_answer,
    parse_critique,
    parse_question,
    parse_revision,
    prompt_set,
    same_answer,
)
from savi.video.frames import Frames, VideoError, prefetch

if TYPE_CHECKING:
    from savi.engine.video_lm import Reply, VideoLM, Watched

REASONS = ("unreadable question", "duplicate", "unreadable answer", "unreadable critique", "unreadable revision", "unchanged")
"""Why a question gave no pair."""

STAGE = "propose"
"""The stage named in failures.jsonl."""


Parsed = TypeVar("Parsed")


class ResumeError(SaviError, ValueError):
    """Files of another model, other settings or other videos stand where this run would go on: names what differs."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True)
class AlignSettings:
    """How pairs are made. `questions_per_kind` spatial and as many temporal questions a video (the paper: 3 and 3); `prompts` names a set
    of `savi.loop.prompts`; the four generation settings' own seeds are replaced by `seed`. `chunk_videos` videos are worked on together and
    are what a crash can lose; it changes no result. `keep_equal` also makes pairs of unchanged answers, chosen and rejected being the
    revision: they have nothing to prefer, but an NLL term (`rpo_alpha`, `method` "sft") learns from them. Without them it learns from
    corrections alone, and a model that leans towards one option is taught to lean towards the others."""

    num_frames: int
    questions_per_kind: int = 1
    prompts: str = "videosavi"
    ask: GenerationSettings = field(default_factory=lambda: GenerationSettings(max_new_tokens=96, temperature=1.0))
    answer: GenerationSettings = field(default_factory=lambda: GenerationSettings(max_new_tokens=128, temperature=1.0))
    critique: GenerationSettings = field(default_factory=lambda: GenerationSettings(max_new_tokens=256))
    revise: GenerationSettings = field(default_factory=lambda: GenerationSettings(max_new_tokens=160))
    chunk_videos: int = 8
    seed: int = 0
    keep_equal: bool = False

    def __post_init__(self) -> None:
        for name in ("num_frames", "questions_per_kind", "chunk_videos"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        prompt_set(self.prompts)

    def content(self) -> dict[str, Any]:
        """What the result depends on: all settings but those of speed (`chunk_videos`, the batches' bounds)."""
        values = asdict(self)
        del values["chunk_videos"]
        for step in ("ask", "answer", "critique", "revise"):
            values[step] = {key: value for key, value in values[step].items() if key not in ("max_batch", "seed")}
        values["prompts"] = prompt_set(self.prompts).model_dump()
        return values


@dataclass(frozen=True)
class AlignCounts:
    """What became of the questions. videos = broken + read; questions = pairs + sum of dropped; `equal` of the pairs are unchanged
    answers (`AlignSettings.keep_equal`)."""

    videos: int = 0
    broken: int = 0
    questions: int = 0
    pairs: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    equal: int = 0

    def __add__(self, other: AlignCounts) -> AlignCounts:
        return AlignCounts(
            self.videos + other.videos,
            self.broken + other.broken,
            self.questions + other.questions,
            self.pairs + other.pairs,
            dict(sorted((Counter(self.dropped) + Counter(other.dropped)).items())),
            self.equal + other.equal,
        )

    def line(self) -> str:
        """One line for people."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
        pairs = f"{self.pairs} pairs" + (f" ({self.equal} of unchanged answers)" if self.equal else "")
        return f"{self.videos} videos ({self.broken} broken), {self.questions} questions, {pairs}, dropped: {reasons or 'none'}"


def journal_path(out: str | Path) -> Path:
    """The journal beside a pairs file: what it was made from, and how far it got."""
    return Path(out).with_suffix(".journal.jsonl")


def read_counts(out: str | Path) -> AlignCounts:
    """The counts of a pairs file, finished or not, from its journal."""
    total = AlignCounts()
    for row in read_jsonl(journal_path(out)):
        if "counts" in row:
            total += AlignCounts(**row["counts"])
    return total


def is_complete(out: str | Path) -> bool:
    """Whether a pairs file was finished."""
    path = journal_path(out)
    return path.exists() and any(row.get("done") for row in read_jsonl(path))


def propose(
    lm: VideoLM,
    videos: Iterable[Path],
    settings: AlignSettings,
    *,
    out: Path | None = None,
    dropped: Path | None = None,
    failures: FailureLog | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[PreferencePair]:
    """Make preference pairs from videos; yields them in the order of the videos, as chunks are finished.

    With `out`, pairs are written there chunk by chunk, dropped questions to `dropped` (default: dropped.jsonl beside it), and a run that
    was killed goes on behind its last whole chunk: the same bytes as an uninterrupted one, the stored pairs yielded first. A sampled
    row's random stream is named by video, kind, index and stage, so results do not depend on chunks or batches. A video that cannot be
    read is listed in `failures` and the rest goes on.

    Raises:
        ResumeError: `out` was begun with another model, other settings or other videos.
        ContextError: a video is too long for the model's context.
    """
    paths = [Path(video) for video in videos]
    keys = video_keys(paths)
    journal = _Journal(out, dropped, {"model": lm.fingerprint, "settings": settings.content(), "videos": keys}) if out is not None else None
    start = 0
    if journal is not None:
        start = journal.videos_done
        _list_failures(journal.failures, failures)
        yield from journal.stored_pairs()
    source = zip(
        keys[start:], paths[start:], prefetch(paths[start:], num_frames=settings.num_frames, depth=settings.chunk_videos), strict=True
    )
    done = start
    while chunk := list(islice(source, settings.chunk_videos)):
        pairs, dropped_rows, broken = _align_chunk(lm, [(key, path, frames) for key, path, (_, frames) in chunk], settings)
        done += len(chunk)
        counts = AlignCounts(
            videos=len(chunk),
            broken=len(broken),
            questions=len(pairs) + len(dropped_rows),
            pairs=len(pairs),
            dropped=dict(sorted(Counter(row["reason"] for row in dropped_rows).items())),
            equal=sum(pair.chosen == pair.rejected for pair in pairs),
        )
        if journal is not None:
            journal.add(pairs, dropped_rows, broken, done, counts)
        _list_failures(broken, failures)
        if progress is not None:
            progress(done, len(paths))
        yield from pairs
    if journal is not None:
        journal.finish()


def _list_failures(broken: Sequence[dict[str, str]], failures: FailureLog | None) -> None:
    if failures is not None:
        for failure in broken:
            failures.add(**failure)


def video_keys(paths: Sequence[Path]) -> list[str]:
    """A name for each video: its file name, with as many folders before it as make it unique. Names, not paths, decide random streams and
    pair ids, so that a run can be moved.

    Raises:
        ValueError: a video is in the list twice.
    """
    keys = [path.name for path in paths]
    depth = 1
    while len(set(keys)) < len(keys):
        twice = {key for key, count in Counter(keys).items() if count > 1}
        depth += 1
        longer = ["/".join(path.parts[-depth:]) if key in twice else key for key, path in zip(keys, paths, strict=True)]
        if longer == keys:
            raise ValueError(f"video {sorted(twice)[0]} is in the list more than once")
        keys = longer
    return keys


@dataclass
class _Asked:
    """One question on its way through the stages; `dropped` holds (reason, detail) once it is out."""

    key: str
    path: Path
    kind: Kind
    index: int
    watched: Watched
    question: Question | None = None
    raw_question: str = ""
    initial: str = ""
    critique: str = ""
    revision: str = ""
    dropped: tuple[str, str] | None = None

    def row_key(self, stage: str) -> str:
        return f"{self.key}/{self.kind}/{self.index}/{stage}"


def _align_chunk(
    lm: VideoLM, chunk: Sequence[tuple[str, Path, Frames | VideoError]], settings: AlignSettings
) -> tuple[list[PreferencePair], list[dict[str, Any]], list[dict[str, str]]]:
    """All four stages over a chunk, each in one batch -> pairs, dropped rows, failures."""
    prompts = prompt_set(settings.prompts)
    broken = [
        {"what": key, "where": key, "why": f"{frames.kind}: {frames.reason}", "stage": STAGE}
        for key, _, frames in chunk
        if isinstance(frames, VideoError)
    ]
    readable = [(key, path, frames) for key, path, frames in chunk if isinstance(frames, Frames)]
    watched = lm.watch_batch([frames for _, _, frames in readable])
    asked = [
        _Asked(key, path, kind, index, seen)
        for (key, path, _), seen in zip(readable, watched, strict=True)
        for kind in KINDS
        for index in range(settings.questions_per_kind)
    ]

    for one, reply in _stage(lm, asked, "ask", settings.ask, settings.seed, lambda one: prompts.ask(one.kind)):
        one.raw_question = reply.text
        read = _read(reply, parse_question)
        if isinstance(read, Unreadable):
            one.dropped = ("unreadable question", read.reason)
        else:
            one.question = read
    known: set[tuple[str, str]] = set()
    for one in asked:
        if one.question is not None:
            text = (one.key, " ".join(one.question.text.casefold().split()))
            if text in known:
                one.dropped = ("duplicate", "asked before on this video")
            known.add(text)

    for one, reply in _stage(lm, asked, "answer", settings.answer, settings.seed, lambda one: prompts.fill("answer", question=_text(one))):
        one.initial = _keep(one, "unreadable answer", reply, _read(reply, partial(parse_answer, question=one.question)))
    for one, reply in _stage(
        lm,
        asked,
        "critique",
        settings.critique,
        settings.seed,
        lambda one: prompts.fill("critique", question=_text(one), answer=one.initial),
    ):
        one.critique = _keep(one, "unreadable critique", reply, _read(reply, parse_critique))
    for one, reply in _stage(
        lm,
        asked,
        "revise",
        settings.revise,
        settings.seed,
        lambda one: prompts.fill("revise", question=_text(one), answer=one.initial, critique=one.critique),
    ):
        one.revision = _keep(one, "unreadable revision", reply, _read(reply, partial(parse_revision, question=one.question)))

    for one in asked:
        if one.dropped is None and not settings.keep_equal and same_answer(one.initial, one.revision):
            one.dropped = ("unchanged", "the revision says what the answer said")
    pairs = [_pair(one, settings) for one in asked if one.dropped is None]
    return pairs, [_dropped_row(one, settings) for one in asked if one.dropped is not None], broken


def _stage(
    lm: VideoLM, asked: Sequence[_Asked], stage: str, generation: GenerationSettings, seed: int, prompt: Callable[[_Asked], str]
) -> list[tuple[_Asked, Reply]]:
    """Ask all questions still in the race in one batch."""
    going = [one for one in asked if one.dropped is None]
    if not going:
        return []
    items = [(one.watched, prompt(one)) for one in going]
    replies = lm.ask(items, replace(generation, seed=seed), keys=[one.row_key(stage) for one in going])
    return list(zip(going, replies, strict=True))


def _read(reply: Reply, parse: Callable[[str], Parsed | Unreadable]) -> Parsed | Unreadable:
    """What a reply says. One without its end says nothing: training on it would teach to stop anywhere."""
    return parse(reply.text) if reply.finished else Unreadable(f"cut off after {reply.tokens} tokens")


def _keep(one: _Asked, reason: str, reply: Reply, read: str | Unreadable) -> str:
    """The text that goes on; for one that cannot be read the raw reply, and the question is out."""
    if isinstance(read, Unreadable):
        one.dropped = (reason, read.reason)
        return reply.text
    return read


def _text(one: _Asked) -> str:
    return one.question.text if one.question is not None else one.raw_question


def _pair(one: _Asked, settings: AlignSettings) -> PreferencePair:
    text = _text(one)
    return PreferencePair(
        pair_id=make_pair_id(one.key, one.kind, one.index, text),
        video=str(one.path),
        question=text,
        kind=one.kind,
        initial=one.initial,
        critique=one.critique,
        chosen=one.revision,
        rejected=one.revision if same_answer(one.initial, one.revision) else one.initial,
        meta={"index": one.index, "num_frames": settings.num_frames, "prompts": settings.prompts},
    )


def _dropped_row(one: _Asked, settings: AlignSettings) -> dict[str, Any]:
    """A row of dropped.jsonl: a pair's fields as far as they came, with the reason."""
    reason, detail = one.dropped or ("", "")
    row = asdict(_pair(one, settings))
    del row["chosen"], row["rejected"]
    return {**row, "revision": one.revision, "reason": reason, "detail": detail}


def read_unchanged(dropped: str | Path) -> list[PreferencePair]:
    """The questions of a dropped.jsonl whose answer was not changed, as pairs of equal answers; controls need them."""
    folder = Path(dropped).parent
    found: list[PreferencePair] = []
    for row in read_jsonl(dropped):
        if row["reason"] == "unchanged":
            fields = {key: value for key, value in row.items() if key not in ("reason", "detail", "revision")}
            fields |= {"chosen": row["revision"], "rejected": row["initial"], "video": os.path.normpath(folder / row["video"])}
            found.append(PreferencePair(**fields))
    return found


class _Journal:
    """The files of one run of `propose`: pairs and dropped questions are on disk before the journal says so, so what lies behind the
    journal's last row is cut off and done again."""

    def __init__(self, out: Path, dropped: Path | None, made_from: dict[str, Any]) -> None:
        self._out = Path(out)
        self._dropped = Path(dropped) if dropped is not None else self._out.with_name("dropped.jsonl")
        self._path = journal_path(out)
        self.videos_done = 0
        self.failures: list[dict[str, str]] = []
        self.done = False
        header = {key: value if key == "model" else sha256_json(value) for key, value in made_from.items()}
        sizes = {"pairs_bytes": 0, "dropped_bytes": 0}
        rows = list(read_jsonl(self._path)) if self._path.exists() else []
        if rows:
            different = [key for key in header if rows[0].get(key) != header[key]]
            if different:
                raise ResumeError(f"{self._out}: was begun with another {' and other '.join(different)}; take another folder or delete it")
            for row in rows[1:]:
                if row.get("done"):
                    self.done = True
                    continue
                self.videos_done = row["videos_done"]
                self.failures += row["failures"]
                sizes = {key: row[key] for key in sizes}
        for path, size in ((self._out, sizes["pairs_bytes"]), (self._dropped, sizes["dropped_bytes"])):
            _cut(path, size)
        if not rows:
            with JsonlWriter(self._path) as writer:
                writer.write(header)

    def stored_pairs(self) -> list[PreferencePair]:
        return read_pairs(self._out)

    def add(
        self,
        pairs: Sequence[PreferencePair],
        dropped: Sequence[dict[str, Any]],
        failures: Sequence[dict[str, str]],
        videos_done: int,
        counts: AlignCounts,
    ) -> None:
        with JsonlWriter(self._out) as writer:
            writer.write(*iter_rows(pairs, self._out.parent))
        folder = self._dropped.parent
        with JsonlWriter(self._dropped) as writer:
            writer.write(*({**row, "video": Path(os.path.relpath(row["video"], folder)).as_posix()} for row in dropped))
        with JsonlWriter(self._path) as writer:
            writer.write(
                {
                    "videos_done": videos_done,
                    "pairs_bytes": self._out.stat().st_size,
                    "dropped_bytes": self._dropped.stat().st_size,
                    "counts": asdict(counts),
                    "failures": list(failures),
                }
            )

    def finish(self) -> None:
        if not self.done:
            with JsonlWriter(self._path) as writer:
                writer.write({"done": True})


def _cut(path: Path, size: int) -> None:
    """Make a file `size` bytes long, dropping what a killed run left behind its last whole chunk.

    Raises:
        ResumeError: the file is shorter than the journal says.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    found = path.stat().st_size if path.exists() else 0
    if found < size:
        raise ResumeError(f"{path}: {found} bytes, but its journal says {size}; delete the folder to have it made again")
    with path.open("ab") as file:
        file.truncate(size)


__all__ = [
    "AlignCounts",
    "AlignSettings",
    "ResumeError",
    "is_complete",
    "journal_path",
    "propose",
    "read_counts",
    "read_unchanged",
    "video_keys",
]
