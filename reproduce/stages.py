"""Stages: each reads files and writes files, and is not run again while its outputs stand and its inputs are the same.

A finished stage leaves a stamp: the fingerprint of what it was made from, and size and digest of every file it made. The fingerprint covers
the settings it depends on and the digests of the stages it reads, so a change runs through to everything behind it. A stage whose stamp is
missing (killed on the way) runs again and must continue or overwrite what it finds. The module knows nothing of the experiment.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from savi.base.digests import sha256_file, sha256_json
from savi.base.errors import SaviError
from savi.base.files import write_text_atomic

STAMPS = ".stages"
STAMP_SCHEMA = 1
HASH_BELOW = 16 << 20
"""Files from this size on are known by their size alone: reading 16 GB of weights to find them unchanged is not worth the time."""


class Progress(Protocol):
    """Told how far a stage is: `done` of `total`."""

    def __call__(self, done: int, total: int, /) -> None: ...


class Console(Protocol):
    """What the runner says to the person."""

    def begin(self, stage: Stage, number: int, of: int) -> Progress: ...
    def end(self, stage: Stage, summary: str, seconds: float) -> None: ...
    def skip(self, stage: Stage, summary: str) -> None: ...
    def remark(self, text: str) -> None: ...


@dataclass(frozen=True)
class StageContext:
    """What a stage's function is given: the run's folder, where to report progress, where to list failures."""

    run: Path
    progress: Progress
    failures: Path


@dataclass(frozen=True)
class Stage:
    """One step. `settings`: what of the configuration it depends on; `after`: stages whose outputs it reads; `outputs`: files or folders
    below the run's folder; `run`: does it and returns one line for people (without times)."""

    name: str
    title: str
    settings: Mapping[str, Any]
    after: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Callable[[StageContext], str] = field(compare=False, repr=False)


class StageError(SaviError):
    """A stage that did not make what it promised."""


@dataclass(frozen=True)
class Stamp:
    """What a finished stage left: the fingerprint of its inputs, {file: [bytes, sha256 or ""]}, its line for people."""

    fingerprint: str
    files: dict[str, tuple[int, str]]
    summary: str

    @property
    def digest(self) -> str:
        return sha256_json({name: list(v) for name, v in self.files.items()})


def stamp_path(run: Path, stage: str) -> Path:
    return run / STAMPS / f"{stage.replace('/', '.')}.json"


def failures_path(run: Path, stage: str) -> Path:
    return run / STAMPS / f"{stage.replace('/', '.')}.failures.jsonl"


def read_stamp(run: Path, stage: str) -> Stamp | None:
    """The stamp, or None where there is none that can be read (then the stage runs again, which is always safe)."""
    try:
        raw = json.loads(stamp_path(run, stage).read_text(encoding="utf-8"))
        if raw["schema"] != STAMP_SCHEMA:
            return None
        return Stamp(raw["fingerprint"], {k: (int(v[0]), str(v[1])) for k, v in raw["files"].items()}, str(raw["summary"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def fingerprint(stage: Stage, digests: Mapping[str, str]) -> str:
    """What the stage would be made from now."""
    return sha256_json(
        {"schema": STAMP_SCHEMA, "name": stage.name, "settings": stage.settings, "inputs": {n: digests[n] for n in stage.after}}
    )


def changed_files(run: Path, stamp: Stamp) -> list[str]:
    """The outputs that are gone or no longer what the stage made."""
    return [
        name
        for name, (size, sha) in stamp.files.items()
        if not (path := run / name).is_file() or path.stat().st_size != size or (sha and sha256_file(path) != sha)
    ]


def _remove_outputs(run: Path, stage: Stage) -> None:
    """Remove what a run of other inputs left, so that nothing of it is taken for this one's."""
    for name in stage.outputs:
        path = run / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    failures_path(run, stage.name).unlink(missing_ok=True)


def _remove_beside(run: Path, stamp: Stamp, changed: Sequence[str]) -> None:
    """Remove the changed files and the stage's other files in the same folders: what lies beside a changed file was made with it (a
    benchmark's questions and score, a checkpoint's parts), what lies elsewhere need not be made again."""
    folders = {Path(name).parent for name in changed}
    for name in stamp.files:
        if Path(name).parent in folders:
            (run / name).unlink(missing_ok=True)


def list_outputs(run: Path, stage: Stage) -> dict[str, tuple[int, str]]:
    """Size and digest of every file the stage promised.

    Raises:
        StageError: one is missing.
    """
    out: dict[str, tuple[int, str]] = {}
    for name in stage.outputs:
        path = run / name
        if path.is_dir():
            files = sorted(
                p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".") and not p.name.endswith((".lock", ".partial"))
            )
        elif path.is_file():
            files = [path]
        else:
            raise StageError(f"stage {stage.name} ended without making {name}")
        for p in files:
            size = p.stat().st_size
            out[p.relative_to(run).as_posix()] = (size, sha256_file(p) if size < HASH_BELOW else "")
    return out


@dataclass(frozen=True)
class Status:
    """Whether a stage is done, and if not, why not."""

    done: bool
    why: str = ""


def statuses(run: Path, stages: Sequence[Stage]) -> dict[str, Status]:
    """Which stages are done; one behind an undone one is undone too."""
    digests: dict[str, str] = {}
    out: dict[str, Status] = {}
    for stage in stages:
        waiting = [n for n in stage.after if n not in digests]
        if waiting:
            out[stage.name] = Status(False, f"waits for {waiting[0]}")
            continue
        stamp = read_stamp(run, stage.name)
        if stamp is None:
            out[stage.name] = Status(False, "not done yet")
        elif stamp.fingerprint != fingerprint(stage, digests):
            out[stage.name] = Status(False, "made from other inputs")
        elif changed := changed_files(run, stamp):
            out[stage.name] = Status(False, f"{changed[0]} is missing or changed")
        else:
            out[stage.name] = Status(True)
            digests[stage.name] = stamp.digest
    return out


def run_stages(
    run: Path, stages: Sequence[Stage], console: Console, *, note_timing: Callable[[str, Mapping[str, Any]], None] | None = None
) -> list[str]:
    """Run what is not done, in order; returns the names of the stages that were run.

    Raises:
        StageError: a stage did not make its outputs. Whatever a stage itself raises goes through; finished stages stay finished.
    """
    digests: dict[str, str] = {}
    ran: list[str] = []
    for number, stage in enumerate(stages, 1):
        now = fingerprint(stage, digests)
        stamp = read_stamp(run, stage.name)
        if stamp is not None and stamp.fingerprint == now:
            changed = changed_files(run, stamp)
            if not changed:
                digests[stage.name] = stamp.digest
                console.skip(stage, stamp.summary)
                continue
            console.remark(f"{stage.name}: {changed[0]} is missing or changed, so the stage runs again")
            _remove_beside(run, stamp, changed)
        elif stamp is not None:
            console.remark(f"{stage.name}: made from other inputs, so it runs again")
        stamp_path(run, stage.name).unlink(missing_ok=True)
        failures = failures_path(run, stage.name)
        failures.parent.mkdir(parents=True, exist_ok=True)
        begun = run / STAMPS / f"{stage.name.replace('/', '.')}.begun"
        if not begun.exists() or begun.read_text(encoding="utf-8") != now:
            _remove_outputs(run, stage)
            write_text_atomic(begun, now)
        progress = console.begin(stage, number, len(stages))
        started = time.monotonic()
        summary = stage.run(StageContext(run, progress, failures))
        seconds = time.monotonic() - started
        stamp = Stamp(now, list_outputs(run, stage), summary)
        write_text_atomic(
            stamp_path(run, stage.name),
            json.dumps({"schema": STAMP_SCHEMA, "fingerprint": now, "files": stamp.files, "summary": summary}, indent=0) + "\n",
        )
        digests[stage.name] = stamp.digest
        if note_timing is not None:
            note_timing(stage.name, {"wall_s": round(seconds, 2), "peak_memory_gb": peak_memory_gb()})
        console.end(stage, summary, seconds)
        ran.append(stage.name)
    return ran


def peak_memory_gb() -> float:
    """The most memory this process has held so far, in GB."""
    try:
        import resource
    except ImportError:
        return 0.0
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
