"""Checks of form, exact in decimals and fractions: can a number exist, do sums, gaps and repeated rows agree?"""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import Decimal

from harness.tables.manifest import BenchmarkInfo
from harness.tables.published import Published, PublishedTable
from reproduce.audit.arithmetic import UNANSWERED, Grim, fitting_share, grim
from reproduce.audit.finding import Check, Finding, Number, Verdict


def grim_table(table: PublishedTable, benchmarks: dict[str, BenchmarkInfo]) -> Iterable[Finding]:
    """Whether every accuracy of a table can come from its number of questions (GRIM), all answered or a few unanswered."""
    info = table.info
    for column, name in info.columns.items() if info.kind == "accuracy" else ():
        if not name:
            continue
        b = benchmarks[name]
        where = f"{info.title}, {b.title}"
        # A row given twice under two headings is one value.
        once = {(table.labels[i], v): i for i, r in reversed(list(enumerate(table.values))) if (v := r[column]) is not None}
        values = sorted((i, v) for (_, v), i in once.items())
        claim = f"{len(values)} values"
        if b.granularity == "unknown":
            yield Finding("grim", "note", where, claim, f"not checked: {b.undocumented or 'aggregation unknown'}", {"n": b.n})
            continue
        step = 100 / b.grid
        if step <= 10**-info.decimals:
            text = f"GRIM has no power here: scores lie {step:.4f} points apart, no more than the last digit shown, so every value fits"
            yield Finding("grim", "note", where, claim, text, {"n": b.n, "step": step})
            continue
        good = 0
        for i, v in values:
            g = grim(v, b.grid, info.decimals)
            good += g.rounded
            if not g.rounded:
                yield _not_whole(v, g, b, info.decimals, f"{where}, {table.labels[i]}", table.excluded(i))
        text = f"one question of {b.n} is {100 / b.n:g} points; {good} of {len(values)} values are whole numbers of questions"
        text += f". {_power(b, info.decimals)}"
        yield Finding("grim", "ok" if good == len(values) else "note", where, claim, text, {"n": b.n, "possible": good})


def _power(benchmark: BenchmarkInfo, decimals: int) -> str:
    """How many of all values GRIM would let pass."""
    exact, slack = (100 * fitting_share([benchmark.grid, *fewer], decimals) for fewer in ([], [grid for _, grid in _fewer(benchmark)]))
    text = f"Of all values with so many decimals {exact:.0f} % are; with up to {UNANSWERED} questions unanswered {slack:.0f} %"
    return text + (", so GRIM has little power then" if slack > 90 else "")


def _fewer(benchmark: BenchmarkInfo) -> list[tuple[int, int]]:
    """(unanswered questions, grid of the score without them); of unequal subtasks, in one of them."""
    out = []
    for k in range(1, UNANSWERED + 1):
        if benchmark.subtasks:
            fewer = [
                (*benchmark.subtasks[:i], size - k, *benchmark.subtasks[i + 1 :]) for i, size in enumerate(benchmark.subtasks) if size > k
            ]
            out += [(k, len(sizes) * math.lcm(*sizes)) for sizes in dict.fromkeys(fewer)]
        elif benchmark.n > k:
            out.append((k, benchmark.n - k))
    return out


def _not_whole(value: Decimal, result: Grim, benchmark: BenchmarkInfo, decimals: int, where: str, reason: str) -> Finding:
    """A value that is no whole number of questions: a fault where nothing explains it, else a note with what would."""
    count = float(value) * benchmark.grid / 100
    text = (
        f"{value} % of {benchmark.grid} is {count:g} right answers, no whole number; "
        f"{math.floor(count)} would be {result.below:.{decimals + 1}f}, {math.floor(count) + 1} would be {result.above:.{decimals + 1}f}"
    )
    fits = list(dict.fromkeys(benchmark.n - k for k, grid in _fewer(benchmark) if grim(value, grid, decimals).rounded))
    if result.truncated:
        text += "; cutting digits off instead of rounding would give it"
    if fits:
        text += (
            f"; {' or '.join(map(str, fits))} counted questions would give it ({benchmark.n - fits[0]} unanswered and left out, or more)"
        )
    if not (reason or result.truncated or fits):
        text += "; neither rounding, nor cutting digits off, nor a few unanswered questions give it. Another question set, a mean of "
        text += "several runs or a slip would"
    verdict: Verdict = "note" if reason or result.truncated or fits else "fault"
    numbers: dict[str, Number] = {
        "value": float(value),
        "n": benchmark.n,
        "below": result.below,
        "above": result.above,
        "fits": fits[0] if fits else None,
    }
    return Finding("grim", verdict, where, f"{value} %", text + (f". But: {reason}" if reason else ""), numbers)


def sums(table: PublishedTable) -> Iterable[Finding]:
    label = table.info.total_row
    if label is None:
        return
    total = table.position(label)
    for column in table.numeric:
        stated = table.values[total][column]
        parts = [r[column] for i, r in enumerate(table.values) if i != total]
        if stated is None or any(p is None for p in parts):
            yield Finding("sum", "note", f"{table.info.title}, {column}", "total", "not checked: a value is not reported", {})
            continue
        known = [p for p in parts if p is not None]
        slack = Decimal(0) if table.info.kind == "counts" else half_digit(table) * (len(known) + 1)
        yield compare("sum", f"{table.info.title}, {column}, {label}", stated, sum(known, Decimal(0)), slack, " + ".join(map(str, known)))


def gaps(table: PublishedTable) -> Iterable[Finding]:
    gap = table.info.gap_row
    if gap is None:
        return
    at, ref = table.position(gap.label), table.position(gap.reference)
    for column in table.numeric:
        stated, reference = table.values[at][column], table.values[ref][column]
        others = [r[column] for i, r in enumerate(table.values) if i not in (at, ref)]
        if stated is None or reference is None or not others or any(o is None for o in others):
            yield Finding("gap", "note", f"{table.info.title}, {column}", gap.label, "not checked: a value is not reported", {})
            continue
        known = [o for o in others if o is not None]
        mean = sum(known, Decimal(0)) / len(known)
        text = f"({' + '.join(map(str, known))}) / {len(known)} - {reference} = {mean.normalize():f} - {reference}"
        # The value stated is rounded once, the mean and the reference once each.
        yield compare("gap", f"{table.info.title}, {column}, {gap.label}", stated, mean - reference, 3 * half_digit(table), text)


def half_digit(table: PublishedTable) -> Decimal:
    return Decimal(5).scaleb(-table.info.decimals - 1)


def compare(check: Check, where: str, stated: Decimal, computed: Decimal, slack: Decimal, text: str) -> Finding:
    """Stated against computed: equal to the digits stated, within the rounding of what went in, or a contradiction."""
    digits = max(0, -int(stated.as_tuple().exponent))
    half = Decimal(5).scaleb(-digits - 1) if check != "sum" or slack else Decimal(0)
    off = abs(stated - computed)
    shown = f"{float(computed):.{digits + 2}f}".rstrip("0").rstrip(".")
    numbers: dict[str, Number] = {"stated": float(stated), "computed": float(computed)}
    if off <= half:
        return Finding(check, "ok", where, str(stated), f"{text} = {shown}", numbers)
    if off <= slack:
        text = f"{text} = {shown}, {float(off):g} off, which rounding of the parts explains"
        return Finding(check, "note", where, str(stated), text, numbers)
    return Finding(check, "fault", where, str(stated), f"{text} = {shown}, but {stated} is stated ({float(off):g} off)", numbers)


def repeated_rows(table: PublishedTable) -> Iterable[Finding]:
    for label in dict.fromkeys(x for x in table.labels if table.labels.count(x) > 1):
        rows = [table.values[i] for i, x in enumerate(table.labels) if x == label]
        differing = [c for c in table.numeric if len({r[c] for r in rows}) > 1]
        text = f"given {len(rows)} times, " + (f"differing in {', '.join(differing)}" if differing else "with equal values")
        yield Finding("same", "fault" if differing else "ok", f"{table.info.title}, {label}", "repeated row", text, {"times": len(rows)})


def provenance(published: Published) -> Iterable[Finding]:
    for text in published.manifest.missing:
        yield Finding("provenance", "note", published.manifest.title, "left out", text, {})
    for b in published.manifest.benchmarks.values():
        if b.undocumented:
            counts = " or ".join(str(n) for n in (b.n, *(v.n for v in b.variants)))
            yield Finding("provenance", "note", b.title, "undocumented", f"{b.undocumented} Taken here: {counts} questions.", {"n": b.n})
