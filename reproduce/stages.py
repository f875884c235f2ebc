"""Stages: each reads files and writes files, and is not run again while its outputs are there and its inputs are the same.

A finished stage leaves a stamp (`savi.base.stamp`): what it was made from, and size and digest of every file it made. What it was made
from covers the settings it depends on and the digests of the stages it reads, so a change runs through to everything after it. A stage
without a finished stamp (killed on the way) runs again and must continue or overwrite what it finds. Outputs that do not belong to it are
moved aside and deleted when their replacement is there, never before. The module knows nothing of the experiment.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from savi.base.digest_memory import DigestMemory
from savi.base.errors import ExitCode, SaviError
from savi.base.files import make_folder, sync_files
from savi.base.stamp import Stamp, files_below, read_stamp

STAMPS = "stages"
"""A folder that every copy of a run takes along: file managers and uploads leave hidden ones out."""
MEMORY = ".digests.json"
START_OVER = "--start-over"


class Progress(Protocol):
    """Told how far a stage is: `done` of `total`."""

    def __call__(self, done: int, total: int, /) -> None: ...


class Ahead(Protocol):
    """Another process, which makes stages ahead of their turn: their files are there then, and the stage has little left to do."""

    def begin(self, job: tuple[str, Any], /) -> None: ...
    def wait(self, name: str, /) -> float: ...


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
    below the run's folder; `run`: does it and returns one line for people (without times). `beside`: the stage during which another
    process may make this one; `shared`: the processes of a launch share its work."""

    name: str
    title: str
    settings: Mapping[str, Any]
    after: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Callable[[StageContext], str] = field(compare=False, repr=False)
    beside: str = ""
    shared: bool = False


class StageError(SaviError):
    """A stage that did not make what it promised."""


class StampsLostError(SaviError):
    """Outputs without a single stamp: nothing tells what they were made from."""

    exit_code = ExitCode.USAGE


def _path(run: Path, stage: str, suffix: str) -> Path:
    return run / STAMPS / f"{stage.replace('/', '.')}{suffix}"


def stamp_path(run: Path, stage: str) -> Path:
    return _path(run, stage, ".json")


def failures_path(run: Path, stage: str) -> Path:
    return _path(run, stage, ".failures.jsonl")


def _aside(run: Path, stage: str) -> Path:
    """Where outputs wait that a stage replaces."""
    return _path(run, stage, ".replaced")


def made_from(stage: Stage, digests: Mapping[str, str]) -> dict[str, Any]:
    """What the stage would be made from now."""
    return {"settings": stage.settings, "inputs": {name: digests[name] for name in stage.after}}


def _memory(run: Path) -> DigestMemory:
    return DigestMemory(run, run / STAMPS / MEMORY)


def list_outputs(run: Path, stage: Stage) -> list[Path]:
    """Every file the stage promised.

    Raises:
        StageError: one is missing, or a folder is empty.
    """
    out: list[Path] = []
    for name in stage.outputs:
        found = files_below(run / name) if (run / name).exists() else []
        if not found:
            raise StageError(f"stage {stage.name} ended without making {name}")
        out += found
    return out


@dataclass(frozen=True)
class Status:
    """Whether a stage is done, and if not, why not."""

    done: bool
    why: str = ""


def statuses(run: Path, stages: Sequence[Stage]) -> dict[str, Status]:
    """Which stages are done; a stage after an undone one is undone too."""
    digests: dict[str, str] = {}
    out: dict[str, Status] = {}
    memory = _memory(run)
    for stage in stages:
        waiting = [n for n in stage.after if n not in digests]
        if waiting:
            out[stage.name] = Status(False, f"waits for {waiting[0]}")
            continue
        stamp = read_stamp(stamp_path(run, stage.name))
        if stamp is None or not stamp.done:
            out[stage.name] = Status(False, "not done yet")
        elif stamp.differing(made_from(stage, digests)):
            out[stage.name] = Status(False, "made from other inputs")
        elif changed := stamp.changed(run, memory.digest):
            out[stage.name] = Status(False, f"{changed[0]} is missing or changed")
        else:
            out[stage.name] = Status(True)
            digests[stage.name] = stamp.digest
    memory.save()
    return out


def refuse_lost_stamps(run: Path, stages: Sequence[Stage]) -> None:
    """Stop where results lie in a folder without a single stamp: made again, they would take hours, and these may be the only ones.

    Raises:
        StampsLostError: names what is there and what to do.
    """
    if any(read_stamp(stamp_path(run, stage.name)) is not None for stage in stages):
        return
    there = [name for stage in stages for name in stage.outputs if (run / name).exists() and files_below(run / name)]
    if there:
        raise StampsLostError(
            f"{run}: run.json and {len(there)} outputs are there ({there[0]}, ...), but no stamps in {STAMPS}/, so nothing tells what they "
            f"were made from; copy the run with its {STAMPS}/ folder, take another --out, or say {START_OVER} to make everything again"
        )


def take_stages(source: Path, target: Path, stages: Sequence[Stage]) -> list[str]:
    """Copy from another run the stages that would come out the same in this one: done there from the same settings and inputs, and
    unchanged since. What lies here stays as it is. Returns the names of those copied."""
    digests: dict[str, str] = {}
    taken = []
    for stage in stages:
        stamp = read_stamp(stamp_path(source, stage.name))
        if stamp is None or not stamp.done or any(name not in digests for name in stage.after):
            continue
        if stamp.differing(made_from(stage, digests)) or stamp.changed(source):
            continue
        digests[stage.name] = stamp.digest
        if stamp_path(target, stage.name).exists() or any((target / name).exists() for name in stage.outputs):
            continue
        listed = failures_path(source, stage.name)
        files = [*stamp.files, *([listed.relative_to(source).as_posix()] if listed.exists() else [])]
        for name in files:
            make_folder((target / name).parent)
            shutil.copy2(source / name, target / name)
        sync_files((target / name for name in files), target)
        stamp.write(stamp_path(target, stage.name))
        taken.append(stage.name)
    return taken


def drop_stamps(run: Path, stages: Sequence[Stage]) -> None:
    """Forget what is done: every stage runs again, its outputs kept until it has."""
    for stage in stages:
        stamp_path(run, stage.name).unlink(missing_ok=True)


def _set_aside(run: Path, stage: str, paths: Iterable[Path]) -> None:
    """Move files out of the way of a stage that makes them again; they are kept until it has."""
    aside = _aside(run, stage)
    for path in paths:
        target = aside / path.relative_to(run)
        if not path.exists() or target.exists():  # what was set aside first is the finished one
            continue
        make_folder(target.parent)
        path.rename(target)


def _others(run: Path, stage: Stage) -> list[Path]:
    """What lies where the stage's outputs go, and its list of failures."""
    return [*(run / name for name in stage.outputs), failures_path(run, stage.name)]


def _beside(run: Path, stamp: Stamp, changed: Sequence[str]) -> list[Path]:
    """The changed files and the stage's other files in the same folders: what lies beside a changed file was made with it (a benchmark's
    questions and score, a checkpoint's parts), what lies elsewhere need not be made again."""
    folders = {Path(name).parent for name in changed}
    return [run / name for name in stamp.files if Path(name).parent in folders]


def _make_ready(run: Path, stage: Stage, now: Mapping[str, Any], console: Console, memory: DigestMemory) -> Stamp | None:
    """The stage's finished stamp; or None, with whatever would be in its way set aside and its work marked as begun."""
    path = stamp_path(run, stage.name)
    stamp = read_stamp(path)
    differing = [] if stamp is None else stamp.differing(now)
    if stamp is not None and stamp.done and not differing:
        changed = stamp.changed(run, memory.digest)
        if not changed:
            return stamp
        console.remark(f"{stage.name}: {changed[0]} is missing or changed, so the stage runs again")
        _set_aside(run, stage.name, _beside(run, stamp, changed))
    elif stamp is None or differing:
        if stamp is not None and stamp.done:
            console.remark(f"{stage.name}: made from other inputs, so it runs again")
        _set_aside(run, stage.name, _others(run, stage))
    Stamp(now).write(path)
    return None


def in_turn(stages: Sequence[Stage]) -> list[Stage]:
    """The order in which stages are run where another process makes some of them ahead: those, and what reads them, after the stage they
    are made beside."""
    names = {stage.name: i for i, stage in enumerate(stages)}
    order: list[Stage] = []
    waiting: list[Stage] = []
    for i, stage in enumerate(stages):
        if names.get(stage.beside, -1) > i or any(other.name in stage.after for other in waiting):
            waiting.append(stage)
            continue
        order.append(stage)
        if any(other.beside == stage.name for other in waiting):
            order += waiting
            waiting = []
    return order + waiting


def run_stages(
    run: Path,
    stages: Sequence[Stage],
    console: Console,
    *,
    note_timing: Callable[[str, Mapping[str, Any]], None] | None = None,
    ahead: Ahead | None = None,
) -> list[str]:
    """Run what is not done, in order; returns the names of the stages that were run.

    Raises:
        StageError: a stage did not make its outputs. Whatever a stage itself raises goes through; finished stages stay finished.
    """
    digests: dict[str, str] = {}
    ran: list[str] = []
    memory = _memory(run)
    for number, stage in enumerate(stages if ahead is None else in_turn(stages), 1):
        now = made_from(stage, digests)
        beside_s = 0.0 if ahead is None else ahead.wait(stage.name)
        stamp = _make_ready(run, stage, now, console, memory)
        if stamp is not None:
            shutil.rmtree(_aside(run, stage.name), ignore_errors=True)  # killed between its stamp and this
            digests[stage.name] = stamp.digest
            console.skip(stage, str(stamp.facts.get("summary", "")))
            continue
        progress = console.begin(stage, number, len(stages))
        if ahead is not None:
            _begin_beside(run, stage, stages, digests, console, memory, ahead)
        started = time.monotonic()
        summary = stage.run(StageContext(run, progress, failures_path(run, stage.name)))
        seconds = time.monotonic() - started + beside_s
        files = list_outputs(run, stage)
        sync_files(files, run)
        stamp = Stamp.of(now, run, files, {"summary": summary}, memory.digest)
        stamp.write(stamp_path(run, stage.name))
        shutil.rmtree(_aside(run, stage.name), ignore_errors=True)
        digests[stage.name] = stamp.digest
        if note_timing is not None:
            note_timing(stage.name, {"wall_s": round(seconds, 2), "peak_memory_gb": peak_memory_gb()})
        console.end(stage, summary, seconds)
        ran.append(stage.name)
        memory.save()
    memory.save()
    return ran


def _begin_beside(
    run: Path, stage: Stage, stages: Sequence[Stage], digests: Mapping[str, str], console: Console, memory: DigestMemory, ahead: Ahead
) -> None:
    """Have the stages begun that can be made beside this one."""
    for other in stages:
        possible = other.beside == stage.name and all(name in digests for name in other.after)
        if possible and _make_ready(run, other, made_from(other, digests), console, memory) is None:
            ahead.begin(("stage", other.name))


def peak_memory_gb() -> float:
    """The most memory this process has held so far, in GB."""
    try:
        import resource
    except ImportError:
        return 0.0
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
