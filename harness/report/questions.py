"""The question browser's data: one row a question with both models' answers and why each was scored so, as compact columns.

Strings are stored once in a table and named by number. Long texts are cut, and cut shorter where a run is so big that the page
would pass its size; the page says where.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.records import QuestionRecord
from harness.report.compare import Key, index_records
from harness.report.data import RunData, Stage, title_of
from harness.report.text import legible, packed_json

MAX_PAGE = 14_000_000
"""Characters of questions and pictures together; the rest of the page is well under the remaining megabyte of 15."""
PLAIN_BELOW = 400_000
LIMITS: tuple[tuple[int, int], ...] = (
    (4000, 4000),
    (2000, 1000),
    (1000, 600),
    (800, 400),
    (600, 250),
    (400, 160),
    (240, 96),
    (120, 48),
    (0, 0),
)
"""(prompt, answer) characters kept, tried in turn until the page is small enough."""

Row = tuple[str, Key, list[QuestionRecord | None]]
"""Benchmark, key, and the record of each measured stage."""

_STATUS_WORDS = {
    "unparsed": "No rule could read an answer in it",
    "empty": "The answer is empty",
    "degenerate": "One token repeated, so no answer",
    "failed": "No answer was made",
}


def why(record: QuestionRecord) -> str:
    """One or two sentences: how the answer was read and what credit both rules gave."""
    parsed, target = legible(record.parsed or "", 80), legible(record.target, 80)
    full, up = record.strict >= 1, record.upstream
    credit = "right" if full else "wrong" if record.strict <= 0 else f"{100 * record.strict:.0f} % of the credit"
    if record.status == "ok":
        first = f"Read as “{parsed}”, the key is “{target}”: {credit}."
    elif record.status == "judged":
        first = f"An outside judge decided (key “{target}”): {credit}."
    else:
        detail = f" ({legible(record.error, 160)})" if record.error else ""
        first = f"{_STATUS_WORDS[record.status]}{detail}, so the strict rule counts it {credit}; the key is “{target}”."
    if abs(up - record.strict) > 1e-9:
        guess = " by a random guess" if record.status == "unparsed" and up > record.strict else ""
        first += f" lmms-eval itself gave {100 * up:.0f} %{guess}."
    return first


@dataclass
class _Strings:
    """A table of strings, each once."""

    items: list[str]
    where: dict[str, int]

    def __call__(self, text: str) -> int:
        i = self.where.get(text)
        if i is None:
            i = self.where[text] = len(self.items)
            self.items.append(text)
        return i


def _indexed(stages: Sequence[Stage], benchmark: str) -> list[dict[Key, QuestionRecord]]:
    return [index_records(s.evaluations[benchmark].records) if benchmark in s.evaluations else {} for s in stages]


def _trail(found: Sequence[QuestionRecord | None]) -> str:
    return "".join("-" if r is None else "1" if r.strict >= 1 else "0" if r.strict <= 0 else "h" for r in found)


def question_rows(run: RunData) -> list[Row]:
    """Every question of the run in catalog, task and document order with its record in each measured stage."""
    rows = []
    for b in run.benchmarks:
        found = _indexed(run.measured, b)
        keys: dict[Key, int] = {k: r.doc_id for f in reversed(found) for k, r in f.items()}
        for key in sorted(keys, key=lambda k: (k[0], keys[k], k[2])):
            rows.append((b, key, [f.get(key) for f in found]))
    return rows


def _payload(
    run: RunData,
    rows: Sequence[Row],
    pictures: Mapping[tuple[str, str], int],
    limits: tuple[int, int],
) -> dict[str, object]:
    s = _Strings([], {})
    cols: dict[str, list[int]] = {
        k: [] for k in ("bench", "task", "video", "prompt", "target", "trail", "pic", "a", "aw", "as", "ac", "b", "bw", "bs", "bc", "out")
    }
    prompt_max, answer_max = limits

    def put(side: str, record: QuestionRecord | None) -> None:
        if record is None:
            values = (-1, -1, -1, -1)
        else:
            values = (
                s(legible(record.answer, answer_max)) if answer_max else -1,
                s(why(record)),
                s(record.status),
                round(100 * record.strict),
            )
        for k, v in zip((side, f"{side}w", f"{side}s", f"{side}c"), values, strict=True):
            cols[k].append(v)

    single = len(run.measured) < 2
    for b, _, found in rows:
        first, last = found[0], None if single else found[-1]
        r = next(x for x in (last, first, *found) if x is not None)
        cols["bench"].append(s(title_of(b)))
        cols["task"].append(s(legible(r.task, 120)))
        cols["video"].append(s(legible(r.video_id, 120)))
        cols["prompt"].append(s(legible(r.prompt, prompt_max)) if prompt_max else -1)
        cols["target"].append(s(legible(r.target, min(answer_max, 300))))
        cols["trail"].append(s(_trail(found)))
        cols["pic"].append(pictures.get((b, r.video_path), -1))
        put("a", first)
        put("b", last)
        cols["out"].append(_outcome(first, last, single))
    return {
        "n": len(rows),
        "stages": [x.title for x in run.measured],
        "single": single,
        "strings": s.items,
        "columns": cols,
        "cut": [prompt_max, answer_max],
    }


def _outcome(first: QuestionRecord | None, last: QuestionRecord | None, single: bool) -> int:
    """0 got better, 1 got worse, 2 right in both, 3 wrong in both, 4 asked in one only. With one stage: 2 right, 3 wrong."""
    if single and first is not None:
        return 2 if first.strict >= 1 else 3
    if first is None or last is None:
        return 4
    if last.strict != first.strict:
        return 0 if last.strict > first.strict else 1
    return 2 if first.strict >= 0.5 else 3


def _characters(rows: Sequence[Row], limits: tuple[int, int]) -> int:
    """Characters of prompts and answers that `limits` keep."""
    prompt_max, answer_max = limits
    total = 0
    for _, _, found in rows:
        shown = [r for r in (found[0], found[-1]) if r is not None]
        total += sum(min(len(r.answer), answer_max) for r in shown) + (min(len(shown[0].prompt), prompt_max) if shown else 0)
    return total


def questions_payload(
    run: RunData, pictures: Mapping[tuple[str, str], int], *, max_chars: int = MAX_PAGE
) -> tuple[str, tuple[int, int] | None]:
    """The JSON of the question browser and, where texts had to be cut shorter than usual, the (prompt, answer) characters kept."""
    rows = question_rows(run)
    text = packed_json(_payload(run, rows, pictures, LIMITS[0]), plain_below=PLAIN_BELOW)
    if len(text) <= max_chars:
        return text, None
    # Packing is the slow part, so limits that cannot do by the first attempt's share of characters are passed over.
    share = len(text) / max(_characters(rows, LIMITS[0]), 1)
    for limits in LIMITS[1:]:
        if _characters(rows, limits) * share > max_chars and limits != LIMITS[-1]:
            continue
        text = packed_json(_payload(run, rows, pictures, limits), plain_below=PLAIN_BELOW)
        if len(text) <= max_chars:
            break
    return text, limits
