"""One iteration of self-alignment: a checkpoint and unlabelled videos in, pairs and the next checkpoint out; and the controls beside it.

Both stages leave files with the fingerprint of their inputs; a stage whose files are whole and made from the same inputs is not run
again. The module knows no right answers: it is given videos and nothing else.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from savi.base.digests import sha256_file, sha256_json
from savi.base.errors import ExitCode, SaviError
from savi.base.files import FailureLog, write_json_atomic
from savi.loop.preferences import PreferencePair, read_pairs, write_pairs
from savi.loop.prompts import LETTERS, Question, Unreadable, choice, parse_question, question_shape, same_answer
from savi.loop.propose import AlignCounts, AlignSettings, is_complete, propose, read_counts, read_unchanged
from savi.training.settings import MACHINE_ONLY, DPOSettings

if TYPE_CHECKING:
    from savi.engine.video_lm import VideoLM

Control = Literal["none", "reversed", "blind", "sft"]
CONTROLS: tuple[Control, ...] = ("none", "reversed", "blind", "sft")

PAIRS_FILE = "pairs.jsonl"
DROPPED_FILE = "dropped.jsonl"
TRAIN_PAIRS_FILE = "train_pairs.jsonl"
RESULT_FILE = "train/result.json"
MODEL_FOLDER = "model"

_MARK = re.compile(rf"(?<!\S)(\(?)([{LETTERS}])(?=[).:]*(?:\s|$))")


class StageError(SaviError, ValueError):
    """A stage cannot be run or trusted: says which files stand in the way."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True)
class IterationResult:
    """What one iteration left behind. `seconds`: wall time of each stage run now; a stage that was finished before is not in it.

    `trained` False: there was no pair to train on, the model is the old one.
    """

    pairs_file: Path
    model: Path
    counts: AlignCounts
    pairs_used: int
    pairs_dropped: dict[str, str]
    steps: int
    trained: bool
    seconds: dict[str, float] = field(default_factory=dict)


def transform_pairs(
    pairs: Sequence[PreferencePair], control: Control, *, seed: int = 0, unchanged: Sequence[PreferencePair] | None = None
) -> list[PreferencePair]:
    """The pairs of a control run.

    * "none": as they are. "sft": as they are, to be trained with method "sft" (chosen answers alone).
    * "reversed": chosen and rejected change places. If the critique helps, this must hurt.
    * "blind": as many pairs, made without the critique. Which questions get a pair is drawn anew from all readable ones (`unchanged` brings
      those whose answer the critique left alone: with yes/no, the mere choice of questions would hand on its verdict), and the chosen
      answer is another option of the same question, or another video's revised answer to a question of the same shape; never the initial
      answer itself. Where pairs of equal answers are among them (`AlignSettings.keep_equal`), as many questions keep their initial answer.

    The result depends on the pairs and the seed, not on the pairs' order. `meta` of a changed pair says what was done and keeps the
    revision.

    Raises:
        ValueError: an unknown control; "blind" without `unchanged`.
    """
    if control in ("none", "sft"):
        return list(pairs)
    if control == "reversed":
        return [replace(pair, chosen=pair.rejected, rejected=pair.chosen, meta={**pair.meta, "control": control}) for pair in pairs]
    if control != "blind":
        raise ValueError(f"control {control!r}: unknown; there are {', '.join(CONTROLS)}")
    if unchanged is None:
        raise ValueError("control 'blind' draws among all readable questions: pass unchanged=read_unchanged(dropped.jsonl)")
    everything = sorted({pair.pair_id: pair for pair in (*pairs, *unchanged)}.values(), key=lambda pair: (pair.video, pair.pair_id))
    questions = {pair.pair_id: _question(pair) for pair in everything}
    pool: dict[str, list[PreferencePair]] = {}
    for pair in everything:
        pool.setdefault(question_shape(questions[pair.pair_id]), []).append(pair)
    draw = random.Random(f"blind/{seed}")
    order = list(everything)
    draw.shuffle(order)
    made: list[PreferencePair] = []
    kept = [pair for pair in pairs if same_answer(pair.chosen, pair.rejected)]
    changes = len(pairs) - len(kept)
    for pair in order:
        if len(made) == len(pairs):
            break
        meta = {**pair.meta, "control": control, "revision": pair.chosen}
        if changes:
            question = questions[pair.pair_id]
            if others := _other_answers(pair, question, pool[question_shape(question)]):
                made.append(replace(pair, chosen=draw.choice(others), rejected=pair.initial, meta=meta))
                changes -= 1
                continue
        if kept:
            made.append(replace(pair, chosen=pair.initial, rejected=pair.initial, meta=meta))
    return made


def _question(pair: PreferencePair) -> Question:
    read = parse_question(pair.question)
    return Question(pair.question) if isinstance(read, Unreadable) else read


def _other_answers(pair: PreferencePair, question: Question, same_shape: Sequence[PreferencePair]) -> list[str]:
    """Answers that differ from the initial one, found without looking at this question's critique."""
    if question.options:
        given = choice(pair.initial, question)
        return [_with_option(pair.initial, question, given, letter) for letter in question.letters if letter != given]
    found = {other.chosen for other in same_shape if other.video != pair.video and not same_answer(other.chosen, pair.initial)}
    return sorted(found)


def _with_option(answer: str, question: Question, given: str | None, letter: str) -> str:
    """The answer with another option in it: its letter in the letter's place, its text in the text's."""
    texts = dict(question.options)
    if given is None:
        return letter
    out = _MARK.sub(lambda mark: mark.group(1) + (letter if mark.group(2) == given else mark.group(2)), answer)
    out = re.sub(rf"(?<!\w){re.escape(texts[given])}(?!\w)", lambda _: texts[letter], out, flags=re.IGNORECASE)
    return out if out != answer else letter


def run_iteration(
    lm_path: str | Path,
    videos: Iterable[Path],
    out_dir: str | Path,
    align: AlignSettings,
    dpo: DPOSettings,
    control: Control = "none",
    *,
    failures: FailureLog | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> IterationResult:
    """Run one iteration into `out_dir`/{pairs.jsonl, dropped.jsonl, train/, model/}; run again, it does only what is missing.

    `progress` is called with (stage, done, total), stages "propose" and "train". With control "sft" the method is "sft" whatever `dpo`
    says. A control other than "none" leaves its pairs in train_pairs.jsonl. With no pair to train on the model is copied and the failure
    listed.

    Raises:
        ResumeError: `out_dir` holds pairs of another model, other settings or other videos.
        StageError: `out_dir` holds a model trained from other pairs or with other settings.
        ModelError: `lm_path` is no usable checkpoint.
    """
    out = Path(out_dir)
    failures = FailureLog(out / "failures.jsonl") if failures is None else failures
    if control == "sft":
        dpo = dpo.model_copy(update={"method": "sft", "rpo_alpha": 0.0})
    seconds: dict[str, float] = {}
    lm = _Lazy(lm_path)
    pairs_file = out / PAIRS_FILE

    began = time.perf_counter()
    was_complete = is_complete(pairs_file)
    made = propose(
        lm.for_reading(was_complete),
        videos,
        align,
        out=pairs_file,
        dropped=out / DROPPED_FILE,
        failures=failures,
        progress=None if progress is None else lambda done, total: progress("propose", done, total),
    )
    pairs = list(made)
    if not was_complete:
        seconds["propose"] = time.perf_counter() - began

    train_file = pairs_file
    if control in ("reversed", "blind"):
        train_file = out / TRAIN_PAIRS_FILE
        write_pairs(train_file, transform_pairs(pairs, control, seed=align.seed, unchanged=read_unchanged(out / DROPPED_FILE)))
    inputs = sha256_json(
        {"model": lm.fingerprint, "pairs": sha256_file(train_file), "settings": dpo.model_dump(mode="json", exclude=set(MACHINE_ONLY))}
    )
    result_file = out / RESULT_FILE
    if not _finished(result_file, out / MODEL_FOLDER, inputs):
        began = time.perf_counter()
        row = _train(lm, read_pairs(train_file), dpo, out, failures, None if progress is None else progress)
        write_json_atomic(result_file, {"inputs": inputs, **row})
        seconds["train"] = time.perf_counter() - began
    row = json.loads(result_file.read_text(encoding="utf-8"))
    return IterationResult(
        pairs_file=pairs_file,
        model=out / MODEL_FOLDER,
        counts=read_counts(pairs_file),
        pairs_used=row["pairs_used"],
        pairs_dropped=row["pairs_dropped"],
        steps=row["steps"],
        trained=row["trained"],
        seconds=seconds,
    )


class _Lazy:
    """A checkpoint that is loaded when its weights are needed; its fingerprint costs no loading."""

    def __init__(self, path: str | Path) -> None:
        from savi.conversion.checkpoint import weights_fingerprint

        self.path = Path(path)
        self.fingerprint = weights_fingerprint(self.path)
        self._lm: VideoLM | None = None

    def load(self) -> VideoLM:
        if self._lm is None:
            from savi.engine.video_lm import VideoLM

            self._lm = VideoLM.from_pretrained(self.path)
        return self._lm

    def for_reading(self, complete: bool) -> Any:
        """The model, or, where nothing is left to be asked, what stands for it: its fingerprint."""
        return self if complete else self.load()


def _finished(result_file: Path, model: Path, inputs: str) -> bool:
    """Whether training was finished from these inputs.

    Raises:
        StageError: it was finished from others.
    """
    if not result_file.exists() or not model.is_dir():
        return False
    if json.loads(result_file.read_text(encoding="utf-8"))["inputs"] != inputs:
        raise StageError(f"{model}: was trained from another model, other pairs or other settings; take another folder or delete it")
    return True


def _train(
    lm: _Lazy,
    pairs: list[PreferencePair],
    dpo: DPOSettings,
    out: Path,
    failures: FailureLog,
    progress: Callable[[str, int, int], None] | None,
) -> dict[str, Any]:
    from savi.training.examples import NoPairsError
    from savi.training.trainer import train

    loaded = lm.load()
    try:
        result = train(loaded, pairs, dpo, out, progress=None if progress is None else lambda done, total: progress("train", done, total))
    except NoPairsError as error:
        failures.add(what="training", where=out.name, why=str(error), stage="train")
        shutil.rmtree(out / MODEL_FOLDER, ignore_errors=True)
        partial = out / f"{MODEL_FOLDER}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(lm.path, partial)
        partial.rename(out / MODEL_FOLDER)
        return {"pairs_used": 0, "pairs_dropped": {}, "steps": 0, "trained": False}
    dropped = {pair.pair_id: pair.reason for pair in result.pairs_dropped}
    return {"pairs_used": result.pairs_used, "pairs_dropped": dropped, "steps": result.steps, "trained": True}


__all__ = ["CONTROLS", "Control", "IterationResult", "StageError", "run_iteration", "transform_pairs"]
