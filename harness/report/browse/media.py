"""Where a question's video lies, and the address that a page may play it from."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from harness.report.data import Json

PLAYABLE = {".mp4", ".m4v", ".webm", ".mkv", ".mov", ".avi", ".ogv"}
"""Suffixes of the files that a page links to. What of these a browser can play is its own affair; the page falls back to frames."""

Link = Callable[[Path], str | None]
"""The address of a file for the page, or None where the page may not have it."""
Clip = Callable[[str], str | None]
"""The same for a path as a record or a pair has it."""


def find_data_folder(run_dir: Path, run: Json | None) -> Path | None:
    """Where the videos are: `hf_home` of run.json (relative to the run, or absolute), else HF_HOME of the environment."""
    said = (run or {}).get("hf_home")
    candidates = [run_dir / said] if isinstance(said, str) and said and "\0" not in said else []
    candidates += [Path(home)] if (home := os.environ.get("HF_HOME")) else []
    return next((p for p in candidates if p.is_dir()), None)


def safe_join(folder: Path, relative: str) -> Path | None:
    """The file below `folder`, or None where the path is absolute, climbs out, or is no path at all."""
    if not relative or "\0" in relative or len(relative) > 1024:
        return None
    p = PurePosixPath(relative)
    if p.is_absolute() or ".." in p.parts:
        return None
    path = folder / p
    return path if path.is_file() else None


def link_from(page: Path) -> Link:
    """Relative addresses, as seen from the page's folder."""
    start = page.absolute().parent

    def link(path: Path) -> str | None:
        try:
            return quote(Path(os.path.relpath(path.absolute(), start)).as_posix())
        except ValueError:  # another drive (Windows)
            return None

    return link


def question_clips(data: Path | None, link: Link) -> Clip:
    """Addresses of the videos that records name, relative to the data folder."""

    @cache
    def clip(video_path: str) -> str | None:
        path = safe_join(data, video_path) if data is not None else None
        return link(path) if path is not None and path.suffix.lower() in PLAYABLE else None

    return clip


def pair_clips(folder: Path, link: Link) -> Clip:
    """Addresses of the videos that pairs name, relative to the folder of their file."""

    @cache
    def clip(video: str) -> str | None:
        if not video or "\0" in video or len(video) > 1024 or Path(video).suffix.lower() not in PLAYABLE:
            return None
        path = Path(os.path.normpath(folder / video))
        return link(path) if path.is_file() else None

    return clip
