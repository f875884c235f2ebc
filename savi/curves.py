"""What an iteration came to, as numbers for its curves: read from the files it left, so that a resumed run tells the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from savi.base.files import read_jsonl
from savi.loop.journal import read_counts
from savi.loop.preferences import read_pairs
from savi.loop.prompts import same_answer
from savi.training.settings import DPOSettings


def iteration_curves(folder: Path, dpo: DPOSettings) -> dict[str, float]:
    """The values of an iteration's folder; one that cannot be told from it is left out.

    * `pairs`, `videos`, `broken_videos`, `questions`: counts.
    * `validity`: the share of questions whose replies could be read at all four steps.
    * `critique_changed`: of those, the share whose revision differs from the answer. (Whether the critique was right, no one here knows.)
    * `length_drift`: words of the chosen answers by words of the rejected, over pairs that differ: above 1, training favours longer ones.
    * `loss`, `reward_chosen`, `reward_rejected`, `reward_margin`, `reward_accuracy`: of the last row of the training's log.
    * `kl`: how far the training went from its reference, in nats an answer: the mean of log(reference / policy) over rejected answers,
      which the reference sampled; an estimate, as the questions are those that made a pair. Losses without a reference have none.
    """
    pairs_file, log = folder / "pairs.jsonl", folder / "train" / "log.jsonl"
    counts = read_counts(pairs_file)
    values: dict[str, float] = {
        "pairs": counts.pairs,
        "videos": counts.videos,
        "broken_videos": counts.broken,
        "questions": counts.questions,
    }
    read = counts.pairs + counts.dropped.get("unchanged", 0)
    if counts.questions:
        values["validity"] = read / counts.questions
    if read:
        values["critique_changed"] = (counts.pairs - counts.equal) / read
    differ = [pair for pair in read_pairs(pairs_file) if not same_answer(pair.chosen, pair.rejected)]
    if differ:
        values["length_drift"] = _words([pair.chosen for pair in differ]) / max(1.0, _words([pair.rejected for pair in differ]))
    row: dict[str, float] = next(reversed(list(read_jsonl(log))), {}) if log.exists() else {}
    names = {
        "loss": "loss",
        "rewards/chosen": "reward_chosen",
        "rewards/rejected": "reward_rejected",
        "rewards/margins": "reward_margin",
        "rewards/accuracies": "reward_accuracy",
    }
    values |= {name: float(row[key]) for key, name in names.items() if key in row}
    if "reward_rejected" in values and dpo.objective.needs_reference:
        values["kl"] = -values["reward_rejected"] / dpo.beta
    return values


def _words(texts: Sequence[str]) -> float:
    return fmean(len(text.split()) for text in texts)
