"""The loop's first half: from unlabelled videos to preference pairs, by the model alone.

For each video the model asks questions, answers them (sampled: the dispreferred answer), criticises its answer and revises it (the
preferred answer). A pair is made where the revision differs from the answer; the critique's own verdict is not read. Every question
leaves exactly one row, a pair or a dropped one with its reason. No right answers exist here, and none can be passed in.

What is kept of one step for the next is the video's prefix alone. A later prompt begins as an earlier one in its first words only (6 of
some 140 in the set "videosavi"), and reading prompts is a seventh of proposing at 8B by the plan: keeping their keys would win nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from savi.base.errors import UsageError
from savi.base.files import FailureLog
from savi.base.lock import lock_file
from savi.base.processes import joined
from savi.engine.sampling import GenerationSettings
from savi.engine.watched import ContextError, Reply
from savi.loop.journal import Journal
from savi.loop.parts import Made
from savi.loop.preferences import PreferencePair, make_pair_id
from savi.loop.prompts import (
    KINDS,
    STEPS,
    Kind,
    Question,
    Step,
    Unreadable,
    parse_answer,
    parse_critique,
    parse_question,
    prompt_set,
    same_answer,
)
from savi.loop.run import STAGE, TOO_LONG, Run
from savi.server.server_lm import ServerLM
from savi.server.usage import ServedReply
from savi.video.frames import Frames, VideoError

T = TypeVar("T")
R = TypeVar("R")


class Asker(Protocol):
    """What the loop needs of a model: a `VideoLM`, or a `ServerLM`. `watch_batch` gives what its `ask` takes."""

    @property
    def fingerprint(self) -> str: ...

    def watch_batch(self, videos: Sequence[Frames]) -> Sequence[Any]: ...

    def ask(
        self, items: Sequence[tuple[Any, str]], settings: GenerationSettings, *, keys: Sequence[str] | None = None
    ) -> Sequence[Reply]: ...


@dataclass(frozen=True)
class AlignSettings:
    """How pairs are made.

    `questions_per_kind` spatial and as many temporal questions a video (the paper: 3 and 3, as 24,000 pairs of 4,000 videos say), or of the
    one kind in `kinds`. Without `criticise` there is no critique, and the revised answer is the model's answer to the question asked once
    more (greedy, where `revise` is). `prompts` names a set of `savi.loop.prompts`. The four generation settings' own seeds are replaced by
    `seed`. `chunk_videos` videos are worked on together and are what a crash can lose; it changes no result. `keep_equal` also makes
    pairs of unchanged answers, chosen and rejected being the revision: they have nothing to prefer, but an NLL term (`rpo_alpha`, `method`
    "sft") learns from them. Without them it learns from corrections alone, and a model that leans towards one option is taught to lean
    towards the others.
    """

    num_frames: int
    questions_per_kind: int = 1
    kinds: tuple[Kind, ...] = KINDS
    criticise: bool = True
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
        if not self.kinds or set(self.kinds) - set(KINDS) or len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"kinds are {', '.join(self.kinds) or 'none'}; name one or both of {', '.join(KINDS)}, each once")
        prompt_set(self.prompts)

    def content(self) -> dict[str, Any]:
        """What the result depends on: all settings but those of speed (`chunk_videos`, the batches' bounds)."""
        values = asdict(self)
        del values["chunk_videos"]
        for step in STEPS:
            values[step] = {key: value for key, value in values[step].items() if key not in ("max_batch", "seed")}
        values["prompts"] = prompt_set(self.prompts).model_dump()
        for name, usual in (("kinds", KINDS), ("criticise", True)):
            if values[name] == usual:
                del values[name]  # files made before there was a choice are made of the same
        return values


def propose(
    lm: Asker,
    videos: Iterable[Path],
    settings: AlignSettings,
    *,
    critic: Asker | None = None,
    out: Path | None = None,
    dropped: Path | None = None,
    failures: FailureLog | None = None,
    progress: Callable[[int, int], None] | None = None,
    retry_failed: bool = False,
    helper: Helper | None = None,
) -> Iterator[PreferencePair]:
    """Make preference pairs from videos; yields them in the order of the videos, as chunks are finished.

    With `out`, pairs are written there chunk by chunk, dropped questions to `dropped` (by default `savi.loop.journal.dropped_path`), and
    a run that was killed goes on after its last whole chunk: the same bytes as an uninterrupted one, the stored pairs yielded first. A
    sampled row's random stream is named by video, kind, index and stage, so results do not depend on chunks or batches. A video that
    cannot be read is listed in `failures` and the rest goes on; it is not tried again when the run goes on, unless `retry_failed`: then
    those come first, and their pairs after the stored ones.

    `critic` criticises in the place of `lm`, which still asks, answers and revises. What a server replied is kept beside `out` until the
    pairs are made from it, also within a chunk: nothing is asked of it twice.

    In several processes (`torchrun`) with `out`, which all must see, chunks are dealt out by the length of their videos; the first process
    writes what all of them made, in order, and yields; the others yield nothing, and `progress` is of the first one's share. `helper`
    takes half of the chunks where there is one process.

    Raises:
        ResumeError: `out` was begun with another model, other settings or other videos.
        LockedError: another process is writing `out`.
        ContextError: no video so far fits into the model's context. (One that does not is listed in `failures` where others do; so is a
            question, in `dropped`.)
        ProcessGoneError: another process of the launch is dead.
    """
    paths = [Path(video) for video in videos]
    run = _run(lm, critic, dict(zip(video_keys(paths), paths, strict=True)), settings)
    run.failures, run.progress = failures, progress
    if out is None:
        yield from run.work_through()
        return
    with joined(out.parent) as processes, ExitStack() as held:

        def begin() -> tuple[Mapping[str, str], list[list[list[str]]]]:
            held.enter_context(lock_file(out))
            named = None if critic is None else critic.fingerprint
            content, keys = settings.content(), list(run.path_of)
            run.open(Journal(out, dropped, model=lm.fingerprint, settings=content, videos=keys, critic=named), retry_failed)
            return run.header, run.deal(2 if helper is not None else processes.count)

        header, hands = processes.by_first(begin)
        for asker, name in ((lm, "replies"), (critic, "critic-replies")):
            if isinstance(asker, ServerLM):
                asker.log_to(out.with_suffix(f".{name}.jsonl"), processes.rank)
        if len(hands) > 1 and any(hands):
            if helper is not None:
                helper.begin([[(key, run.path_of[key]) for key in chunk] for chunk in hands[1]], header)
            run.make_part(hands[processes.rank], out, header)
            processes.wait()
            if helper is not None:
                helper.wait()
        if processes.rank == 0:
            yield from run.work_through()
        processes.wait()


def propose_part(
    lm: Asker,
    chunks: Sequence[Sequence[tuple[str, Path]]],
    settings: AlignSettings,
    out: Path,
    header: Mapping[str, str],
    critic: Asker | None = None,
) -> None:
    """A helper's share: what comes of these chunks of (key, video), into a part beside `out`."""
    run = _run(lm, critic, {key: Path(path) for chunk in chunks for key, path in chunk}, settings)
    run.make_part([[key for key, _ in chunk] for chunk in chunks], out, header)


def _run(lm: Asker, critic: Asker | None, path_of: Mapping[str, Path], settings: AlignSettings) -> Run:
    return Run(path_of, partial(_propose_chunk, lm=lm, critic=critic, settings=settings), settings.num_frames, settings.chunk_videos)


class Helper(Protocol):
    """Another process that makes a share of the pairs (by `propose_part`). What it did not make is made by the first one."""

    def begin(self, chunks: list[list[tuple[str, Path]]], header: Mapping[str, str]) -> None: ...
    def wait(self) -> None: ...


def video_keys(paths: Sequence[Path]) -> list[str]:
    """A name for each video: its file name, with as many folders before it as make it unique. Names, not paths, decide random streams and
    pair ids, so that a run can be moved.

    Raises:
        UsageError: a video is in the list twice.
    """
    keys = [path.name for path in paths]
    depth = 1
    while len(set(keys)) < len(keys):
        twice = {key for key, count in Counter(keys).items() if count > 1}
        depth += 1
        longer = ["/".join(path.parts[-depth:]) if key in twice else key for key, path in zip(keys, paths, strict=True)]
        if longer == keys:
            raise UsageError(f"video {sorted(twice)[0]} is in the list more than once: name each file once, or its folder alone")
        keys = longer
    return keys


@dataclass
class _Draft:
    """One question on its way to a pair: what the model said at each step; `dropped` holds (reason, detail) once it is out. `criticised` is
    the video as the critic watched it."""

    key: str
    path: Path
    kind: Kind
    index: int
    watched: Any
    criticised: Any
    question: Question | None = None
    said: dict[Step, str] = field(default_factory=dict)
    dropped: tuple[str, str] | None = None

    def row_key(self, step: Step) -> str:
        """The name of a step's random stream."""
        return f"{self.key}/{self.kind}/{self.index}/{step}"

    def take(self, step: Step, reply: Reply) -> None:
        """Keep what a reply says; one that cannot be read is kept as it is, and the question is out."""
        read: Question | str | Unreadable
        if isinstance(reply, ServedReply) and reply.refused:
            self.dropped = ("no reply", reply.refused)
            return
        if step == "ask":
            read = parse_question(reply.text, finished=reply.finished)
        elif step == "critique":
            read = parse_critique(reply.text, self.said["answer"], finished=reply.finished)
        elif not reply.finished:  # trained on, it would teach to stop anywhere
            read = Unreadable("cut off")
        else:
            read = parse_answer(reply.text, self.question)
            if step == "revise" and isinstance(read, str) and same_answer(read, self.said.get("critique", "")):
                read = Unreadable("repeats the critique")
        if isinstance(read, Unreadable) and not reply.finished:
            read = Unreadable(f"cut off after {reply.tokens} tokens")
        if isinstance(read, Unreadable):
            self.said[step], self.dropped = reply.text, (f"unreadable {_NOUNS[step]}", read.reason)
        elif isinstance(read, Question):
            self.said[step], self.question = read.text, read
        else:
            self.said[step] = read

    def pair(self, settings: AlignSettings) -> PreferencePair:
        """The pair of a question that went all the way (of another: what there is of it)."""
        question, initial, revision = (self.said.get(step, "") for step in ("ask", "answer", "revise"))
        return PreferencePair(
            pair_id=make_pair_id(self.key, self.kind, self.index, question),
            video=str(self.path),
            question=question,
            kind=self.kind,
            initial=initial,
            critique=self.said.get("critique", ""),
            chosen=revision,
            rejected=revision if same_answer(initial, revision) else initial,
            meta={"index": self.index, "num_frames": settings.num_frames, "prompts": settings.prompts},
        )

    def dropped_row(self, settings: AlignSettings) -> dict[str, Any]:
        """A row of dropped.jsonl: a pair's fields as far as they came, with the reason."""
        reason, detail = self.dropped or ("", "")
        row = dict(vars(self.pair(settings)))
        del row["chosen"], row["rejected"]
        return {**row, "revision": self.said.get("revise", ""), "reason": reason, "detail": detail}


_NOUNS: dict[Step, str] = {"ask": "question", "answer": "answer", "critique": "critique", "revise": "revision"}
"""What a step's reply is: in the reasons of dropped questions, and in the templates of later steps."""


def _propose_chunk(
    chunk: Sequence[tuple[str, Path, Frames | VideoError]], *, lm: Asker, critic: Asker | None, settings: AlignSettings
) -> dict[str, Made]:
    """All four steps over a chunk of videos, each in one batch -> what came of each video, by key."""
    made = {key: Made() for key, _, _ in chunk}
    for key, _, frames in chunk:
        if isinstance(frames, VideoError):
            made[key].broken.append({"what": key, "where": key, "why": f"{frames.kind}: {frames.reason}", "stage": STAGE})
    readable = [(key, path, frames) for key, path, frames in chunk if isinstance(frames, Frames)]
    watched = _fitting(lm.watch_batch, [frames for _, _, frames in readable])
    criticised = watched if critic is None else _fitting(critic.watch_batch, [frames for _, _, frames in readable])
    drafts = []
    for (key, path, _), seen, judged in zip(readable, watched, criticised, strict=True):
        if isinstance(long := judged if isinstance(judged, ContextError) else seen, ContextError):
            made[key].broken.append({"what": key, "where": key, "why": f"{TOO_LONG}: {long}", "stage": STAGE})
            continue
        drafts += [_Draft(key, path, kind, index, seen, judged) for kind in settings.kinds for index in range(settings.questions_per_kind)]
    for step in STEPS if settings.criticise else [step for step in STEPS if step != "critique"]:
        who, asker = ("critic", critic) if step == "critique" and critic is not None else ("model", lm)
        for key, reply in _run_step(asker, drafts, step, settings):
            made[key].count(who, reply)
        if step == "ask":
            _drop_duplicates(drafts)
    for draft in drafts:
        if draft.dropped is None and not settings.keep_equal and same_answer(draft.said["answer"], draft.said["revise"]):
            draft.dropped = ("unchanged", "the revision says what the answer said")
        if draft.dropped is None:
            made[draft.key].pairs.append(draft.pair(settings))
        else:
            made[draft.key].dropped.append(draft.dropped_row(settings))
    return made


def _run_step(asker: Asker, drafts: Sequence[_Draft], step: Step, settings: AlignSettings) -> list[tuple[str, Reply]]:
    """Ask a step's prompt of all questions that are still in, in one batch, and return the replies, each with its video's key."""
    going = [draft for draft in drafts if draft.dropped is None]
    if not going:
        return []
    prompts = prompt_set(settings.prompts)
    said = [{_NOUNS[earlier]: text for earlier, text in draft.said.items()} for draft in going]
    asked: Step = "answer" if step == "revise" and not settings.criticise else step
    filled = [prompts.fill(asked, draft.kind, **fields) for draft, fields in zip(going, said, strict=True)]
    videos = [draft.criticised if step == "critique" else draft.watched for draft in going]
    generation: GenerationSettings = getattr(settings, step)
    keys = [draft.row_key(step) for draft in going]
    items = list(zip(videos, filled, keys, strict=True))
    with_seed = replace(generation, seed=settings.seed)
    replies = _fitting(lambda some: asker.ask([item[:2] for item in some], with_seed, keys=[item[2] for item in some]), items)
    for draft, reply in zip(going, replies, strict=True):
        if isinstance(reply, ContextError):
            draft.dropped = (TOO_LONG, str(reply))
        else:
            draft.take(step, reply)
    return [(draft.key, reply) for draft, reply in zip(going, replies, strict=True) if not isinstance(reply, ContextError)]


def _fitting(work: Callable[[list[T]], Sequence[R]], items: list[T]) -> list[R | ContextError]:
    """What `work` gives of each item, all of them in one batch; where the context is too short for one, of the others, and its error."""
    try:
        return list(work(items))
    except ContextError as error:
        if len(items) == 1:
            return [error]
    half = len(items) // 2
    return [*_fitting(work, items[:half]), *_fitting(work, items[half:])]


def _drop_duplicates(drafts: Sequence[_Draft]) -> None:
    """A question asked twice on one video counts once."""
    known: set[tuple[str, str]] = set()
    for draft in drafts:
        if draft.question is not None:
            text = (draft.key, " ".join(draft.question.text.casefold().split()))
            if text in known:
                draft.dropped = ("duplicate", "asked before on this video")
            known.add(text)
