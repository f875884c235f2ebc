"""A run's folder: its settings (run.json), the lock that keeps two runs apart, the time each stage took, and what failed on the way.

run.json is written once, when the run begins. A run of another configuration is refused by naming the settings that differ. The module
must not know torch or lmms-eval.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from reproduce.scale import Gpu, Setting
from savi.base.digest_memory import remembered_sha256
from savi.base.digests import parse_json, sha256_json
from savi.base.errors import ExitCode, SaviError
from savi.base.files import is_torn, write_text_atomic
from savi.base.lock import is_lock, lock_folder

RUN_FILE = "run.json"
TIMINGS_FILE = "timings.json"
FAILURES_FILE = "failures.jsonl"
RUN_SCHEMA = 1
PACKAGES = (
    "videosavi-harness",
    "torch",
    "torchvision",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "lmms_eval",
    "decord",
    "av",
    "numpy",
)
# Where a run keeps its things may change between two commands that mean the same experiment.
NOT_IDENTITY = (
    "machine.tflops",
    "machine.processes",
    "loop.chunk_videos",
    "training.max_batch_tokens",
    "training.gradient_checkpointing",
    "training.sharding",
)


class RunDirError(SaviError):
    """A run folder that cannot be used; the message says why and what to do."""

    exit_code = ExitCode.USAGE


class OtherConfigurationError(RunDirError):
    """The folder holds a run of other settings; `differing` names them."""

    def __init__(self, message: str, differing: Sequence[str]) -> None:
        super().__init__(message)
        self.differing = tuple(differing)


def versions() -> dict[str, str]:
    """Installed versions of what the numbers depend on, without importing any of it."""
    out = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            out[name] = "not installed"
    return out


def git_state(folder: Path | None = None) -> dict[str, Any]:
    """Commit and dirty flag of the checkout this package lies in; commit None where it is no checkout."""
    here = folder or Path(__file__).resolve().parent.parent

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *args], capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout

    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top.strip()) != here:  # a checkout that merely holds the virtual environment says nothing about us
        return {"commit": None, "dirty": None}
    commit, status = git("rev-parse", "HEAD"), git("status", "--porcelain")
    return {"commit": commit.strip() if commit else None, "dirty": None if status is None else bool(status.strip())}


def machine(gpus: Sequence[Gpu]) -> dict[str, Any]:
    """What the run ran on: no host name, no user, no path."""
    try:
        memory_gb = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        memory_gb = None
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": memory_gb,
        "gpus": [f"{g.name} ({g.memory_gb:.0f} GB)" for g in gpus],
    }


def base_identity(path: Path) -> str:
    """A fingerprint of a checkpoint folder: names, sizes and digests of its files.

    Raises:
        RunDirError: no checkpoint there.
    """
    files = (
        sorted(p for p in path.iterdir() if p.is_file() and p.suffix in (".json", ".safetensors", ".jinja", ".model"))
        if path.is_dir()
        else []
    )
    if not any(p.suffix == ".safetensors" for p in files):
        raise RunDirError(f"{path}: no checkpoint here (no .safetensors file)")
    skip = {"training.json"}
    return sha256_json([[p.name, p.stat().st_size, remembered_sha256(p)] for p in files if p.name not in skip])


@dataclass(frozen=True)
class RunDir:
    """Paths inside one run's folder."""

    path: Path

    @property
    def run_file(self) -> Path:
        return self.path / RUN_FILE

    def iteration(self, number: int) -> Path:
        """`base/` for 0, `iter-t/` after."""
        return self.path / ("base" if number == 0 else f"iter-{number}")

    def read(self) -> dict[str, Any] | None:
        """run.json, or None where the folder has none.

        Raises:
            RunDirError: it is there and cannot be read.
        """
        if not self.run_file.exists():
            return None
        try:
            found = parse_json(self.run_file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise RunDirError(f"{self.run_file}: cannot be read ({e}); take another folder with --out") from e
        if not isinstance(found, dict) or found.get("schema_version") != RUN_SCHEMA or not isinstance(found.get("settings"), dict):
            raise RunDirError(f"{self.run_file}: not a run of this version (schema {RUN_SCHEMA}); take another folder with --out")
        return found

    def open(self, settings: Mapping[str, Setting[Any]], facts: Mapping[str, Any]) -> bool:
        """Begin a run here, or go on with the one that is here; True for a new one.

        Raises:
            OtherConfigurationError: the folder holds a run of other settings.
            RunDirError: the folder holds something that is no run.
        """
        found = self.read()
        if found is None:
            strangers = [p.name for p in self.path.iterdir() if not is_lock(p.name)] if self.path.exists() else []
            if strangers:
                raise RunDirError(
                    f"{self.path} is not empty and holds no run ({sorted(strangers)[0]} is there); take another folder with --out"
                )
            content = {"schema_version": RUN_SCHEMA, **facts, "settings": {k: v.model_dump() for k, v in settings.items()}}
            write_text_atomic(self.run_file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
            return True
        differing = differing_settings(found["settings"], {k: v.model_dump() for k, v in settings.items()})
        for key in ("scale", "base_fingerprint"):
            if key in facts and found.get(key) != facts[key]:
                differing.insert(0, f"{key}: {found.get(key)} there, {facts[key]} now")
        if differing:
            raise OtherConfigurationError(
                f"{self.path} holds a run of another configuration:\n  "
                + "\n  ".join(differing)
                + "\ntake another folder with --out, or give the same settings",
                differing,
            )
        return False

    def lock(self) -> AbstractContextManager[None]:
        """Hold the folder alone.

        Raises:
            LockedError: another process holds it.
        """
        return lock_folder(self.path)

    def sweep(self) -> int:
        """Remove what writers that were killed left half written; call it holding the lock. Returns how many files."""
        torn = [p for p in self.path.rglob(".*") if is_torn(p)]
        for path in torn:
            path.unlink()
        return len(torn)

    def note_timing(self, stage: str, values: Mapping[str, Any]) -> None:
        """Add a stage's wall time to timings.json; a stage that was made again replaces its row."""
        timings = self.timings()
        timings[stage] = dict(values)
        write_text_atomic(self.path / TIMINGS_FILE, json.dumps(timings, indent=1) + "\n")

    def timings(self) -> dict[str, Any]:
        """timings.json by stage; empty where it is missing or torn (it decides nothing)."""
        try:
            found = parse_json((self.path / TIMINGS_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def collect_failures(self, parts: Sequence[Path]) -> int:
        """Merge the stages' own failure files, in order and each row once, into failures.jsonl; returns how many rows."""
        rows: dict[str, None] = {}
        for part in parts:
            if part.exists():
                for line in part.read_bytes().decode("utf-8", "replace").split("\n"):  # a name may hold other separators
                    if line.strip():
                        rows.setdefault(line)
        write_text_atomic(self.path / FAILURES_FILE, "".join(f"{row}\n" for row in rows))
        return len(rows)


def differing_settings(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Settings whose values differ, in words; sources and settings of speed alone are no difference."""
    out = []
    for key in dict.fromkeys([*there, *now]):
        a, b = there.get(key, {}).get("value", "(unset)"), now.get(key, {}).get("value", "(unset)")
        if a != b and key not in NOT_IDENTITY:
            out.append(f"{key}: {json.dumps(a)} there, {json.dumps(b)} now")
    return out


def new_facts(
    *,
    scale: str,
    data: str,
    published: str | None,
    why: str,
    title: str,
    seed: int,
    gpus: Sequence[Gpu],
    base_fingerprint: str | None,
    hf_home: str,
) -> dict[str, Any]:
    """What run.json holds beside the settings."""
    return {
        "scale": scale,
        "data": data,
        "published": published,
        "scale_title": title,
        "scale_reason": why,
        "started": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "command": ["python", "-m", "reproduce", *sys.argv[1:]],
        "base_fingerprint": base_fingerprint,
        "hf_home": hf_home,
        "versions": versions(),
        "git": git_state(),
        "seeds": {"loop": seed},
        "machine": machine(gpus),
    }
