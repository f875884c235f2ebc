"""`python -m harness doctor`: is this machine set up? Every finding says what was looked at, what is there, and what to do where it is
wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer

from benchmarks.options import DataOption
from savi.base.errors import ExitCode, UsageError
from savi.base.former import former_options
from savi.base.kernels import ATTENTION_VARIABLE, DECODER_VARIABLE, causal_kernel, decoder_for, prefix_kernel
from savi.base.processes import cores

State = Literal["ok", "note", "wrong"]
PROJECT = "videosavi-harness"
LMMS_EVAL_TESTED = "0.7.3"
MIN_FREE_GB = 2.0
MIN_MEMORY_GB = 3.0
_PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "lmms_eval",
    "av",
    "numpy",
    "pyarrow",
    "safetensors",
)
_IMPORTS = (
    "import sys; sys.path[:0] = {path!r}; from savi.base.torchvision import fix_torchvision; fixed = fix_torchvision(); "
    "import torchvision, transformers; print('fixed' if fixed else 'fine')"
)


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `wrong` stops the experiment, `note` does not."""

    name: str
    state: State
    found: str
    fix: str = ""


def look(hf_home: Path | None = None) -> list[Finding]:
    """Look at everything; nothing is changed, nothing is downloaded, no large library is imported into this process."""
    checks: list[Callable[[], Finding]] = [
        _python,
        _packages,
        _lmms_eval,
        _entry_point,
        _decoder,
        _torchvision,
        _gpu,
        _decoding,
        _memory,
        _disk,
    ]
    return [*(c() for c in checks), _data(hf_home)]


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command()(doctor)


@former_options(data="--hf-home")
def doctor(
    data: DataOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Is this machine set up? Exit code 5 where something is wrong."""
    found = look(data)
    if as_json:
        typer.echo(json.dumps([asdict(f) for f in found], indent=1))
    else:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        t = Table("", "looked at", "found", "what to do")
        marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "wrong": "[red]wrong[/]"}
        for f in found:
            t.add_row(marks[f.state], f.name, escape(f.found), escape(f.fix))
        Console(width=None if sys.stdout.isatty() else 140).print(t)
    raise typer.Exit(ExitCode.MACHINE if any(f.state == "wrong" for f in found) else ExitCode.DONE)


def _python() -> Finding:
    ok = sys.version_info >= (3, 11)
    return Finding(
        "Python",
        "ok" if ok else "wrong",
        f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "" if ok else "use Python 3.11 or newer",
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _packages() -> Finding:
    versions = {p: _version(p) for p in _PACKAGES}
    missing = [p for p, v in versions.items() if v is None]
    found = ", ".join(f"{p} {v}" for p, v in versions.items() if v)
    wrong = [f"missing: {', '.join(missing)}"] if missing else []
    if outside := _outside_their_ranges():
        wrong.append(f"not in the range this project works with: {', '.join(outside)}")
    return Finding("packages", "wrong" if wrong else "ok", found, f"{'; '.join(wrong)}; run: pip install -e ." if wrong else "")


def _outside_their_ranges() -> list[str]:
    """Requirements of the project that an installed package does not meet: something installed later may have moved it."""
    from packaging.requirements import Requirement

    try:
        required = [Requirement(text) for text in metadata.requires(PROJECT) or ()]
    except metadata.PackageNotFoundError:
        return []
    here = [(r, _version(r.name)) for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
    return [f"{r.name} {v} ({r.specifier})" for r, v in here if v is not None and not r.specifier.contains(v, prereleases=True)]


def _lmms_eval() -> Finding:
    v = _version("lmms_eval")
    if v is None:
        return Finding("lmms-eval", "wrong", "not installed", "run: pip install -e .")
    same = v == LMMS_EVAL_TESTED
    return Finding("lmms-eval", "ok" if same else "note", v, "" if same else f"tested with {LMMS_EVAL_TESTED}; tasks may differ")


def _entry_point() -> Finding:
    names = [e.value for e in metadata.entry_points(group="lmms_eval.models") if e.name == "savi"]
    if names:
        return Finding("lmms-eval model", "ok", f"savi -> {names[0]}")
    return Finding("lmms-eval model", "note", "`savi` is not registered", "for lmms-eval's own command line run: pip install -e .")


def _decoder() -> Finding:
    found = [
        f"{name} {version}"
        for name, package in (("PyAV", "av"), ("decord", "decord"), ("torchcodec", "torchcodec"))
        if (version := _version(package))
    ]
    if _version("av"):
        return Finding("video decoder", "ok", ", ".join(found))
    return Finding("video decoder", "wrong", "no PyAV", "pip install av")


def _torchvision() -> Finding:
    """In a process of its own: a failed import leaves half a module loaded."""
    if importlib.util.find_spec("torchvision") is None:
        return Finding("torchvision", "wrong", "not installed", "run: pip install -e .")
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", _IMPORTS.format(path=[root])], capture_output=True, text=True, timeout=180, check=False)
    if done.returncode == 0:
        if done.stdout.strip().endswith("fixed"):
            hint = "lmms-eval's own command line: python -m harness lmms-eval ..."
            return Finding("torchvision", "ok", "a CUDA build beside a CPU torch; our commands work around it", hint)
        return Finding("torchvision", "ok", "imports")
    last = done.stderr.strip().splitlines()[-1:] or ["no message"]
    return Finding("torchvision", "wrong", last[0][:200], "install torch and torchvision of the same build")


def _gpu() -> Finding:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Finding("GPU", "note", "none: micro and smoke scales run on the CPU", "the paper's scales need a CUDA GPU")
    done = subprocess.run(
        [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"], capture_output=True, text=True, timeout=30, check=False
    )
    names = done.stdout.strip().replace("\n", "; ")
    return (
        Finding("GPU", "ok", names)
        if done.returncode == 0 and names
        else Finding("GPU", "note", "nvidia-smi finds none", "check the driver")
    )


def _decoding() -> Finding:
    """Which decoder and which kernels replies are generated with here."""
    device = "cuda" if _gpu().state == "ok" else "cpu"
    try:
        decoder = decoder_for(device)
    except UsageError as e:
        return Finding("decoding", "wrong", str(e), f"unset {DECODER_VARIABLE}")
    try:
        reading = causal_kernel(device, half=device == "cuda", head_dim=128)
    except UsageError as e:
        return Finding("decoding", "wrong", str(e), f"unset {ATTENTION_VARIABLE}")
    equal, unequal = (prefix_kernel(device, half=device == "cuda", head_dim=128, equal_lengths=same) for same in (True, False))
    where = "static decoder, a CUDA graph a step" if device == "cuda" else "static decoder"
    if decoder == "eager":
        return Finding("decoding", "ok", f"eager decoder, prefixes by {equal}; videos read by {reading}")
    fix = "for unequal lengths on a GPU: pip install flash-attn" if device == "cuda" and unequal != "flash-attn" else ""
    found = f"{where}; prefixes by {equal}, those of unequal length by {unequal}; videos read, and trained on, by {reading}"
    return Finding("decoding", "ok", found, fix)


def memory_gb() -> float | None:
    """Memory that is available, in GB (a container's limit counts); None where it cannot be told."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return None
    available = next((int(x.split()[1]) * 1024 for x in info.read_text().splitlines() if x.startswith("MemAvailable")), 0)
    limit = Path("/sys/fs/cgroup/memory.max")
    cap = limit.read_text().strip() if limit.exists() else "max"
    return min(available, int(cap)) / 1e9 if cap.isdigit() else available / 1e9


def _memory() -> Finding:
    gb = memory_gb()
    count = cores()
    if gb is None:
        return Finding("memory, cores", "note", f"{count} cores")
    ok = gb >= MIN_MEMORY_GB
    return Finding(
        "memory, cores",
        "ok" if ok else "note",
        f"{gb:.1f} GB available, {count} cores",
        "" if ok else f"the micro scale wants {MIN_MEMORY_GB:g} GB",
    )


def _disk() -> Finding:
    place = Path.cwd()
    if not os.access(place, os.W_OK):
        return Finding("disk", "wrong", f"{place} cannot be written", "change to a folder of your own, or use --out")
    free = shutil.disk_usage(place).free / 1e9
    with tempfile.TemporaryDirectory() as d:
        temporary = shutil.disk_usage(d).free / 1e9
    ok = free >= MIN_FREE_GB
    return Finding(
        "disk",
        "ok" if ok else "wrong",
        f"{free:.1f} GB free here, {temporary:.1f} GB in the temporary folder",
        "" if ok else f"{MIN_FREE_GB:g} GB are needed",
    )


def _data(hf_home: Path | None) -> Finding:
    from benchmarks.data.layout import DatasetError, check_all, twins_stamp
    from savi.base.files import user_cache

    given = hf_home or (Path(os.environ["HF_HOME"]) if os.environ.get("HF_HOME") else None)
    if given is None:
        return Finding(
            "data sets", "note", "HF_HOME is not set", "micro and smoke make their own; else set HF_HOME, see: python -m benchmarks check"
        )
    try:
        ready = [s.benchmark for s in check_all(given) if s.ready]
        kind = "twins" if twins_stamp(given) else "data sets"
    except DatasetError as e:
        return Finding("data sets", "wrong", str(e))
    if (given / "datasets").is_dir() and not os.access(given / "datasets", os.W_OK):
        kind = f"read-only {kind} (the datasets library locks in {user_cache()})"
    state: State = "ok" if len(ready) == 6 else "note"
    return Finding(
        "data sets", state, f"{len(ready)} of 6 {kind} ready below {given}", "" if state == "ok" else "see: python -m benchmarks check"
    )
