"""A scale: every setting of the experiment at one size, each with its value and where that value comes from.

Scales are the YAML files in `reproduce/scales/`. A file may extend another (`extends: _paper`), so that a setting stands in one place.
The module must not know torch or lmms-eval: a plan, a refusal and a finished run need neither.
"""

from __future__ import annotations

import copy
import difflib
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from benchmarks.benchmark import TwinSize
from savi.base.errors import ExitCode, SaviError, one_line
from savi.loop.controls import SUPERVISED, Control
from savi.loop.prompts import KINDS, Kind
from savi.training.losses import LossName
from savi.training.settings import LrScheduler, Sharding

SCALES_DIR = Path(__file__).parent / "scales"
SECTIONS = ("model", "loop", "training", "evaluation", "machine", "architecture")
Data = Literal["real", "micro"]
T = TypeVar("T")


class ScaleError(SaviError, ValueError):
    """An unknown scale or a setting that cannot be: names the file, the setting and what may stand there."""

    exit_code = ExitCode.USAGE


def _known_source(text: str) -> str:
    head, _, why = text.partition(":")
    if head in ("paper", "release") or (head in ("derived", "related work", "ours", "command line") and why.strip()):
        return text
    raise ValueError(f"source {text!r}: say paper, release, 'derived: from what', 'related work: which', or 'ours: why'")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Setting(_Model, Generic[T]):
    """One value and its source: paper, release, derived (from what they say), related work (which), ours (why) or the command line."""

    value: T
    source: Annotated[str, AfterValidator(_known_source)]


Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class ModelSettings(_Model):
    base: Setting[str]
    """`shipped` (the micro base in benchmarks/micro/base), a hub id, or a folder."""


class LoopSettings(_Model):
    iterations: Setting[Positive]
    videos_per_iteration: Setting[Positive]
    num_frames: Setting[Positive]
    questions_per_kind: Setting[Positive]
    prompts: Setting[str]
    ask_temperature: Setting[Annotated[float, Field(ge=0)]]
    answer_temperature: Setting[Annotated[float, Field(ge=0)]]
    top_p: Setting[Annotated[float, Field(gt=0, le=1)]]
    ask_tokens: Setting[Positive]
    answer_tokens: Setting[Positive]
    critique_tokens: Setting[Positive]
    revise_tokens: Setting[Positive]
    chunk_videos: Setting[Positive]
    keep_equal: Setting[bool]
    kinds: Setting[Annotated[list[Kind], Field(min_length=1, max_length=len(KINDS))]] = Setting(value=list(KINDS), source="paper")
    critic: Setting[Annotated[str, Field(min_length=1)]] = Setting(value="self", source="paper")
    """`self`: the model of the iteration before; `base`: the base model in every iteration; `none`: no critique, the question is asked once
    more; or another model: a folder, or `shipped`."""
    early_stop: Setting[bool] = Setting(value=False, source="paper")
    """Train no more once the model's critiques change a larger share of its answers than before (`savi.loop.early_stop`)."""
    seed: Setting[int]


class TrainingSettings(_Model):
    """Fields named as in `savi.training.settings.DPOSettings`; `control` picks what the pairs are turned into before training."""

    control: Setting[Control]
    beta: Setting[Annotated[float, Field(gt=0)]]
    loss_type: Setting[LossName]
    loss_parameters: Setting[dict[str, float]] = Setting(value={}, source="ours: the loss's own defaults")
    rpo_alpha: Setting[Annotated[float, Field(ge=0)]]
    replay_critiques: Setting[Fraction] = Setting(value=0.0, source="ours: not published; DPO on answers alone")
    """The share of the pairs whose critiques are taught too, by the NLL term (`savi.loop.replay`)."""
    learning_rate: Setting[Annotated[float, Field(gt=0)]]
    epochs: Setting[Positive]
    pairs_per_step: Setting[Positive]
    lora_r: Setting[Annotated[int, Field(ge=0)]]
    lora_alpha: Setting[Positive]
    warmup_ratio: Setting[Fraction]
    lr_scheduler: Setting[LrScheduler]
    max_grad_norm: Setting[Annotated[float, Field(ge=0)]]
    weight_decay: Setting[Annotated[float, Field(ge=0)]]
    gradient_checkpointing: Setting[bool | Literal["auto"]]
    sharding: Setting[Sharding] = Setting(value="none", source="ours: the model whole on each GPU; changes no result")
    max_batch_tokens: Setting[Positive]
    logging_steps: Setting[Positive]
    save_steps: Setting[Annotated[int, Field(ge=0)]]


class EvaluationSettings(_Model):
    num_frames: Setting[Positive]
    limit: Setting[Positive | None]
    benchmarks: Setting[list[str]]
    """Names of the catalog; an empty list means all six."""
    twins: Setting[TwinSize | None]
    """Size of the small twins of the six data sets; none at paper scales, where the data sets themselves are used."""
    twins_seed: Setting[int]
    seed: Setting[int]
    alpha: Setting[Annotated[float, Field(gt=0, lt=0.5)]]


class MachineSettings(_Model):
    gpu_gb: Setting[Annotated[float, Field(ge=0)]]
    """GPU memory this scale needs; 0: none."""
    tflops: Setting[Annotated[float, Field(gt=0)]]
    """Sustained throughput assumed by the plan."""
    device: Setting[Literal["cpu", "cuda"]]
    """`cpu` hides any GPU from the run."""
    processes: Setting[Literal["auto", 1, 2]]
    """On this machine, without a launch: `auto` is two where there are two cores. It changes no result."""


class Architecture(_Model):
    """Sizes the plan counts with. `visual_tokens` a frame as the language model sees them, `vision_tokens` as the vision tower does."""

    language_params_b: Setting[float]
    vision_params_b: Setting[float]
    layers: Setting[Positive]
    hidden: Setting[Positive]
    visual_tokens: Setting[Positive]
    vision_tokens: Setting[Positive]
    weight_gb: Setting[float]


class Scale(_Model):
    """All settings of one experiment."""

    name: str
    title: str
    data: Data
    """`real`: the data sets themselves and the user's own videos; `micro`: synthetic videos and questions, made by the run."""
    published: str | None
    """The base model's row in results/paper/, which stands beside this scale's rows; none where nothing is published at this scale."""
    model: ModelSettings
    loop: LoopSettings
    training: TrainingSettings
    evaluation: EvaluationSettings
    machine: MachineSettings
    architecture: Architecture

    @model_validator(mode="after")
    def _data_agree(self) -> Scale:
        if (self.evaluation.twins.value is None) != (self.data == "real"):
            raise ValueError(
                f"evaluation.twins is {self.evaluation.twins.value}, but data is {self.data}: twins belong to data: micro alone"
            )
        if self.published and self.data == "micro":
            raise ValueError(f"published is {self.published!r}, but data is micro: no published number is measured on synthetic data")
        t = self.training
        if t.replay_critiques.value and not t.rpo_alpha.value and t.control.value not in SUPERVISED:
            raise ValueError("training.replay_critiques needs training.rpo_alpha above 0: the NLL term alone learns from critiques")
        return self

    def settings(self) -> dict[str, Setting[Any]]:
        """Every setting by dotted name, in the order of the file."""
        out: dict[str, Setting[Any]] = {}
        for section in SECTIONS:
            part = getattr(self, section)
            for name in type(part).model_fields:
                out[f"{section}.{name}"] = getattr(part, name)
        return out

    def section(self, name: str) -> dict[str, Any]:
        """The plain values of one section."""
        part = getattr(self, name)
        return {field: getattr(part, field).value for field in type(part).model_fields}


def scale_names(folder: Path = SCALES_DIR) -> list[str]:
    """Every scale there is, from small to large: the YAML files of `folder` but those that only others extend (`_*.yaml`)."""

    def size(name: str) -> tuple[float, int]:
        try:
            raw = _read(folder, name, ())
            return float(raw["architecture"]["language_params_b"]["value"]), int(raw["loop"]["videos_per_iteration"]["value"])
        except (ScaleError, LookupError, TypeError, ValueError):
            return float("inf"), 0  # a broken file is still a scale: loading it says what is wrong

    return sorted((p.stem for p in folder.glob("[!_]*.yaml")), key=lambda name: (*size(name), name))


def load_scale(name: str, overrides: Mapping[str, tuple[Any, str]] | None = None, *, folder: Path = SCALES_DIR) -> Scale:
    """Read a scale; `overrides` maps dotted names to (value, source).

    Raises:
        ScaleError: no such scale, or a setting that cannot be (names file and setting).
    """
    if name not in (names := scale_names(folder)):
        raise ScaleError(f"unknown scale {name!r}; choose from auto, {', '.join(names)}")
    raw = _read(folder, name, ())
    for key, (value, source) in (overrides or {}).items():
        section, _, field = key.partition(".")
        raw.setdefault(section, {})[field] = {"value": value, "source": source}
    try:
        return Scale.model_validate({"name": name, **raw})
    except ValidationError as e:
        x = e.errors()[0]
        at = ".".join(map(str, x["loc"][:-1] if x["loc"][-1:] == ("value",) else x["loc"])) or "scale"
        where = (overrides or {})[at][1] if at in (overrides or {}) else f"{folder.name}/{name}.yaml"
        raise ScaleError(f"{where}: {at}: {x['msg']}") from e


def read_settings(texts: Iterable[str]) -> dict[str, Any]:
    """Settings as a person types them, `section.name=value` (the value as in YAML), by dotted name.

    Raises:
        ScaleError: no such setting, or no value (names the text and what may stand there).
    """
    known = set(load_scale("micro").settings())
    out: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(known))}"
            raise ScaleError(f"setting {text!r}: write section.name=value, as training.epochs=2; {hint}")
        try:
            out[key] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError) as e:
            raise ScaleError(f"setting {text!r}: its value cannot be read ({one_line(e)})") from e
    return out


def _read(folder: Path, name: str, seen: Iterable[str]) -> dict[str, Any]:
    path = folder / f"{name}.yaml"
    if name in seen:
        raise ScaleError(f"{path.name} extends itself ({' -> '.join([*seen, name])})")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as e:
        raise ScaleError(f"{path}: cannot be read ({one_line(e)})") from e
    if not isinstance(raw, dict):
        raise ScaleError(f"{path}: a scale is a mapping of sections")
    parent = raw.pop("extends", None)
    if parent is None:
        return raw
    merged = copy.deepcopy(_read(folder, parent, [*seen, name]))
    for key, value in raw.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key].update(value)
        else:
            merged[key] = value
    return merged


@dataclass(frozen=True)
class Gpu:
    """A CUDA GPU as the driver names it."""

    name: str
    memory_gb: float


def find_gpus() -> list[Gpu]:
    """CUDA GPUs by asking the driver's own tool, so that nothing heavy is imported; none where there is no driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        done = subprocess.run(
            [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    out = []
    for line in done.stdout.splitlines():
        name, _, memory = line.rpartition(",")
        if memory.strip().isdigit():
            out.append(Gpu(name.strip(), int(memory) / 1024))
    return out


@dataclass(frozen=True)
class Choice:
    """A scale and, in words, why that one."""

    name: str
    why: str


def choose_scale(asked: str, gpus: list[Gpu], *, videos: bool, folder: Path = SCALES_DIR) -> Choice:
    """The scale to run. `auto`: the largest scale with a published row that the largest GPU holds, if unlabelled videos were given; else
    micro.

    Raises:
        ScaleError: unknown scale.
    """
    if asked != "auto":
        load_scale(asked, folder=folder)
        return Choice(asked, "asked for on the command line")
    scales = [load_scale(name, folder=folder) for name in scale_names(folder)]
    need = {s.name: s.machine.gpu_gb.value for s in scales if s.published}
    if not gpus:
        return Choice("micro", f"no CUDA GPU found (the paper's scales need one with {min(need.values()):.0f} GB or more)")
    best = max(gpus, key=lambda g: g.memory_gb)
    fitting = [name for name in need if need[name] <= best.memory_gb]
    if not fitting:
        return Choice("micro", f"{best.name} has {best.memory_gb:.0f} GB; the smallest paper scale needs {min(need.values()):.0f} GB")
    largest = max(fitting, key=lambda name: need[name])
    if not videos:
        return Choice(
            "micro", f"{best.name} ({best.memory_gb:.0f} GB) would hold scale {largest}, but that needs unlabelled videos: --videos DIR"
        )
    return Choice(largest, f"{best.name} has {best.memory_gb:.0f} GB; scale {largest} needs {need[largest]:.0f} GB")
