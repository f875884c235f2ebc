"""Contact sheets: eight frames of a video as one small WebP picture inside the page.

Pictures are for orientation, not evidence: short videos are read whole and the middle of eight equal parts is shown, long ones at the
key frame nearest to it. Bounded in number, bytes and time, so that a report of twelve thousand videos is still one small file.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.records import QuestionRecord
from harness.report.browse.media import PLAYABLE, safe_join
from harness.report.browse.questions import question_rows
from harness.report.data import RunData
from savi.base.av_guard import open_video

FRAMES = 8
COLUMNS = 4
CELL = 160
"""Longest side of one frame in the sheet, pixels."""
GAP = 2
"""Pixels between frames."""
WHOLE_BELOW = 400
"""Videos with at most this many frames are decoded whole."""


@dataclass(frozen=True)
class Pictures:
    """Sheets as data URIs, and which (benchmark, video_path) shows which."""

    sheets: list[str] = field(default_factory=list)
    index: dict[tuple[str, str], int] = field(default_factory=dict)
    videos: int = 0
    note: str = ""


def contact_sheet(path: Path) -> bytes | None:
    """Eight frames of a video, four a row, as WebP; None where it cannot be decoded."""
    import av
    from PIL import Image

    try:
        with open_video(path) as (container, stream):
            stream.thread_count = 1  # starting more takes longer than reading a short video
            total = stream.frames or 0
            if 0 < total <= WHOLE_BELOW or not stream.duration or not stream.time_base:
                frames = []
                for f in container.decode(stream):
                    frames.append(f)
                    if len(frames) >= WHOLE_BELOW:
                        break
                images = [frames[int((i + 0.5) * len(frames) / FRAMES)].to_image() for i in range(FRAMES)] if frames else []
            else:
                stream.codec_context.skip_frame = "NONKEY"
                images = []
                for i in range(FRAMES):
                    container.seek(int((stream.start_time or 0) + stream.duration * (i + 0.5) / FRAMES), stream=stream)
                    images.append(next(container.decode(stream)).to_image())
    except (av.error.FFmpegError, IndexError, StopIteration, OSError, ValueError, MemoryError):
        return None
    if not images:
        return None
    w, h = images[0].size
    scale = min(CELL / max(w, h), 1.0)
    cell = (max(1, round(w * scale)), max(1, round(h * scale)))
    # Transparent gaps: frames stay apart on any background.
    sheet = Image.new("RGBA", ((cell[0] + GAP) * COLUMNS - GAP, (cell[1] + GAP) * (FRAMES // COLUMNS) - GAP))
    for i, im in enumerate(images):
        small = im.resize(cell, Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BILINEAR)
        sheet.paste(small, (i % COLUMNS * (cell[0] + GAP), i // COLUMNS * (cell[1] + GAP)))
    out = io.BytesIO()
    sheet.save(out, "WEBP", quality=58, method=2)
    return out.getvalue()


def wanted_videos(run: RunData) -> list[tuple[str, str]]:
    """(benchmark, video_path) in the order of interest: changed questions first, benchmarks in turn."""
    ranks: dict[str, dict[str, int]] = {}
    for row in question_rows(run):
        path = row.record.video_path
        if path:
            first, last = row.found[0], row.found[-1]
            changed = first is not None and last is not None and first.strict != last.strict
            d = ranks.setdefault(row.benchmark, {})
            d[path] = min(d.get(path, 1), 0 if changed else 1)
    queues = [sorted(d, key=d.__getitem__) for d in ranks.values()]
    out = []
    for i in range(max(map(len, queues), default=0)):
        out += [(b, q[i]) for b, q in zip(ranks, queues, strict=True) if i < len(q)]
    return out


@dataclass(frozen=True)
class Budget:
    """What pictures may cost, and the contact sheets that were made before, by path, size and time."""

    max_videos: int = 600
    max_bytes: int = 3_500_000
    max_s: float = 12.0
    known: dict[tuple[Path, int, int], bytes | None] = field(default_factory=dict)

    def sheet(self, path: Path) -> bytes | None:
        """The contact sheet of a video, made at most once."""
        found = path.stat()
        key = (path, found.st_size, found.st_mtime_ns)
        if key not in self.known:
            self.known[key] = contact_sheet(path)
        return self.known[key]


def collect_pictures(run: RunData, data: Path | None, budget: Budget) -> Pictures:
    """Contact sheets for as many of the questions' videos as the budget allows; the note says how many and why not all."""
    wanted = wanted_videos(run)
    if not wanted:
        return Pictures(note="The records name no video files, so there are no pictures." if _has_records(run) else "")
    if data is None:
        return Pictures(videos=len(wanted), note="The videos’ folder (HF_HOME) is not there, so there are no pictures.")
    made, unreadable = _sheets(((key, safe_join(data, key[1])) for key in wanted), budget)
    note = f"Frames of {len(made.index):,} of {len(wanted):,} videos are in this file" + (
        f"; {unreadable:,} could not be read." if unreadable else "."
    )
    return Pictures(made.sheets, made.index, len(wanted), note)


def collect_pair_pictures(run: RunData, budget: Budget) -> Pictures:
    """Contact sheets for videos of preference pairs by (stage, video as the pair names it), within a smaller budget.

    Only of files in the run's folder: the pairs of a run that somebody else made could name any file of this machine.
    """
    wanted = dict.fromkeys((s.key, p.video) for s in run.stages if s.pairs is not None for p in s.pairs.rows if p.outcome == "pair")
    small = replace(budget, max_videos=budget.max_videos // 4, max_bytes=budget.max_bytes // 4, max_s=budget.max_s / 4)
    return _sheets(((key, _inside(run.path, key)) for key in wanted), small)[0]


def _inside(run: Path, key: tuple[str, str]) -> Path | None:
    stage, video = key
    if not video or "\0" in video or len(video) > 1024 or Path(video).suffix.lower() not in PLAYABLE:
        return None
    path = (run / stage / video).resolve()
    return path if path.is_relative_to(run.resolve()) and path.is_file() else None


def _sheets(wanted: Iterable[tuple[tuple[str, str], Path | None]], budget: Budget) -> tuple[Pictures, int]:
    """Contact sheets of files, each once, and how many could not be read."""
    sheets: list[str] = []
    seen: dict[Path, int] = {}
    index: dict[tuple[str, str], int] = {}
    size, unreadable, end = 0, 0, time.monotonic() + budget.max_s
    for key, path in wanted:
        if len(sheets) >= budget.max_videos or size >= budget.max_bytes or time.monotonic() > end:
            break
        if path is None:
            unreadable += 1
            continue
        if path not in seen:
            sheet = budget.sheet(path)
            if sheet is None:
                unreadable += 1
                continue
            seen[path] = len(sheets)
            sheets.append("data:image/webp;base64," + base64.b64encode(sheet).decode("ascii"))
            size += len(sheets[-1])
        index[key] = seen[path]
    return Pictures(sheets, index), unreadable


def _has_records(run: RunData) -> bool:
    records: Sequence[QuestionRecord] = next((e.records for s in run.measured for e in s.evaluations.values()), [])
    return bool(records)
