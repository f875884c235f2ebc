"""The pair browser's data: every preference pair and every question that gave none, as compact columns.

Where a run has so many that the page would pass its size, texts are cut, and then pairs are left out evenly; the page says both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.report.browse.media import Clip
from harness.report.browse.strings import Strings
from harness.report.data import PairRow, RunData, Stage
from harness.report.text import legible, packed_json

MAX_PAIRS = 5_000_000
"""Characters of the packed pairs in a page."""
PLAIN_BELOW = 200_000
LIMITS = (4000, 1000, 400, 160)
"""Characters kept of each text, tried in turn until the page is small enough."""
_TEXTS = ("question", "initial", "critique", "revision", "chosen", "rejected", "detail")
_NAMES = ("kind", "outcome", "reason", "id")


@dataclass(frozen=True)
class PairsPayload:
    """The packed JSON, what was kept of it and how many pairs there are."""

    text: str
    shown: int
    total: int
    cut: int | None
    """Characters that texts were cut to, where that is less than usual."""


def pairs_payload(
    run: RunData, clips: Callable[[Stage], Clip], pictures: Mapping[tuple[str, str], int] | None = None, *, max_chars: int = MAX_PAIRS
) -> PairsPayload | None:
    """The pairs of all iterations; None where there are none.

    `clips` gives the addresses of an iteration's videos, `pictures` the number of the contact sheet of (stage, video).
    """
    found = [(i, s, row) for i, s in enumerate(run.stages) if s.pairs is not None for row in s.pairs.rows]
    if not found:
        return None
    by_stage = {s.key: clips(s) for s in run.stages}
    step = 1
    for limit in (*LIMITS, *[LIMITS[-1]] * 12):
        rows = found[::step]
        text = packed_json(_columns(run, rows, by_stage, pictures or {}, limit), plain_below=PLAIN_BELOW)
        if len(text) <= max_chars:
            break
        if limit == LIMITS[-1]:
            step = max(step + 1, -(-len(found) * len(text) // (max_chars * len(rows))))
    return PairsPayload(text, len(rows), len(found), None if limit == LIMITS[0] else limit)


def _columns(
    run: RunData, rows: list[tuple[int, Stage, PairRow]], clips: dict[str, Clip], pictures: Mapping[tuple[str, str], int], limit: int
) -> dict[str, object]:
    s = Strings()
    cols: dict[str, list[int]] = {k: [] for k in ("stage", *_TEXTS, *_NAMES, "video", "clip", "picture")}
    for i, stage, row in rows:
        cols["stage"].append(i)
        for k in _TEXTS:
            cols[k].append(s(legible(getattr(row, k), limit)))
        for k in _NAMES:
            cols[k].append(s(legible(getattr(row, k), 160)))
        cols["video"].append(s(legible(row.video.rpartition("/")[2], 120)))
        cols["picture"].append(pictures.get((stage.key, row.video), -1))
        url = clips[stage.key](row.video)
        cols["clip"].append(-1 if url is None else s(url))
    return {"n": len(rows), "stages": [[x.key, x.title, x.short] for x in run.stages], "strings": s.items, "columns": cols}
