"""lmms-eval's tasks without side effects: no network, no judge, no downloads, and a note of every guess.

What changes is only where upstream would leave the machine. Where a task asks an outside judge about an answer that no rule reads
(TempCompass), the answer gets what upstream gives when the judge cannot be reached, at once and marked. Random guesses are upstream's own
draws, from its seed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import os
import socket
import sys
import types
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.benchmark import Judge
from benchmarks.catalog import CATALOG, of_task
from harness.records import ReadBy
from harness.run.fast_yaml import fast_yaml
from savi.base.errors import SaviError
from savi.base.files import beside_or_cached, make_folder

_LOCAL = ("localhost", "127.0.0.1", "::1", "", "0.0.0.0")  # noqa: S104 (names that are let through, nothing is bound)


class InfrastructureError(SaviError, RuntimeError):
    """The machine or the process is not set up for an evaluation: names what is wrong and the fix."""


class NetworkRefusedError(OSError):
    """Something tried to reach another machine during an evaluation."""


def offline_environment(hf_home: Path) -> dict[str, str]:
    """Environment variables an evaluation needs. They must be set before `datasets`, `huggingface_hub` or lmms-eval are imported.

    Raises:
        InfrastructureError: the data sets are read-only, and so is the user's cache.
    """
    home = Path(hf_home).resolve()
    cache = str(datasets_cache(home))
    return {
        "HF_HOME": str(home),
        "HF_DATASETS_CACHE": cache,
        "LMMS_EVAL_DATASETS_CACHE": cache,  # lmms-eval would look in a scratch folder of this machine where HF_HOME is on a network
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def datasets_cache(home: Path) -> Path:
    """Where the `datasets` library reads, and locks what it reads: HF_HOME/datasets, or, where that cannot be written (a cache shared by a
    cluster), a folder of links to it in the user's cache.

    Raises:
        InfrastructureError: neither can be written.
    """
    own = home / "datasets"
    cache = beside_or_cached(own, "datasets")
    if cache.parent == own:
        return own
    try:
        make_folder(cache)
        for there in own.iterdir():
            link = cache / there.name
            if there.is_dir() and not (link.is_symlink() and link.readlink() == there):
                link.unlink(missing_ok=True)
                with contextlib.suppress(FileExistsError):  # another process was first
                    link.symlink_to(there)
    except OSError as e:
        raise InfrastructureError(
            f"{own} cannot be written (the datasets library locks there), and nor can {cache} ({e.strerror}); set XDG_CACHE_HOME to a "
            "folder of your own"
        ) from e
    return cache


def check_environment(hf_home: Path) -> None:
    """Whether this process can evaluate below `hf_home`.

    Raises:
        InfrastructureError: a variable is not set, or was set after a library had read it.
    """
    wanted = offline_environment(hf_home)
    for name in ("HF_HOME", "HF_DATASETS_CACHE", "HF_HUB_OFFLINE"):
        if os.environ.get(name) != wanted[name]:
            raise InfrastructureError(
                f"{name} is {os.environ.get(name)!r}, an evaluation needs {wanted[name]!r}: set it before Python starts, "
                "or call os.environ.update(harness.run.evaluate.offline_environment(hf_home)) before anything imports datasets or lmms_eval"
            )
    config = sys.modules.get("datasets.config")
    if config is not None and str(getattr(config, "HF_DATASETS_CACHE", "")) != wanted["HF_DATASETS_CACHE"]:
        raise InfrastructureError(
            f"the datasets library was imported before HF_HOME was set and reads {config.HF_DATASETS_CACHE}: start a new process"
        )
    hub = sys.modules.get("huggingface_hub.constants")
    if hub is not None and not getattr(hub, "HF_HUB_OFFLINE", True):
        raise InfrastructureError("huggingface_hub was imported before HF_HUB_OFFLINE was set: start a new process with HF_HUB_OFFLINE=1")


@contextmanager
def refuse_network() -> Iterator[list[str]]:
    """Refuse every connection of Python sockets to another machine; yields the list of hosts that were tried (processes of one run may talk
    to each other: torch's own sockets and this machine's addresses are let through)."""
    tried: list[str] = []
    connect, lookup = socket.socket.connect, socket.getaddrinfo

    def refuse(host: str) -> None:
        tried.append(host)
        raise NetworkRefusedError(f"an evaluation makes no network calls, but something asked for {host}")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and str(address[0]) not in (*_LOCAL, os.environ.get("MASTER_ADDR", "")):
            refuse(str(address[0]))
        connect(self, address)

    def guarded_lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else str(host or "")
        if name not in (*_LOCAL, socket.gethostname(), os.environ.get("MASTER_ADDR", "")):
            refuse(name)
        return lookup(host, *args, **kwargs)

    socket.socket.connect = guarded_connect  # type: ignore[assignment,method-assign]
    socket.getaddrinfo = guarded_lookup
    try:
        yield tried
    finally:
        socket.socket.connect = connect  # type: ignore[method-assign]
        socket.getaddrinfo = lookup
        if tried:
            warnings.warn(f"{len(tried)} network call(s) were refused during the evaluation: {', '.join(sorted(set(tried)))}", stacklevel=2)


@contextmanager
def quiet_upstream() -> Iterator[None]:
    """lmms-eval without its progress bars, log lines and downloads of word lists (NExT-QA's open-ended metric, not used here), its task
    files read by libyaml."""
    import lmms_eval.api.task as task
    import lmms_eval.evaluator as evaluator
    from loguru import logger

    nltk: Any = importlib.import_module("nltk")
    bar = evaluator.tqdm

    def no_download(*_: Any, **__: Any) -> bool:
        return False

    def silent(*args: Any, **kwargs: Any) -> Any:
        return bar(*args, **{**kwargs, "disable": True})

    held = [(evaluator, "tqdm", evaluator.tqdm), (task, "tqdm", task.tqdm), (nltk, "download", nltk.download)]
    evaluator.tqdm, task.tqdm, nltk.download = silent, silent, no_download
    logger.disable("lmms_eval")
    restore_datasets = _quiet_datasets()
    try:
        with fast_yaml():
            yield
    finally:
        for module, name, value in held:
            setattr(module, name, value)
        logger.enable("lmms_eval")
        restore_datasets()


def _quiet_datasets() -> Callable[[], None]:
    """No bars, and no warning that the data come from the disk: that is what was asked for."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    level, bars = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity_error()
    disable_progress_bars()

    def restore() -> None:
        logging.set_verbosity(level)
        if bars:
            enable_progress_bars()

    return restore


class Guesses:
    """For each task, how lmms-eval read each answer (its rule, a random guess, a judge's turn), in the order of scoring."""

    def __init__(self) -> None:
        self.by_task: dict[str, list[ReadBy]] = defaultdict(list)
        self._read_by: ReadBy = "rule"

    def watch(self, name: str, task: Any) -> None:
        """Put a watcher around a task's scoring function. Its module is loaded afresh for each function, so nothing else is touched."""
        scoring = task.config.process_results
        names = scoring.__globals__
        if "random" in names:
            names["random"] = _WatchedRandom(names["random"], self._note)
        b = of_task(name)
        if b is not None and b.judge is not None:
            names[b.judge.function] = self._unanswered(b.judge)

        @functools.wraps(scoring)
        def watched(doc: Any, results: Any, **kwargs: Any) -> Any:
            self._read_by = "rule"
            out = scoring(doc, results, **kwargs)
            self.by_task[name].append(self._read_by)
            return out

        task.config.process_results = watched

    def _note(self) -> None:
        self._read_by = "guess"

    def _unanswered(self, judge: Judge) -> Callable[..., tuple[Any, ...]]:
        """The judge as it is when it cannot be reached."""

        def answer(*_: Any, **__: Any) -> tuple[Any, ...]:
            self._read_by = "judge"
            return judge.unanswered

        return answer


class _WatchedRandom(types.ModuleType):
    """The random module, with a note of every `choice`."""

    def __init__(self, module: Any, note: Callable[[], None]) -> None:
        super().__init__("random")
        self._module, self._note = module, note

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def choice(self, options: Any) -> Any:
        """As `random.choice`, from the same generator."""
        self._note()
        return self._module.choice(options)


def task_manager(guesses: Guesses) -> Any:
    """lmms-eval's TaskManager over the folders of the catalog (0.2 s instead of 8 s for all tasks), its tasks watched for guesses."""
    import lmms_eval.tasks as tasks

    class OurTasks(tasks.TaskManager):  # type: ignore[misc,name-defined]
        def load_task_or_group(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            loaded: dict[str, Any] = super().load_task_or_group(*args, **kwargs)
            for name, task in loaded.items():
                guesses.watch(str(name), task)
            return loaded

    root = Path(tasks.__file__).parent
    return OurTasks("ERROR", include_path=[str(root / b.task_folder) for b in CATALOG.values()], include_defaults=False)


def default_arguments() -> argparse.Namespace:
    """lmms-eval's own defaults of its command line, from its own parser: without them `simple_evaluate` keeps `<think>` blocks in replies,
    which the command line removes."""
    from lmms_eval.__main__ import parse_eval_args

    given = sys.argv
    sys.argv = ["lmms-eval"]
    try:
        arguments: argparse.Namespace = parse_eval_args()[1]
    finally:
        sys.argv = given
    return arguments
