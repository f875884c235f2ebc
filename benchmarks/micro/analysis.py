"""What the loop did, judged afterwards against the ground truth it never saw: validity of its questions, accuracy of its answers before and
after critique, precision of its preference pairs. Reads pairs.jsonl and dropped.jsonl; nothing here is imported by the loop."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.micro.world import questions as q
from benchmarks.micro.world.world import Scene, make_scene, scene_rng


def _pattern(template: str, value: bool) -> str:
    p = re.escape(template).replace(r"\{0\}", r"(?P<a>\w+)").replace(r"\{1\}", r"(?P<b>\w+)")
    return p.replace(r"\{v\}", r"(?P<v>\w+)") if value else p


_ASKED = {f: re.compile(_pattern(t, False) + r"(?P<options>( [A-E] \w+)*)") for f, t in q.QUESTIONS.items()}
_STATED = {f: re.compile("is it true that " + _pattern(t, True) + r" \?") for f, t in q.STATEMENTS.items()}


@dataclass(frozen=True)
class Judged:
    """A question the model wrote: its family, form and the right reply on its video."""

    family: str
    form: q.Form
    key: str


def _args(match: re.Match[str]) -> tuple[str, ...]:
    return tuple(v for k, v in match.groupdict().items() if k in "ab" and v)


def judge_question(scene: Scene, text: str) -> Judged | None:
    """The right reply to a model-written question, or None where it has none: not a question of the micro world, about something that
    is not
    there, or without exactly one right option."""
    text = " ".join(text.split())
    for family, rx in _STATED.items():
        if m := rx.fullmatch(text):
            f = q.truth(scene, family, _args(m))
            if f and m["v"] in q.VALUES[family]:
                return Judged(family, "yes_no", "yes" if f.value == m["v"] else "no")
    for family, rx in _ASKED.items():
        if m := rx.fullmatch(text):
            f = q.truth(scene, family, _args(m))
            words = m["options"].split()
            letters, options = words[::2], words[1::2]
            if f is None or letters != list(q.LETTERS[: len(letters)]) or options.count(f.value) != 1 or len(set(options)) < 2:
                return None
            return Judged(family, "choice", letters[options.index(f.value)])
    return None


@dataclass(frozen=True)
class PairQuality:
    """Counts of one iteration. Percentages 0-100; None where there is nothing to divide by.

    `asked` questions the model wrote, `valid_pct` of them with one right reply. Of the valid ones: `initial_pct` right at first,
    `revised_pct` right after critique. `pairs` kept; of those on valid questions: `good` corrected a mistake, `bad` spoilt a right
    answer, `neutral` exchanged two wrong ones; `precision_pct` = good / (good + bad). `initial_yes_pct` and `revised_yes_pct`: share of
    "yes" among the replies to questions answered yes or no both times; far apart, they show a leaning that corrections work against."""

    asked: int
    valid_pct: float | None
    initial_pct: float | None
    revised_pct: float | None
    pairs: int
    pairs_valid: int
    good: int
    bad: int
    neutral: int
    precision_pct: float | None
    initial_yes_pct: float | None = None
    revised_yes_pct: float | None = None


def _is_right(reply: object, judged: Judged) -> bool:
    """A reply names its letter (or yes/no) last."""
    return str(reply).split()[-1:] == [judged.key]


def _pct(part: int, whole: int) -> float | None:
    return round(100 * part / whole, 2) if whole else None


def judge_pairs(pairs: Iterable[Mapping[str, object]], unchanged: Iterable[Mapping[str, object]], seed: int) -> PairQuality:
    """Judge an iteration whose videos were `build_videos(folder, n, seed)`.

    Rows carry `video` (path or name `0000.mp4`), `question`, and pairs `rejected` (initial) and `chosen` (revised); unchanged rows
    `initial`."""
    scenes: dict[int, Scene] = {}

    def scene(row: Mapping[str, object]) -> Scene:
        i = int(Path(str(row["video"])).stem)
        if i not in scenes:
            scenes[i] = make_scene(scene_rng(seed, i, "unlabelled"))
        return scenes[i]

    asked = valid = first = after = n_pairs = n_valid = good = bad = neutral = 0
    said: list[tuple[object, object]] = []
    rows = list(pairs)
    kept = [{**row, "initial": row["rejected"]} for row in rows if row["rejected"] == row["chosen"]]
    for row in (r for r in rows if r["rejected"] != r["chosen"]):
        asked, n_pairs = asked + 1, n_pairs + 1
        said.append((row["rejected"], row["chosen"]))
        j = judge_question(scene(row), str(row["question"]))
        if j is None:
            continue
        was, now = _is_right(row["rejected"], j), _is_right(row["chosen"], j)
        valid, n_valid, first, after = valid + 1, n_valid + 1, first + was, after + now
        good, bad, neutral = good + (now and not was), bad + (was and not now), neutral + (not was and not now)
    for row in (*unchanged, *kept):
        asked += 1
        said.append((row["initial"], row["initial"]))
        j = judge_question(scene(row), str(row["question"]))
        if j is not None:
            right = _is_right(row["initial"], j)
            valid, first, after = valid + 1, first + right, after + right
    yes_no = [(a == "yes", b == "yes") for a, b in said if {a, b} <= {"yes", "no"}]
    yes = [_pct(sum(pair[i] for pair in yes_no), len(yes_no)) for i in (0, 1)]
    return PairQuality(
        asked,
        _pct(valid, asked),
        _pct(first, valid),
        _pct(after, valid),
        n_pairs,
        n_valid,
        good,
        bad,
        neutral,
        _pct(good, good + bad),
        *yes,
    )
