"""One iteration of self-alignment: propose pairs on unlabelled videos, then train on them.

Each of the two stages leaves files that say what they were made from; a stage whose files are whole and made from the same inputs is not
run again. The module knows no right answers: it is given videos and nothing else.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from savi.base.errors import ResumeError
from savi.base.files import FailureLog, new_folder
from savi.base.lock import lock_folder
from savi.base.processes import joined
from savi.cards.model_card import lineage, sources, write_model_card
from savi.loop.controls import CHANGE_PAIRS, SUPERVISED, Control, transform_pairs
from savi.loop.journal import AlignCounts, Journal, is_complete, journal_path, read_counts, read_unchanged
from savi.loop.preferences import PreferencePair, read_pairs, write_pairs
from savi.loop.propose import AlignSettings, Asker, propose, video_keys
from savi.loop.replay import critique_lessons
from savi.publish.pairs_card import describe_pairs, pairs_card_path
from savi.training.folder import MODEL_FOLDER, TrainResult, finished, made_from, write_result
from savi.training.settings import DPOSettings

if TYPE_CHECKING:
    from savi.engine.video_lm import VideoLM

PAIRS_FILE = "pairs.jsonl"
DROPPED_FILE = "dropped.jsonl"
TRAIN_PAIRS_FILE = "train_pairs.jsonl"

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


class Base:
    """The checkpoint an iteration starts from. Its fingerprint costs no loading; the model is loaded once, when it is first needed."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @cached_property
    def fingerprint(self) -> str:
        from savi.conversion.checkpoint import weights_fingerprint

        return weights_fingerprint(self.path)

    @cached_property
    def lm(self) -> VideoLM:
        from savi.engine.video_lm import VideoLM

        return VideoLM.from_pretrained(self.path)


@dataclass(frozen=True)
class IterationResult:
    """What one iteration left. `seconds`: wall time of each stage run now; a stage that was finished before is not in it."""

    pairs_file: Path
    counts: AlignCounts
    training: TrainResult
    seconds: dict[str, float] = field(default_factory=dict)


def run_iteration(
    base: str | Path,
    videos: Iterable[Path],
    out_dir: str | Path,
    align: AlignSettings,
    dpo: DPOSettings,
    control: Control = "none",
    *,
    critic: Asker | None = None,
    report_to: Sequence[str] = (),
    failures: FailureLog | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> IterationResult:
    """Propose, then train: `out_dir`/{pairs.jsonl, dropped.jsonl, train/, model/}; run again, it does only what is missing.

    `critic` criticises in the place of the model that is trained. `report_to`: trackers that are told of the training. `progress` is called
    with (stage, done, total), stages "propose" and "train". In several processes (`torchrun`) all call it and share the work; the files are
    those of one process.

    Raises:
        LockedError: another run is at work in `out_dir`.
        ResumeError: `out_dir` holds the work of another model, critic, videos or settings.
        ModelError: `base` is not a usable checkpoint.
    """
    out, start = Path(out_dir), Base(base)
    failures = FailureLog(out / "failures.jsonl") if failures is None else failures
    seconds: dict[str, float] = {}

    def within(stage: str) -> Progress | None:
        return None if progress is None else lambda done, total: progress(stage, done, total)

    with joined(out) as processes, ExitStack() as held:
        processes.by_first(lambda: held.enter_context(lock_folder(out)))
        began = time.perf_counter()
        if propose_stage(start, list(videos), out, align, critic, failures=failures, progress=within("propose")):
            seconds["propose"] = time.perf_counter() - began
        began = time.perf_counter()
        training, ran = train_stage(
            start, out, dpo, control, seed=align.seed, failures=failures, progress=within("train"), report_to=report_to
        )
        if ran:
            seconds["train"] = time.perf_counter() - began
    return IterationResult(out / PAIRS_FILE, read_counts(out / PAIRS_FILE), training, seconds)


def propose_stage(
    base: Base,
    videos: list[Path],
    out: Path,
    align: AlignSettings,
    critic: Asker | None = None,
    *,
    failures: FailureLog,
    progress: Progress | None = None,
) -> bool:
    """Make the pairs of an iteration, and return whether there was anything left to do.

    Raises:
        ResumeError: as `run_iteration`.
    """
    files = (out / PAIRS_FILE, out / DROPPED_FILE)

    def complete() -> bool:
        if done := is_complete(files[0]):  # refuses pairs of something else
            named = None if critic is None else critic.fingerprint
            Journal(*files, model=base.fingerprint, settings=align.content(), videos=video_keys(videos), critic=named)
            if not pairs_card_path(files[0]).exists():  # stopped before it was written
                describe()
        return done

    def describe() -> None:
        describe_pairs(files[0], sources(align, ["chunk_videos"]), base.path, read_counts(files[0]).line())

    with joined(out) as processes:
        if processes.by_first(complete):
            return False
    for _ in propose(base.lm, videos, align, critic=critic, out=files[0], dropped=files[1], failures=failures, progress=progress):
        pass
    if not processes.rank:
        describe()
    return True


def train_stage(
    base: Base,
    out: Path,
    dpo: DPOSettings,
    control: Control = "none",
    *,
    seed: int,
    failures: FailureLog,
    progress: Progress | None = None,
    report_to: Sequence[str] = (),
    replay_critiques: float = 0.0,
    keep: str = "",
) -> tuple[TrainResult, bool]:
    """Train on the pairs in `out`, or on what the control makes of them, and return the result and whether it was made now.

    With control "sft" or "sft-initial" the method is "sft" whatever `dpo` says; controls that change pairs leave theirs in
    train_pairs.jsonl. `replay_critiques`: the share of the pairs whose critiques are taught too (`savi.loop.replay`), by the NLL term.
    With no pair to train on the model is copied and the failure listed. `keep`: why the model is to stay as it is (an early stop); it is
    copied.

    Raises:
        ResumeError: the pairs are not finished, or `out` holds a model trained from other pairs or with other settings.
        ValueError: critiques are to be replayed, and no NLL term would learn from them.
    """
    from savi.training.examples import NoPairsError
    from savi.training.trainer import train

    if control in SUPERVISED:
        dpo = dpo.model_copy(update={"method": "sft", "rpo_alpha": 0.0})

    if replay_critiques and not dpo.objective.nll_weight:
        raise ValueError("replayed critiques are learnt by the NLL term alone: give rpo_alpha too, or method sft")

    def begin() -> tuple[list[PreferencePair], dict[str, Any], TrainResult | None]:
        file = out / PAIRS_FILE
        if journal_path(file).exists() and not is_complete(file):
            raise ResumeError(f"{file}: is not finished; propose its pairs to the end before training")
        pairs = [] if keep else read_pairs(file)
        lessons = critique_lessons(pairs, replay_critiques, seed=seed)
        if control in CHANGE_PAIRS and not keep:
            pairs = transform_pairs(pairs, control, seed=seed, unchanged=read_unchanged(out / DROPPED_FILE))
            write_pairs(out / TRAIN_PAIRS_FILE, pairs)
        pairs += lessons
        inputs = made_from(base.fingerprint, pairs, dpo)
        return pairs, inputs, finished(out, inputs)

    def unchanged(why: str) -> TrainResult:
        if not keep:
            failures.add(what="training", where=out.name, why=why, stage="train")
        with new_folder(out / MODEL_FOLDER) as partial:
            shutil.copytree(base.path, partial, dirs_exist_ok=True)
            how = "Copied, as the loop had been stopped," if keep else "Copied, as there was no pair to train on,"
            write_model_card(partial, "A base model as it was", lineage(base.path), None, base_fingerprint=base.fingerprint, how=how)
        result = TrainResult(out / MODEL_FOLDER, (), 0, 0, (), trained=False)
        write_result(out, inputs, result)
        return result

    with joined(out) as processes:
        pairs, inputs, found = processes.by_first(begin)
        if found is not None:
            return found, False
        if keep:
            return processes.by_first(lambda: unchanged(keep)), True
        try:
            return train(base.lm, pairs, dpo, out, progress=progress, report_to=report_to), True
        except NoPairsError as error:
            why = str(error)
        return processes.by_first(lambda: unchanged(why)), True
