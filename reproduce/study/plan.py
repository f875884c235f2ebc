"""What a study runs: base models, loop seeds and variants; each run's settings, their digest, and its command. Runs nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from benchmarks.micro.pretrain.recipe import Recipe
from reproduce.bases.make import base_folder
from reproduce.run_dir import NOT_IDENTITY, RunDirError, base_identity
from reproduce.scale import Scale, ScaleError, load_scale
from reproduce.study.variants import METHOD, NEXT_BASE, VARIANTS
from savi.base.digests import sha256_json
from savi.base.errors import SaviError, UsageError

SHIPPED = "shipped"
TRAINING_FILE = "training.json"
RECIPE = "recipe-"
"""A base of the recipe is named by its seed: recipe-3."""
LINE = "ours: this study"


class StudyError(SaviError, RuntimeError):
    """A study that cannot go on, or runs of it that ended badly; names them, and where to look."""


@dataclass(frozen=True)
class Base:
    """A base model: its name in the study, its folder, its recipe's seed (None: it was brought), and its loop seeds."""

    name: str
    path: Path
    recipe: int | None
    seeds: tuple[int, ...]

    @property
    def there(self) -> bool:
        """Whether it has been made. training.json is written after the weights.

        Raises:
            UsageError: another recipe's base is in its place.
        """
        if self.recipe is None:
            return any(self.path.glob("*.safetensors"))
        if not (self.path / TRAINING_FILE).is_file():
            return False
        if self.facts.get("recipe") != json.loads(json.dumps(asdict(replace(Recipe(), seed=self.recipe)))):
            raise UsageError(f"{self.path}: a base of another recipe, or of another seed; take another --base-dir, or move it away")
        return True

    @property
    def facts(self) -> dict[str, Any]:
        """What its training left; empty where nothing can be read."""
        try:
            found = json.loads((self.path / TRAINING_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @cached_property
    def fingerprint(self) -> str:
        """Of its files; see `base_identity`, whose errors it raises."""
        return base_identity(self.path)

    def command(self) -> list[str]:
        """How it is made: the recipe's own command."""
        words = [sys.executable, "-m", "benchmarks", "micro", "--rebuild-base"]
        return [*words, "--seed", str(self.recipe), "--out", str(self.path)]


@dataclass(frozen=True)
class Run:
    """One run of the study."""

    base: Base
    seed: int
    variant: str
    critic: Base | None = None

    @property
    def name(self) -> str:
        return f"{self.base.name}-seed{self.seed}-{self.variant}"


@dataclass(frozen=True)
class Plan:
    """A study. `settings`: what it changes of the scale, for all variants. `frozen`: the digest of its freezing file. `other_iterations`:
    how many iterations controls and rivals have; None: as many as the method.

    Raises:
        UsageError: a variant needs more base models, or more iterations than the method has.
        ScaleError: a setting cannot be.
    """

    out: Path
    bases: tuple[Base, ...]
    variants: tuple[str, ...]
    scale: str = "micro"
    settings: Mapping[str, Any] = field(default_factory=dict)
    frozen: str = ""
    other_iterations: int | None = None

    def __post_init__(self) -> None:
        if self.other_iterations is not None and self.other_iterations > (most := self.common.loop.iterations.value):
            raise UsageError(
                f"--other-iterations {self.other_iterations}: controls and rivals are compared with the method, which has {most}"
            )
        if any(VARIANTS[name].other_critic for name in self.variants) and len(self.bases) < 2:
            raise UsageError("variant other-critic takes the study's next base model as the critic: give at least two --bases")
        for run in {run.variant: run for run in self.runs()}.values():
            self.resolved(run)  # a setting that cannot be is said now, not by every run

    def runs(self) -> list[Run]:
        """Every run, the method first."""
        following = (*self.bases[1:], *self.bases[:1])
        return [
            Run(base, seed, name, after if VARIANTS[name].other_critic else None)
            for name in self.variants
            for base, after in zip(self.bases, following, strict=True)
            for seed in base.seeds
        ]

    @cached_property
    def common(self) -> Scale:
        """The settings that all variants share."""
        return load_scale(self.scale, {key: (value, LINE) for key, value in self.settings.items()})

    def changes(self, run: Run) -> dict[str, Any]:
        """What a run changes of its scale."""
        changed = {**self.settings, **VARIANTS[run.variant].settings(self.common), "loop.seed": run.seed}
        if self.other_iterations is not None and VARIANTS[run.variant].kind in ("control", "rival"):
            changed["loop.iterations"] = self.other_iterations
        if changed.get("loop.critic") == NEXT_BASE and run.critic is not None:
            changed["loop.critic"] = str(run.critic.path)
        return changed

    def resolved(self, run: Run) -> Scale:
        """A run's whole settings.

        Raises:
            ScaleError: a setting cannot be.
        """
        return load_scale(self.scale, {key: (value, LINE) for key, value in self.changes(run).items()})

    @cached_property
    def _values(self) -> dict[str, dict[str, Any]]:
        """The settings of each variant that decide a result."""
        first = {run.variant: run for run in reversed(self.runs())}
        return {
            name: {key: one.value for key, one in self.resolved(run).settings().items() if key not in NOT_IDENTITY}
            for name, run in first.items()
        }

    def settings_digest(self, run: Run) -> str:
        """Over all settings that decide what comes of a run, without paths: models are named by their fingerprints."""
        values = self._values[run.variant] | {"loop.seed": run.seed, "model.base": run.base.fingerprint}
        if run.critic is not None:
            values["loop.critic"] = run.critic.fingerprint
        return sha256_json({"scale": self.scale, **values})

    def folder(self, run: Run) -> Path:
        return self.out / "runs" / run.name

    def command(self, run: Run) -> list[str]:
        """A run in a process of its own, of one thread; it takes from the method's run, if there is one, what would come out the same."""
        words = [sys.executable, "-m", "reproduce", "paper", "--scale", self.scale, "--out", str(self.folder(run)), "--processes", "1"]
        if run.base.name != SHIPPED:
            words += ["--base", str(run.base.path)]
        method = self.folder(replace(run, variant=METHOD, critic=None))
        if run.variant != METHOD and (method / "run.json").is_file():
            words += ["--take-from", str(method)]
        for key, value in self.changes(run).items():
            words += ["--set", f"{key}={yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix('...' + chr(10)).strip()}"]
        return words


def frozen_settings(scale: Scale) -> dict[str, Any]:
    """The settings that a freezing file holds: all that decide a result but those that name a run (its base and its seed)."""
    named = ("model.base", "loop.seed")
    return {key: one.value for key, one in scale.settings().items() if key not in (*NOT_IDENTITY, *named)}


def read_bases(text: str, seeds: str, base_dir: Path) -> tuple[Base, ...]:
    """Base models as typed. `12`: the recipe's seeds 1 to 12; `101,102` or `recipe-101`: those seeds of the recipe; else folders, or
    `shipped`.

    `seeds`: how many loop seeds each base has, or for one base the seeds themselves (`0,1,2`). No two bases share a seed: what it brings
    would be in both, and an interval over bases would leave it out.

    Raises:
        UsageError: neither, one is named twice, or a folder holds no model.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise UsageError("--bases: how many (12), recipe seeds (101,102), folders, or shipped")
    if len(words) == 1 and "," not in text and words[0].isdecimal():
        words = [str(seed) for seed in range(1, int(words[0]) + 1)]
    found = []
    for position, word in enumerate(words, start=1):
        word = word.removeprefix(RECIPE) if word.removeprefix(RECIPE).isdecimal() and not Path(word).is_dir() else word
        if word.isdecimal():
            found.append(Base(f"{RECIPE}{int(word)}", base_folder(base_dir, int(word)), int(word), _seeds(seeds, int(word), len(words))))
        else:
            found.append(_brought(word, _seeds(seeds, position, len(words))))
    names = [base.name for base in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"--bases: {twice} is named twice; the folders' names name the bases")
    if not names:
        raise UsageError("--bases 0: a study needs a base model")
    return tuple(found)


def _brought(word: str, seeds: tuple[int, ...]) -> Base:
    from reproduce.paper.experiment import shipped_base

    path = shipped_base() if word == SHIPPED else Path(word)
    try:
        base_identity(path)
    except RunDirError as error:
        raise UsageError(f"--bases: {error}") from error
    return Base(SHIPPED if word == SHIPPED else path.resolve().name, path, None, seeds)


def _seeds(text: str, number: int, bases: int) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() for word in words):
        raise UsageError(f"--seeds {text!r}: how many loop seeds a base (1), or the seeds of one base (0,1,2)")
    if "," in text:
        if bases > 1:
            raise UsageError(f"--seeds {text}: the same seeds for {bases} bases; say how many, and each base has its own")
        return tuple(dict.fromkeys(int(word) for word in words))
    if int(words[0]) < 1 or int(words[0]) > 100:
        raise UsageError(f"--seeds {text}: between 1 and 100 loop seeds a base")
    return tuple(100 * number + k for k in range(int(words[0])))


def read_variants(*texts: str) -> tuple[str, ...]:
    """The method and the variants named, in their own order; `none` names no variant.

    Raises:
        UsageError: one is unknown.
    """
    names = {word.strip() for text in texts for word in text.split(",") if word.strip()} - {"none"}
    if unknown := sorted(names - set(VARIANTS)):
        raise UsageError(f"unknown variant {', '.join(unknown)}; there are {', '.join(VARIANTS)}")
    return tuple(name for name in VARIANTS if name == METHOD or name in names)


def check_scale(name: str) -> None:
    """Refuse a scale that a study cannot run at.

    Raises:
        ScaleError: it is unknown, or needs real data.
    """
    if load_scale(name).data == "real":
        raise ScaleError(f"scale {name!r} needs real data; a study runs at a scale of synthetic data (micro, smoke)")
