"""Experiment trackers: training is told to them by transformers' own callbacks, the loop's curves by this module.

A tracker is a package of its own and is imported only where it was asked for. The module knows names and numbers, not what they mean.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from savi.base.digests import sha256_bytes
from savi.base.errors import SaviError, UsageError, one_line
from savi.base.files import make_folder, read_jsonl, write_jsonl_atomic
from savi.base.processes import current

TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}
"""Trackers by name, with the packages that one of is needed."""
_PROJECT = "huggingface"
"""What transformers' callbacks call the project unless told otherwise: both kinds of runs are found in one place."""


class NoTrackerError(SaviError):
    """A tracker whose package or account is missing."""


def read_trackers(text: str) -> tuple[str, ...]:
    """The trackers in a list with commas; none for "none".

    Raises:
        UsageError: one of them is not known.
        NoTrackerError: its package is not installed, or it has no account to report to.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip() not in ("", "none")))
    for name in names:
        if name not in TRACKERS:
            raise UsageError(f"--report-to {name}: unknown; there are {', '.join(TRACKERS)}, none")
        if not any(importlib.util.find_spec(package) for package in TRACKERS[name]):
            raise NoTrackerError(f"--report-to {name}: the package is not installed: pip install {TRACKERS[name][0]}")
    if "wandb" in names and current().rank == 0:
        _log_in()
    return names


def _log_in() -> None:
    """Find wandb's key, or ask for it on a terminal, before any work is done; sends nothing where it is offline."""
    wandb = importlib.import_module("wandb")
    if _mode(wandb) in ("online", "shared"):
        try:
            wandb.login()
        except Exception as error:  # of its own kinds, which differ between its versions
            raise NoTrackerError(f"--report-to wandb: {one_line(error)} Or keep the runs on this machine: WANDB_MODE=offline") from error


def _mode(wandb: Any) -> str:
    """online, shared, offline or disabled, as the environment and wandb's own settings files say."""
    return {"dryrun": "offline"}.get(mode := str(wandb.setup().settings.mode), mode)


@contextlib.contextmanager
def told(name: str, done: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Tell a tracker something. Where that fails there is a warning, `done` is called and the work goes on: no tracker ends a training."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # whatever may go wrong in a tracker
        done()
        warnings.warn(f"{name} is told no more: {type(error).__name__}: {one_line(error)}", stacklevel=3)


def open_wandb_run() -> Any:
    """The run of wandb that training is told to; None where there is none."""
    return getattr(sys.modules.get("wandb"), "run", None)


def report(names: Sequence[str], folder: Path, step: int, values: Mapping[str, float]) -> None:
    """Tell trackers the loop's values of one iteration, as one run for all iterations of `folder`.

    TensorBoard's file is in `folder`/loop, beside curves.jsonl with all iterations that were told of. The others get the project of
    WANDB_PROJECT, else transformers' own.
    """
    if not names:
        return
    file, rows = folder / "loop" / "curves.jsonl", {step: {f"loop/{name}": value for name, value in values.items()}}
    with told(str(file)):
        earlier = {int(row.pop("iteration")): row for row in read_jsonl(file)} if file.exists() else {}
        rows = {**earlier, **rows}
        make_folder(file.parent)
        write_jsonl_atomic(file, [{"iteration": number, **row} for number, row in sorted(rows.items())])
    ways = {"tensorboard": _to_tensorboard, "wandb": _to_wandb, "trackio": _to_trackio}
    for name in names:
        with told(name):
            ways[name](folder, step, rows)


def run_name(folder: Path) -> str:
    """What a tracker calls the runs of a folder."""
    return "/".join(Path(folder).resolve().parts[-2:])


def _to_tensorboard(folder: Path, step: int, rows: Mapping[int, Mapping[str, float]]) -> None:
    writer: Any
    if importlib.util.find_spec("tensorboard"):
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder / "loop"))
    else:
        writer = importlib.import_module("tensorboardX").SummaryWriter(str(folder / "loop"))
    for name, value in rows[step].items():
        writer.add_scalar(name, value, step)
    writer.close()


def _to_wandb(folder: Path, step: int, rows: Mapping[int, Mapping[str, float]]) -> None:
    """Offline, a run that is opened again does not go on but takes the place of what was sent under its id: it gets all iterations."""
    wandb = importlib.import_module("wandb")
    offline = _mode(wandb) == "offline"
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", _PROJECT),
        name=f"{run_name(folder)}/loop",
        id=sha256_bytes(str(folder.resolve()).encode())[:16],
        reinit="create_new",  # beside one that the user may have open
        **({} if offline else {"resume": "allow"}),
    )
    run.define_metric("loop/*", step_metric="iteration")
    for number in sorted(rows) if offline else [step]:
        run.log({**rows[number], "iteration": number})
    run.finish()  # at once: transformers would take an open one for the next training's


def _to_trackio(folder: Path, step: int, rows: Mapping[int, Mapping[str, float]]) -> None:
    trackio = importlib.import_module("trackio")
    trackio.init(project=_PROJECT, name=f"{run_name(folder)}/loop", resume="allow")
    trackio.log(dict(rows[step]), step=step)
    trackio.finish()
