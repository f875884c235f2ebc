"""The card of a model folder, README.md; its YAML is written by huggingface_hub's own classes.

A card says nothing that a digest is taken of: `savi.base.stamp.files_below` leaves it out, so that scores may be added to it later. It
holds no times, and no path of this machine.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from savi.base.files import write_text_atomic
from savi.base.stamp import CARD_FILE

_PROJECT = "videosavi-harness"
_LICENCE = ("license", "license_name", "license_link")
_HUB_CACHE = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/")

Settings = Mapping[str, tuple[Any, str]]
"""Value and source of each setting."""


@dataclass(frozen=True)
class Lineage:
    """Where a model comes from: its id on the hub ("" where it is not known), and the keys of its card that say its licence."""

    base: str = ""
    licence: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CardScore:
    """A score for `model-index`, in percent, with its 95 % interval (None: not known) and number of questions."""

    dataset: str
    name: str
    value: float
    interval: tuple[float, float] | None
    n: int

    @property
    def shown(self) -> str:
        return f"{self.interval[0]:.1f} to {self.interval[1]:.1f}" if self.interval else "not known"


@dataclass(frozen=True)
class Trained:
    """What a training did: pairs used and left out, steps, settings. `data`: what the pairs are, in a sentence."""

    pairs: int
    left_out: int
    steps: int
    settings: Settings
    data: str = ""
    scores: Sequence[CardScore] = ()
    code: str = ""


def code_version() -> str:
    """The version of this project."""
    return f"{_PROJECT} {metadata.version(_PROJECT)}"


def lineage(folder: Path | None) -> Lineage:
    """What a base model's folder says of its origin: its place in the hub's cache, and its card's `base_model` and licence."""
    if folder is None:
        return Lineage()
    cached = _HUB_CACHE.search(folder.absolute().as_posix())
    said = _card_data(folder / CARD_FILE)
    base = f"{cached[1]}/{cached[2]}" if cached else said.get("base_model", "")
    return Lineage(base if isinstance(base, str) else "", {key: str(said[key]) for key in _LICENCE if said.get(key)})


def _card_data(path: Path) -> dict[str, Any]:
    """A card's YAML; nothing where there is no card, or one that cannot be read: its words are others'."""
    from huggingface_hub import ModelCard

    try:
        found = ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()
    except Exception:  # noqa: BLE001 - whatever its YAML holds, a base can be used without its card
        return {}
    return dict(found)


def write_model_card(folder: Path, name: str, base: Lineage, made: Trained | None, *, base_fingerprint: str = "", how: str = "") -> Path:
    """Write a model folder's README.md. `made` None: the weights are the base's; `how` says what was done with them."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    scores = made.scores if made is not None else ()
    results = [
        EvalResult(
            task_type="video-text-to-text",
            dataset_type=score.dataset,
            dataset_name=score.name,
            metric_type="accuracy",
            metric_name=f"accuracy (95% interval {score.shown}, {score.n} questions)",
            metric_value=round(score.value, 2),
            metric_args={"interval_95": [round(end, 2) for end in score.interval or ()], "n": score.n},
        )
        for score in scores
    ]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="video-text-to-text",
        tags=["videosavi", *(["dpo", "trl"] if made is not None else [])],
        base_model=base.base or None,
        model_name=name if results else None,
        eval_results=results or None,
        **base.licence,
    )
    text = "\n\n".join(part for part in (f"# {name}", _origin(base, base_fingerprint, how), *_training(made), *_use()) if part)
    return write_text_atomic(folder / CARD_FILE, str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")))


def _origin(base: Lineage, fingerprint: str, how: str) -> str:
    model = f"`{base.base}`" if base.base else "a base model that is not named on the hub"
    weights = f" (fingerprint of its weights: `{fingerprint[:16]}`)" if fingerprint else ""
    stated = base.licence.get("license_name") or base.licence.get("license")
    licence = f"Licence of the base: {stated}." if stated else "The base states no licence here: see where it comes from."
    return f"{how or 'Made'} from {model}{weights}. {licence}"


def _training(made: Trained | None) -> list[str]:
    if made is None:
        return []
    parts = [
        "## Training",
        f"{made.steps} steps on {made.pairs} preference pairs ({made.left_out} left out)" + (f": {made.data}." if made.data else "."),
        settings_table(made.settings),
    ]
    if made.scores:
        rows = [(one.name, f"{one.value:.1f}", one.shown, str(one.n)) for one in made.scores]
        parts += ["## Scores", table(("benchmark", "accuracy", "95% interval", "questions"), rows)]
    return [*parts, f"Code: {made.code or code_version()}."]


def _use() -> list[str]:
    return [
        "## Use",
        "The folder is a plain transformers checkpoint: no code of its own, no `trust_remote_code`.",
        '```bash\npython -m savi ask VIDEO "What happens?" --model THIS_FOLDER\n```',
    ]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines)


def settings_table(settings: Settings) -> str:
    """Settings, their values and sources."""
    return table(("setting", "value", "source"), [(key, str(value), source) for key, (value, source) in settings.items()])


def sources(settings: Any, ignore: Collection[str] = ()) -> dict[str, tuple[Any, str]]:
    """The values of a settings object (a pydantic model, or a dataclass), each with whether it is the default."""
    if is_dataclass(settings):
        names = {one.name: one.default if one.default_factory is MISSING else one.default_factory() for one in fields(settings)}
    else:
        names = {name: one.get_default(call_default_factory=True) for name, one in type(settings).model_fields.items()}
    found = {name: (getattr(settings, name), default) for name, default in names.items() if name not in ignore}
    return {name: (_plain(value), "default" if value == default else "set") for name, (value, default) in found.items()}


def _plain(value: Any) -> Any:
    return ", ".join(f"{one.name} {getattr(value, one.name)}" for one in fields(value)) if is_dataclass(value) else value
