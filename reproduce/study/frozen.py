"""The freezing file: what a study will run and how it will be read, written down and committed before it runs.

It holds every setting, the base models and loop seeds that these were chosen on and those that are reported, the estimator, the claims and
the rule by which one base model ships. A run under it has its digest in its record.
"""

from __future__ import annotations

import datetime as dt
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from reproduce.study.claims import CLAIMS, SMALLEST
from reproduce.study.estimate import ESTIMATOR
from reproduce.study.plan import Plan, frozen_settings
from reproduce.study.variants import VARIANTS
from savi.base.digests import sha256_file
from savi.base.errors import UsageError, one_line
from savi.base.files import write_text_atomic

FROZEN_FILE = "frozen.yaml"
SHIP_RULE = "median base by mean score: of the reported bases, the one whose mean over the benchmarks is the (lower) median"
HEAD = """\
# What this study runs and how it is read, decided before it runs. Commit it first; it is not changed afterwards.
"""


class Chosen(BaseModel):
    """Base models by name, each with its loop seeds, and the seed of the questions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bases: dict[str, list[int]]
    twins_seed: int


class Frozen(BaseModel):
    """A freezing file's content."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = 1
    date: dt.date
    scale: str
    settings: dict[str, Any]
    variants: list[str]
    tuned: Chosen
    reported: Chosen
    recipe: dict[str, Any] | None = None
    """How bases are made, all but the seed; None where the study makes none."""
    estimator: str = ESTIMATOR
    claims: list[str]
    other_iterations: int | None = None
    """Of controls and rivals; None: as many as the method."""
    smallest_points: Annotated[float, Field(gt=0)] = SMALLEST
    ship: str = SHIP_RULE

    @field_validator("variants")
    @classmethod
    def _variants(cls, names: list[str]) -> list[str]:
        if unknown := set(names) - set(VARIANTS):
            raise ValueError(f"unknown variant {sorted(unknown)[0]!r}")
        return names

    @field_validator("claims")
    @classmethod
    def _claims(cls, names: list[str]) -> list[str]:
        if unknown := set(names) - set(CLAIMS):
            raise ValueError(f"unknown claim {sorted(unknown)[0]!r}")
        return names

    @model_validator(mode="after")
    def _apart(self) -> Frozen:
        if both := set(self.tuned.bases) & set(self.reported.bases):
            raise ValueError(f"base {sorted(both)[0]} is tuned on and reported")
        tuned, reported = ({seed for seeds in chosen.bases.values() for seed in seeds} for chosen in (self.tuned, self.reported))
        if seeds := tuned & reported:
            raise ValueError(f"loop seed {min(seeds)} is tuned on and reported")
        if self.tuned.bases and self.tuned.twins_seed == self.reported.twins_seed:
            raise ValueError(f"twins_seed {self.tuned.twins_seed}: tuned and reported on the same questions")
        return self


def freeze(plan: Plan, tuned: Chosen, path: Path) -> Frozen:
    """Write the file for a plan.

    Raises:
        UsageError: there is one already, or what was tuned on is reported.
    """
    if path.exists():
        raise UsageError(f"{path}: is there already, and a frozen file is not changed; take another name")
    seed = plan.common.evaluation.twins_seed.value
    try:
        frozen = Frozen(
            date=dt.datetime.now(dt.UTC).date(),
            scale=plan.scale,
            settings=frozen_settings(plan.common),
            variants=list(plan.variants),
            tuned=tuned,
            reported=Chosen(bases={base.name: list(base.seeds) for base in plan.bases}, twins_seed=seed),
            recipe=recipe_of(plan),
            other_iterations=plan.other_iterations,
            claims=[name for name, c in CLAIMS.items() if {c.better.variant, c.worse.variant} <= set(plan.variants)],
        )
    except ValidationError as error:
        raise UsageError(f"--freeze: {one_line(error.errors()[0]['msg'])}") from error
    write_text_atomic(path, HEAD + yaml.safe_dump(frozen.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120))
    return frozen


def recipe_of(plan: Plan) -> dict[str, Any] | None:
    """The recipe that the plan's bases are made by, all but the seed; None where it makes none."""
    if all(base.recipe is None for base in plan.bases):
        return None
    from benchmarks.micro.pretrain.recipe import Recipe

    return {key: value for key, value in asdict(Recipe()).items() if key != "seed"}


def read_frozen(path: Path) -> Frozen:
    """A freezing file.

    Raises:
        UsageError: it is missing or damaged.
    """
    try:
        return Frozen.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else one_line(error)
        raise UsageError(f"{path}: no freezing file ({said})") from error


def differing(frozen: Frozen, plan: Plan) -> list[str]:
    """Where a plan is not what was frozen, in words. Some of the frozen variants alone are no difference: the rest can follow."""
    out = [f"scale {frozen.scale} is frozen, {plan.scale} was asked for"] if frozen.scale != plan.scale else []
    now = frozen_settings(plan.common)
    for key in sorted(set(frozen.settings) | set(now)):
        there = frozen.settings.get(key, "(unset)")
        if there != now.get(key, "(unset)"):
            out.append(f"{key}: {there} is frozen, {now.get(key, '(unset)')} now")
    if frozen.other_iterations != plan.other_iterations:
        out.append(f"other_iterations: {frozen.other_iterations} is frozen, {plan.other_iterations} now")
    out += [f"variant {name} is not frozen" for name in plan.variants if name not in frozen.variants]
    there, here = list(frozen.reported.bases.items()), [(base.name, list(base.seeds)) for base in plan.bases]
    if there != here:  # in order: it says whose critic is whose
        out.append(f"bases and loop seeds {_said(there)} are frozen, {_said(here)} were asked for")
    recipe, made_by = frozen.recipe or {}, recipe_of(plan) or {}
    for key in sorted(set(recipe) | set(made_by)):
        if (kept := recipe.get(key, "(unset)")) != (new := made_by.get(key, "(unset)")):
            out.append(f"recipe of the bases, {key}: {kept} is frozen, {new} now")
    if frozen.estimator != ESTIMATOR:
        out.append(f"estimator: {frozen.estimator!r} is frozen, {ESTIMATOR!r} now")
    return out


def _said(bases: Sequence[tuple[str, list[int]]]) -> str:
    return ", ".join(f"{name} ({' '.join(map(str, seeds))})" for name, seeds in bases)


def check_frozen(path: Path, plan: Plan) -> str:
    """The digest of a freezing file that a plan keeps to, committed where it lies in a git checkout.

    Raises:
        UsageError: the plan differs from it, or it has not been committed.
    """
    if found := differing(read_frozen(path), plan):
        raise UsageError(f"{path}: the study differs from what was frozen: " + "; ".join(found))
    if _uncommitted(path):
        raise UsageError(f"{path}: commit it before the study runs, so that its date is not the study's word alone")
    return sha256_file(path)


def _uncommitted(path: Path) -> bool:
    """Whether a file in a git checkout is not what the checkout's last commit holds."""

    def git(*words: str) -> Sequence[str] | None:
        try:
            done = subprocess.run(["git", "-C", str(path.resolve().parent), *words], capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.splitlines()

    if git("rev-parse", "--show-toplevel") is None:
        return False
    name = path.resolve().name
    return not git("ls-files", "--", name) or bool(git("status", "--porcelain", "--", name))
