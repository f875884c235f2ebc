"""The question browser's data: one row a question with every stage's answer and why it was scored so, as compact columns.

Strings are stored once in a table and named by number. Long texts are cut, and cut shorter where a run is so big that the page
would pass its size; the page says where.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from harness.records import Key, QuestionRecord, index_records
from harness.report.browse.strings import Strings
from harness.report.data import RunData, Stage, title_of
from harness.report.text import legible, packed_json

MAX_PAGE = 14_000_000
"""Characters of questions, pairs and pictures together; the rest of the page is well under the remaining megabyte of 15."""
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

_STATUS_WORDS = {
    "unparsed": "No rule could read an answer in it",
    "empty": "The answer is empty",
    "degenerate": "One token repeated, so no answer",
    "failed": "No answer was made",
}


@dataclass(frozen=True)
class Row:
    """One question of a run: its benchmark, its key, and its record in each measured stage."""

    benchmark: str
    key: Key
    found: list[QuestionRecord | None]
    number: int
    """1 for the first question on its video, in task and document order."""

    @property
    def record(self) -> QuestionRecord:
        """What is the same in all stages is read from the last one that has it."""
        return next(r for r in reversed(self.found) if r is not None)

    @property
    def address(self) -> str:
        """`BENCHMARK/VIDEO/NUMBER`: the same in every report of the same questions."""
        return f"{quote(self.benchmark, safe='')}/{quote(legible(self.record.video_id, 120), safe='')}/{self.number}"


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


def _indexed(stages: Sequence[Stage], benchmark: str) -> list[dict[Key, QuestionRecord]]:
    return [index_records(s.evaluations[benchmark].records) if benchmark in s.evaluations else {} for s in stages]


def question_rows(run: RunData) -> list[Row]:
    """Every question of the run in catalog, task and document order with its record in each measured stage."""
    rows = []
    for b in run.benchmarks:
        found = _indexed(run.measured, b)
        keys: dict[Key, QuestionRecord] = {k: r for f in found for k, r in f.items()}
        numbers: Counter[str] = Counter()
        for key in sorted(keys, key=lambda k: (k[0], keys[k].doc_id, k[2])):
            video = keys[key].video_id
            numbers[video] += 1
            rows.append(Row(b, key, [f.get(key) for f in found], numbers[video]))
    return rows


def _answers(rows: Sequence[Row], stage: int, s: Strings, answer_max: int) -> dict[str, list[int]]:
    """One stage's columns: answer, why, status, credit in percent; -1 where the question was not asked."""
    columns: dict[str, list[int]] = {"text": [], "why": [], "status": [], "credit": []}
    for row in rows:
        r = row.found[stage]
        if r is None:
            values = (-1, -1, -1, -1)
        else:
            text = s(legible(r.answer, answer_max)) if answer_max else -1
            values = (text, s(why(r)), s(r.status), round(100 * r.strict))
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    return columns


def _payload(
    run: RunData,
    rows: Sequence[Row],
    pictures: Mapping[tuple[str, str], int],
    clip: Callable[[str], str | None],
    limits: tuple[int, int],
) -> dict[str, object]:
    s = Strings()
    prompt_max, answer_max = limits
    benches = {b: i for i, b in enumerate(run.benchmarks)}
    cols: dict[str, list[int]] = {k: [] for k in ("bench", "task", "video", "number", "prompt", "target", "picture", "clip")}
    for row in rows:
        r = row.record
        cols["bench"].append(benches[row.benchmark])
        cols["task"].append(s(legible(r.task, 120)))
        cols["video"].append(s(legible(r.video_id, 120)))
        cols["number"].append(row.number)
        cols["prompt"].append(s(legible(r.prompt, prompt_max)) if prompt_max else -1)
        cols["target"].append(s(legible(r.target, min(answer_max, 300))))
        cols["picture"].append(pictures.get((row.benchmark, r.video_path), -1))
        url = clip(r.video_path)
        cols["clip"].append(-1 if url is None else s(url))
    return {
        "n": len(rows),
        "stages": [[x.key, x.title, x.short] for x in run.measured],
        "benches": [[b, title_of(b)] for b in benches],
        "strings": s.items,
        "columns": cols,
        "answers": [_answers(rows, i, s, answer_max) for i in range(len(run.measured))],
    }


def _characters(rows: Sequence[Row], limits: tuple[int, int]) -> int:
    """Characters of prompts and answers that `limits` keep."""
    prompt_max, answer_max = limits
    total = 0
    for row in rows:
        total += min(len(row.record.prompt), prompt_max)
        total += sum(min(len(r.answer), answer_max) for r in row.found if r is not None)
    return total


def _no_clip(video_path: str) -> None:
    return None


def questions_payload(
    run: RunData,
    pictures: Mapping[tuple[str, str], int],
    *,
    clip: Callable[[str], str | None] = _no_clip,
    max_chars: int = MAX_PAGE,
) -> tuple[str, tuple[int, int] | None]:
    """The JSON of the question browser and, where texts had to be cut shorter than usual, the (prompt, answer) characters kept.

    `clip` gives the address of a record's video file, or None where the file is not at hand.
    """
    rows = question_rows(run)
    text = packed_json(_payload(run, rows, pictures, clip, LIMITS[0]), plain_below=PLAIN_BELOW)
    if len(text) <= max_chars:
        return text, None
    # Packing is the slow part, so limits that cannot do by the first attempt's share of characters are passed over.
    share = len(text) / max(_characters(rows, LIMITS[0]), 1)
    for limits in LIMITS[1:]:
        if _characters(rows, limits) * share > max_chars and limits != LIMITS[-1]:
            continue
        text = packed_json(_payload(run, rows, pictures, clip, limits), plain_below=PLAIN_BELOW)
        if len(text) <= max_chars:
            break
    return text, limits
