"""The pages of a viewer: an index of runs, a run's report, any two stages side by side; rendered anew when files changed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, urlencode

from harness.report.browse.frames import Budget
from harness.report.browse.media import find_data_folder
from harness.report.data import ReportError, Stage, side_by_side
from harness.report.page import Live, content_policy, environment, render, script, style
from harness.report.read import read_run
from harness.view.files import NotAllowed, is_plain, open_video
from harness.view.runs import MAX_RUNS, RunFacts, facts, find_runs, fingerprint, is_run

MAX_CACHED = 6
MAX_FRAMES_S = 4.0
"""Spent on new pictures of videos each time a page is rendered; those made before are kept."""


def index_page(
    title: str,
    runs: Sequence[RunFacts],
    links: Mapping[str, str],
    *,
    live: Live | None = None,
    compare: str = "",
    note: str = "",
) -> str:
    """The index of runs. `compare`: where the form for two stages goes; without it there is none."""
    css, css_hash = style()
    js, js_hash = script()
    choices = [f"{r.name}/{s.key}" for r in runs for s in r.measured] if compare else []
    return (
        environment()
        .get_template("runs.html.j2")
        .render(
            title=title,
            runs=sorted(runs, key=lambda r: -r.changed) if live else runs,
            full=len(runs) >= MAX_RUNS,
            links=links,
            choices=choices if len(choices) > 1 else [],
            compare=compare,
            note=note,
            live=live,
            css=css,
            js=js,
            policy=content_policy(css_hash, js_hash, live=live is not None, forms=bool(compare)),
        )
    )


@dataclass
class Site:
    """What is served below `root`: runs, and videos there and in the folders `data`."""

    root: Path
    data: Sequence[Path] = ()
    base: str = ""
    """What all addresses begin with."""
    _cache: OrderedDict[tuple[str, ...], tuple[str, str]] = field(default_factory=OrderedDict)
    _budget: Budget = field(default_factory=lambda: Budget(max_s=MAX_FRAMES_S))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.root = self.root.resolve()
        self._roots = [self.root, *(d.resolve() for d in self.data)]

    def _run(self, name: str) -> Path:
        """The run folder of that name.

        Raises:
            NotAllowed: there is none below the root.
        """
        path = self.root if name == "." else self.root / name
        if name != "." and not is_plain(name):
            raise NotAllowed("not a plain relative path")
        try:
            if path.resolve(strict=True) != path or not is_run(path):
                raise NotAllowed("no run, or behind a link")
        except OSError as e:
            raise NotAllowed(str(e)) from e
        return path

    def video(self, root: str, relative: str) -> BinaryIO:
        """A video file below the root of that number.

        Raises:
            NotAllowed: it is not served.
        """
        if not (root.isascii() and root.isdecimal()) or len(root) > 3 or int(root) >= len(self._roots):
            raise NotAllowed("no such root")
        return open_video(self._roots[int(root)], relative)

    def _link(self, path: Path) -> str | None:
        """Where a video is served; None for one that lies in no served folder, which the page then shows as frames."""
        found = path.resolve() if path.exists() else path
        for i, root in enumerate(self._roots):
            if path.is_relative_to(root) and found.is_relative_to(root):
                return f"{self.base}/media/{i}/{quote(path.relative_to(root).as_posix())}"
        return None

    def state(self, names: Sequence[str]) -> str:
        """Changes when a file of the named runs does; without names, of any run.

        Raises:
            NotAllowed: one of them is no run.
        """
        return "-".join(fingerprint(self._run(n)) for n in names) if names else "-".join(fingerprint(r) for r in find_runs(self.root))

    def index(self) -> str:
        """The index of all runs."""
        runs = [facts(self.root, r) for r in find_runs(self.root)]
        live = Live(f"{self.base}/state", self.state([]))
        links = {r.name: f"{self.base}/run/{quote(r.name)}" for r in runs}
        return index_page(self.root.name, runs, links, live=live, compare=f"{self.base}/compare")

    def report(self, name: str) -> str:
        """A run's report.

        Raises:
            NotAllowed: there is no such run.
            ReportError: it cannot be read.
        """
        run = self._run(name)
        return self._cached(("run", name), [name], lambda live: self._render_run(run, live))

    def _render_run(self, run: Path, live: Live) -> str:
        found = read_run(run)
        return render(found, link=self._link, data=self._data(run, found.run), live=live, home=f"{self.base}/", budget=self._budget)

    def comparison(self, first: str, second: str) -> str:
        """The page of two stages, each `RUN/STAGE`.

        Raises:
            NotAllowed: there is no such run.
            ReportError: no such stage in it, or it cannot be read.
        """
        names = [x.rpartition("/")[0] or "." for x in (first, second)]
        return self._cached(("compare", first, second), names, lambda live: self._render_pair(names, (first, second), live))

    def _render_pair(self, names: Sequence[str], asked: tuple[str, str], live: Live) -> str:
        stages: list[Stage] = []
        problems: list[str] = []
        for name, full in zip(names, asked, strict=True):
            found = read_run(self._run(name))
            key = full.rpartition("/")[2]
            stage = next((s for s in found.measured if s.key == key), None)
            if stage is None:
                raise ReportError(f"{name}: no measured stage {key!r}")
            problems += [f"{name}: {p}" for p in found.problems]
            stages.append(Stage(full, f"{stage.title} of {found.name}", stage.short, stage.evaluations))
        run = self._run(names[-1])
        page = side_by_side(run, f"{asked[1]} against {asked[0]}", stages)
        page.problems.extend(problems)
        return render(page, link=self._link, data=self._data(run, found.run), live=live, home=f"{self.base}/", budget=self._budget)

    def _data(self, run: Path, settings: dict[str, object] | None) -> Path | None:
        return self.data[0] if self.data else find_data_folder(run, settings)

    def _cached(self, key: tuple[str, ...], names: Sequence[str], make: Callable[[Live], str]) -> str:
        """The page, rendered anew only where the runs' files have changed; one at a time."""
        with self._lock:
            now = self.state(names)
            found = self._cache.get(key)
            if found is None or found[0] != now:
                query = urlencode([("run", n) for n in names])
                found = self._cache[key] = (now, make(Live(f"{self.base}/state?{query}", now)))
            self._cache.move_to_end(key)
            while len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
            return found[1]
