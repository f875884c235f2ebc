"""The folder a training run leaves: what it was made from and its result (train/result.json), its log, and the model.

A finished training is not repeated, and the result of another one is not replaced. The module knows no losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from savi.base.digest_memory import remembered_sha256
from savi.base.digests import canonical_json, sha256_json
from savi.base.errors import ResumeError
from savi.base.files import new_folder, read_jsonl
from savi.base.stamp import Stamp, files_below, read_stamp
from savi.cards.model_card import Trained, lineage, write_model_card
from savi.loop.preferences import PreferencePair
from savi.training.examples import DroppedPair
from savi.training.settings import SPEED_ONLY, DPOSettings

if TYPE_CHECKING:
    from savi.engine.video_lm import VideoLM

TRAIN_FOLDER = "train"
MODEL_FOLDER = "model"
LOG_FILE = "train/log.jsonl"
RESULT_FILE = "train/result.json"


@dataclass(frozen=True)
class TrainResult:
    """`checkpoint`: folder of the trained weights, a plain checkpoint; `log`: the rows of train/log.jsonl; the pairs dropped, and why.
    `trained` False: there was no pair to train on, and the checkpoint is a copy of the old one."""

    checkpoint: Path
    log: tuple[dict[str, float], ...]
    steps: int
    pairs_used: int
    pairs_dropped: tuple[DroppedPair, ...]
    trained: bool = True


def made_from(model: str, pairs: Sequence[PreferencePair], settings: DPOSettings) -> dict[str, Any]:
    """What a training depends on: the model's fingerprint, the pairs whatever their order and place, the settings but those of speed."""
    rows = sorted(
        [pair.pair_id, pair.prompt, pair.chosen, pair.rejected, str(pair.meta.get("num_frames"))]
        + ([canonical_json([pair.system, pair.history])] if pair.system or pair.history else [])
        for pair in pairs
    )
    return {"model": model, "pairs": sha256_json(rows), "settings": settings.model_dump(mode="json", exclude=set(SPEED_ONLY))}


def finished(out: Path, inputs: Mapping[str, Any]) -> TrainResult | None:
    """The result of a training from these inputs, if it was finished and its model is still what was written.

    Raises:
        ResumeError: another training was finished there, or is under way.
    """
    stamp, model = read_stamp(out / RESULT_FILE), out / MODEL_FOLDER
    differing = ["unknown inputs"] if stamp is None else [f"another {name}" for name in stamp.differing(inputs)]
    left = [path for path in (model, *(out / TRAIN_FOLDER).glob("checkpoint-*")) if path.exists()]
    if differing and left:
        raise ResumeError(f"{left[0]}: was made from {' and '.join(differing)}; take another folder, or move it away")
    if stamp is None or differing or not stamp.done or stamp.changed(out, remembered_sha256):
        return None
    log = tuple(read_jsonl(out / LOG_FILE)) if (out / LOG_FILE).exists() else ()
    facts = dict(stamp.facts)
    dropped = tuple(DroppedPair(**pair) for pair in facts.pop("pairs_dropped"))
    return TrainResult(model, log, pairs_dropped=dropped, **facts)


def begin(out: Path, inputs: Mapping[str, Any]) -> None:
    """Write down what is being made, before anything of it is there."""
    Stamp(inputs).write(out / RESULT_FILE)


def write_result(out: Path, inputs: Mapping[str, Any], result: TrainResult) -> None:
    """Write down that a training is finished."""
    dropped = [asdict(pair) for pair in result.pairs_dropped]
    facts = {"steps": result.steps, "pairs_used": result.pairs_used, "trained": result.trained, "pairs_dropped": dropped}
    Stamp.of(inputs, out, files_below(result.checkpoint), facts, remembered_sha256).write(out / RESULT_FILE)


def save(lm: VideoLM, folder: Path, made: Trained, *, fingerprint: str, state: Mapping[str, Tensor] | None = None) -> None:
    """Write the checkpoint and its card, whole or not at all. `fingerprint`: the base's; `state`: as in `save_pretrained`."""
    base = lineage(lm.source)
    name = f"{base.base.rpartition('/')[2] or 'A base model'} after {made.pairs} preference pairs"
    with new_folder(folder) as partial:
        lm.save_pretrained(partial, state=state)
        write_model_card(partial, name, base, made, base_fingerprint=fingerprint, how="Trained")
