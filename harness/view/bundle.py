"""A static site of runs to share: an index, the reports, and the videos where asked for, as files that any web server or file:// shows.

Nothing in it names a place of this machine or holds a credential (`scrub`); each page is searched for both before it is written. Videos are
named by their content, so a video of several runs is there once. The site takes the place of an older one whole or not at all.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from harness.report.browse.frames import Budget, wanted_videos
from harness.report.browse.media import PLAYABLE, Link, find_data_folder, safe_join
from harness.report.data import RunData
from harness.report.page import render
from harness.report.read import read_run
from harness.view.files import NotAllowed, open_video
from harness.view.pages import index_page
from harness.view.runs import MAX_RUNS, RunFacts, facts, find_runs
from harness.view.scrub import Scrubber
from savi.base.digests import sha256_file
from savi.base.errors import ExitCode, SaviError, UsageError
from savi.base.files import new_folder, write_text_atomic

MARK = "bundle.json"
Media = Literal["none", "frames", "videos"]


class LeakError(SaviError, ValueError):
    """A page that would have taken something of this machine along; nothing was written."""

    exit_code = ExitCode.BROKEN


@dataclass
class Bundle:
    """What was written, and what was left out."""

    runs: int = 0
    bytes: int = 0
    videos: int = 0
    videos_left_out: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Wanted:
    """What of the videos goes along, how large the site may be, and where the videos lie (None: as each run says)."""

    media: Media = "frames"
    max_mb: float = 500.0
    data: Path | None = None


def write_bundle(root: Path, site: Path, wanted: Wanted = Wanted(), *, tell: Callable[[str], None] = lambda s: None) -> Bundle:
    """Write the site of all runs below `root`; nothing is left behind where that fails.

    Raises:
        UsageError: no run there, `site` holds something else, or the pages alone are larger than `wanted.max_mb`.
        LeakError: a page holds a local path or a credential all the same.
    """
    root = root.resolve()
    _check_place(root, site)
    runs = find_runs(root)
    if not runs:
        raise UsageError(f"{root}: no run below this folder")
    scrubber = Scrubber([root, *([wanted.data] if wanted.data else [])])
    with new_folder(site) as folder:
        return _fill(folder, root, runs, scrubber, wanted, tell)


def _fill(folder: Path, root: Path, runs: list[Path], scrubber: Scrubber, wanted: Wanted, tell: Callable[[str], None]) -> Bundle:
    """Write everything into an empty folder."""
    out = Bundle()
    if len(runs) >= MAX_RUNS:
        out.problems.append(f"more than {MAX_RUNS} runs: only the first {MAX_RUNS} by name are here")
    found: list[tuple[RunFacts, RunData, Path | None]] = []
    for run in runs:
        said = facts(root, run)
        try:
            read = read_run(run)
        except (SaviError, OSError) as e:
            out.problems.append(scrubber.note(f"{said.name}: left out: {e}"))
            continue
        found.append((replace(said, problem=scrubber.note(said.problem)), read, wanted.data or find_data_folder(run, read.run)))
    budget = Budget() if wanted.media != "none" else None

    def page(said: RunFacts, read: RunData, place: Path | None, clips: _Clips | None) -> str:
        depth = "../" * len(_page(said.name).parent.parts)
        return render(scrubber.run(read), link=_linked(clips, depth), data=place, home=f"{depth}index.html", budget=budget)

    clips = None
    if wanted.media == "videos":  # videos get the room that the pages leave; their addresses in the pages take a little too
        pages = sum(len(page(*x, None).encode()) for x in found)
        clips = _Clips(root, folder, room=int(wanted.max_mb * 1e6 - 1.05 * pages) - 100_000)
        for _, read, place in found:
            clips.start(read, place)
    for said, read, place in found:
        tell(read.name)
        _write(folder / _page(said.name), page(said, read, place, clips), scrubber)
    links = {said.name: quote(_page(said.name).as_posix()) for said, _, _ in found}
    _write(folder / "index.html", index_page("Runs", [said for said, _, _ in found], links, note=" ".join(out.problems)), scrubber)
    write_text_atomic(folder / "robots.txt", "User-agent: *\nDisallow: /\n")
    write_text_atomic(folder / MARK, json.dumps({"made_by": "python -m harness bundle", "runs": len(found)}) + "\n")
    out.runs, out.bytes = len(found), sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    if clips is not None:
        out.videos, out.videos_left_out = clips.copied, clips.left_out
    if out.bytes > wanted.max_mb * 1e6:
        raise UsageError(f"the site would have {out.bytes / 1e6:.1f} MB, more than --max-mb {wanted.max_mb:g}: --media none, or fewer runs")
    return out


def _check_place(root: Path, site: Path) -> None:
    """Raises: UsageError: something else is there, or the runs themselves are."""
    place = site.resolve()
    if root == place or root.is_relative_to(place):
        raise UsageError(f"{site}: the runs lie in it; choose another folder")
    if site.exists() and not site.is_dir():
        raise UsageError(f"{site}: is a file; choose another name")
    if site.is_dir() and any(site.iterdir()) and not (site / MARK).is_file():
        raise UsageError(f"{site}: not empty, and no bundle of this command; choose another folder")


def _page(name: str) -> Path:
    return Path("report.html") if name == "." else Path("runs") / name / "report.html"


def _write(path: Path, text: str, scrubber: Scrubber) -> None:
    packed = re.compile(r'(?<="data":")[A-Za-z0-9+/=]+|(?<=data:image/webp;base64,)[A-Za-z0-9+/=]+')  # letters by chance, no text
    for part in (packed.sub("", text), *_unpacked(text)):
        if (left := scrubber.left(part)) is not None:
            raise LeakError(f"{path.name}: still holds {left}; nothing was written")
    write_text_atomic(path, text)


def _unpacked(page: str) -> list[str]:
    """The packed data of a page as text."""
    found = re.findall(r'\{"encoding":"deflate","data":"([A-Za-z0-9+/=]*)"\}', page)
    return [zlib.decompress(base64.b64decode(x)).decode("ascii") for x in found]


class _Clips:
    """Videos copied into the site while there is room, those of changed questions first."""

    def __init__(self, root: Path, folder: Path, *, room: int) -> None:
        self._root, self._folder, self._room = root, folder, room
        self._names: dict[Path, str | None] = {}
        self.copied = self.left_out = 0

    def start(self, run: RunData, data: Path | None) -> None:
        """Copy a run's videos in the order of interest."""
        if data is None:
            return
        for _, relative in wanted_videos(run):
            path = safe_join(data, relative)
            if path is not None:
                self._copy(path, data)

    def _copy(self, path: Path, top: Path) -> None:
        if path in self._names or path.suffix.lower() not in PLAYABLE:
            return
        size = path.stat().st_size
        if size > self._room:
            self._names[path] = None
            self.left_out += 1
            return
        name = f"media/{sha256_file(path)[:20]}{path.suffix.lower()}"
        self._names[path] = name
        target = self._folder / name
        if target.exists():
            return
        try:
            source = open_video(top, path.relative_to(top).as_posix())
        except NotAllowed:
            self._names[path] = None
            self.left_out += 1
            return
        target.parent.mkdir(exist_ok=True)
        with source, target.open("wb") as out:
            shutil.copyfileobj(source, out)
        self._room -= size
        self.copied += 1

    def name(self, path: Path) -> str | None:
        """Where a video is in the site; those of pairs are copied when asked for, if they lie below the runs' folder."""
        if path not in self._names and path.is_relative_to(self._root):
            self._copy(path, self._root)
        return self._names.get(path)


def _linked(clips: _Clips | None, depth: str) -> Link:
    def link(path: Path) -> str | None:
        name = clips.name(path) if clips is not None else None
        return None if name is None else f"{depth}{name}"

    return link
