"""One iteration of self-alignment: propose pairs on unlabelled videos, then train on them.

Each of the two stages leaves files that say what they were made from; a stage whose files are whole and made from the same inputs is not
run again. The module knows no right answers: it is given videos and nothing else.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from savi.base.digest_memory import remembered_sha256
from savi.base.digests import sha256_file
from savi.base.errors import ExitCode, SaviError
from savi.base.files import FailureLog, new_folder
from savi.base.lock import lock_folder
from savi.base.stamp import Stamp, files_below, read_stamp
from savi.loop.controls import Control, transform_pairs
from savi.loop.journal import AlignCounts, Journal, is_complete, journal_path, read_counts, read_unchanged
from savi.loop.preferences import PreferencePair, read_pairs, write_pairs
from savi.loop.propose import AlignSettings, propose, video_keys
from savi.training.settings import MACHINE_ONLY, DPOSettings

if TYPE_CHECKING:
    from savi.engine.video_lm import VideoLM

PAIRS_FILE = "pairs.jsonl"
DROPPED_FILE = "dropped.jsonl"
TRAIN_PAIRS_FILE = "train_pairs.jsonl"
RESULT_FILE = "train/result.json"
MODEL_FOLDER = "model"

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


class StageError(SaviError, ValueError):
    """A stage cannot be run or trusted: says which files stand in the way."""

    exit_code = ExitCode.USAGE


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
class Trained:
    """What the training stage left. `trained` False: there was no pair to train on, and `model` is a copy of the old one."""

    model: Path
    pairs_used: int
    pairs_dropped: dict[str, str]
    steps: int
    trained: bool


@dataclass(frozen=True)
class IterationResult:
    """What one iteration left behind. `seconds`: wall time of each stage run now; a stage that was finished before is not in it."""

    pairs_file: Path
    counts: AlignCounts
    training: Trained
    seconds: dict[str, float] = field(default_factory=dict)


def run_iteration(
    base: str | Path,
    videos: Iterable[Path],
    out_dir: str | Path,
    align: AlignSettings,
    dpo: DPOSettings,
    control: Control = "none",
    *,
    failures: FailureLog | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> IterationResult:
    """Propose, then train: `out_dir`/{pairs.jsonl, dropped.jsonl, train/, model/}; run again, it does only what is missing.

    `progress` is called with (stage, done, total), stages "propose" and "train".

    Raises:
        ResumeError: `out_dir` holds pairs of another model, other settings or other videos.
        StageError: `out_dir` holds a model trained from other pairs or with other settings.
        LockedError: another process is at work in `out_dir`.
        ModelError: `base` is no usable checkpoint.
    """
    out, start = Path(out_dir), Base(base)
    failures = FailureLog(out / "failures.jsonl") if failures is None else failures
    seconds: dict[str, float] = {}

    def within(stage: str) -> Progress | None:
        return None if progress is None else lambda done, total: progress(stage, done, total)

    with lock_folder(out):
        began = time.perf_counter()
        if propose_stage(start, list(videos), out, align, failures=failures, progress=within("propose")):
            seconds["propose"] = time.perf_counter() - began
        began = time.perf_counter()
        training, ran = train_stage(start, out, dpo, control, seed=align.seed, failures=failures, progress=within("train"))
        if ran:
            seconds["train"] = time.perf_counter() - began
    return IterationResult(out / PAIRS_FILE, read_counts(out / PAIRS_FILE), training, seconds)


def propose_stage(
    base: Base, videos: list[Path], out: Path, align: AlignSettings, *, failures: FailureLog, progress: Progress | None = None
) -> bool:
    """Make the pairs of an iteration, and return whether there was anything left to do.

    Raises:
        ResumeError: as `run_iteration`.
    """
    files = (out / PAIRS_FILE, out / DROPPED_FILE)
    if is_complete(files[0]):
        Journal(*files, model=base.fingerprint, settings=align.content(), videos=video_keys(videos))  # refuses pairs of something else
        return False
    for _ in propose(base.lm, videos, align, out=files[0], dropped=files[1], failures=failures, progress=progress):
        pass
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
) -> tuple[Trained, bool]:
    """Train on the pairs in `out`, or on what the control makes of them, and return the result and whether it was made now.

    With control "sft" the method is "sft" whatever `dpo` says; "reversed" and "blind" leave their pairs in train_pairs.jsonl. With no pair
    to train on the model is copied and the failure listed.

    Raises:
        StageError: the pairs are not finished, or `out` holds a model trained from other pairs or with other settings.
    """
    train_file = out / PAIRS_FILE
    if journal_path(train_file).exists() and not is_complete(train_file):
        raise StageError(f"{train_file}: is not finished; propose its pairs to the end before training")
    if control == "sft":
        dpo = dpo.model_copy(update={"method": "sft", "rpo_alpha": 0.0})
    if control in ("reversed", "blind"):
        pairs = transform_pairs(read_pairs(train_file), control, seed=seed, unchanged=read_unchanged(out / DROPPED_FILE))
        train_file = write_pairs(out / TRAIN_PAIRS_FILE, pairs)
    made_from = {
        "model": base.fingerprint,
        "pairs": sha256_file(train_file),
        "settings": dpo.model_dump(mode="json", exclude=set(MACHINE_ONLY)),
    }
    if found := _finished(out, made_from):
        return found, False
    made = _train(base, read_pairs(train_file), dpo, out, failures, progress)
    facts = {key: value for key, value in asdict(made).items() if key != "model"}
    Stamp.of(made_from, out, files_below(made.model), facts, remembered_sha256).write(out / RESULT_FILE)
    return made, True


def _finished(out: Path, made_from: Mapping[str, Any]) -> Trained | None:
    """The result of a training from these inputs, if its model is still what was written.

    Raises:
        StageError: the model there was trained from others, or from nobody knows what.
    """
    stamp, model = read_stamp(out / RESULT_FILE), out / MODEL_FOLDER
    if stamp is None and (out / RESULT_FILE).exists():
        raise StageError(
            f"{out / RESULT_FILE}: damaged, or of an earlier version, so nothing tells what {model} was trained from; move both away"
        )
    if stamp is None or not stamp.done or not model.is_dir():
        return None
    if differing := stamp.differing(made_from):
        raise StageError(f"{model}: was trained from another {' and other '.join(differing)}; take another folder or delete it")
    return None if stamp.changed(out, remembered_sha256) else Trained(model, **stamp.facts)


def _train(
    base: Base, pairs: list[PreferencePair], dpo: DPOSettings, out: Path, failures: FailureLog, progress: Progress | None
) -> Trained:
    from savi.training.examples import NoPairsError
    from savi.training.trainer import train

    try:
        result = train(base.lm, pairs, dpo, out, progress=progress)
    except NoPairsError as error:
        failures.add(what="training", where=out.name, why=str(error), stage="train")
        with new_folder(out / MODEL_FOLDER) as partial:
            shutil.copytree(base.path, partial, dirs_exist_ok=True)
        return Trained(out / MODEL_FOLDER, 0, {}, 0, trained=False)
    dropped = {pair.pair_id: pair.reason for pair in result.pairs_dropped}
    return Trained(result.checkpoint, result.pairs_used, dropped, result.steps, trained=True)
