"""What published numbers can carry, from the tables and the question counts alone: no model is run and no answer is needed.

Checks of form (can the number exist? do sums and restated differences agree?) are exact, in decimals and fractions. Checks of weight
(is a gain more than chance?) can only bound what a paired test would say, since per-question answers are not published. Every finding
carries its arithmetic. Any folder of the same form can be audited (see `harness.tables.published`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from typing import Literal

from harness.tables.published import (
    AboveClaim,
    BenchmarkInfo,
    BestClaim,
    DifferenceClaim,
    Gain,
    Published,
    PublishedError,
    PublishedTable,
    SameClaim,
    ValueClaim,
)
from harness.tables.table import Cell, Row, Table
from reproduce.audit.arithmetic import grim, max_discordant, max_discordant_exact, two_sided, unpaired_z, z_crit

AUDIT_SCHEMA = 1

Check = Literal["grim", "sum", "gap", "value", "difference", "order", "same", "gain", "unit", "provenance"]
Verdict = Literal["ok", "note", "doubt", "fault"]
"""ok: holds. note: a reader must know it. doubt: the numbers alone do not carry the claim. fault: the numbers contradict each other."""

VERDICTS: tuple[Verdict, ...] = ("fault", "doubt", "note", "ok")
Number = float | int | str | bool | None


@dataclass(frozen=True)
class Finding:
    """One result of the audit: what was looked at, the verdict, and the arithmetic that a reader can redo by hand."""

    check: Check
    verdict: Verdict
    where: str
    claim: str
    arithmetic: str
    numbers: dict[str, Number]


@dataclass(frozen=True)
class GainFinding:
    """A claimed gain on one benchmark, in points, with what can be said of it without the answers."""

    table: str
    candidate: str
    baseline: str
    benchmark: str
    title: str
    n: int
    videos: int | None
    base_pct: float
    candidate_pct: float
    gain: float
    z: float
    """Unpaired: gain over the standard error of a difference of two independent proportions."""
    z_low: float
    z_high: float
    """z at the ends of what rounding of both values allows."""
    p: float
    p_holm: float
    family: int
    """Number of gains corrected together."""
    max_discordant_pct: float
    """Largest share of questions answered differently right at which McNemar's test is still significant (100 n d^2 / z_crit^2)."""
    max_discordant_exact_pct: float | None
    """The same by the exact binomial form; None where no share is."""
    feasible_discordant_pct: tuple[float, float]
    """Least and largest share that these two accuracies allow at all."""
    max_design_effect: float
    """Variance inflation (questions on one video are alike) up to which the unpaired z stays significant; under 1: it is not."""

    @property
    def always_paired(self) -> bool:
        """Whether a paired test is significant whatever share of questions is discordant."""
        return self.max_discordant_pct >= self.feasible_discordant_pct[1]

    def verdict(self, alpha: float) -> Verdict:
        """ok: significant after Holm even unpaired; note: alone only; doubt: not significant, or no gain."""
        if self.gain <= 0 or self.p > alpha:
            return "doubt"
        return "ok" if self.p_holm <= alpha else "note"


@dataclass(frozen=True)
class Audit:
    """All findings on a folder of published tables."""

    title: str
    source: str
    alpha: float
    findings: tuple[Finding, ...]
    gains: tuple[GainFinding, ...]

    def of(self, verdict: Verdict) -> list[Finding]:
        """The findings with that verdict, in order."""
        return [f for f in self.findings if f.verdict == verdict]

    def to_json(self) -> str:
        counts = {v: len(self.of(v)) for v in VERDICTS}
        return json.dumps({"schema_version": AUDIT_SCHEMA, "counts": counts, **asdict(self)}, indent=1, allow_nan=False) + "\n"


def audit(published: Published) -> Audit:
    """Run every check the manifest allows.

    Raises:
        PublishedError: a claim names a table, row, column or value that is not there.
    """
    m = published.manifest
    findings: list[Finding] = [*_provenance(published)]
    for table in published.tables.values():
        findings += _grim_table(table, m.benchmarks)
        findings += _sums(table)
        findings += _gaps(table)
        findings += _repeated_rows(table)
    findings += _claims(published)
    gains = _gains(published)
    findings += [_gain_finding(g, m.benchmarks, m.alpha) for g in gains]
    return Audit(m.title, m.source, m.alpha, tuple(findings), tuple(gains))


def _grim_table(table: PublishedTable, benchmarks: dict[str, BenchmarkInfo]) -> Iterable[Finding]:
    info = table.info
    if info.kind != "accuracy":
        return
    for column, name in info.columns.items():
        if not name:
            continue
        b = benchmarks[name]
        where = f"{info.title}, {b.title}"
        step = 100 / b.n
        # A row given twice under two headings is one value.
        once = {(table.labels[i], v): i for i, r in reversed(list(enumerate(table.values))) if (v := r[column]) is not None}
        values = sorted((i, v) for (_, v), i in once.items())
        if b.granularity == "unknown":
            text = f"not checked: {b.undocumented or 'aggregation unknown'}"
            yield Finding("grim", "note", where, f"{len(values)} values", text, {"n": b.n})
            continue
        if step <= 10**-info.decimals:
            text = f"one question of {b.n} is {step:.4f} points, at most the last digit shown: every value is possible, GRIM cannot speak"
            yield Finding("grim", "ok", where, f"{len(values)} values", text, {"n": b.n, "step": step})
            continue
        good = 0
        for i, v in values:
            g = grim(v, b.n, info.decimals)
            if g.rounded:
                good += 1
                continue
            reason = table.excluded(i)
            text = (
                f"{v} % of {b.n} is {float(v) * b.n / 100:g} right answers, no whole number; {math.floor(float(v) * b.n / 100)} would be "
                f"{g.below:.{info.decimals + 1}f}, {math.floor(float(v) * b.n / 100) + 1} would be {g.above:.{info.decimals + 1}f}"
            )
            if g.truncated:
                text += "; cutting digits off instead of rounding would give it"
            elif not reason:
                text += "; neither rounding nor cutting digits off gives it. Another question set, a mean of several runs or a slip would"
            verdict: Verdict = "note" if reason or g.truncated else "fault"
            numbers: dict[str, Number] = {"value": float(v), "n": b.n, "below": g.below, "above": g.above, "row": table.labels[i]}
            yield Finding("grim", verdict, f"{where}, {table.labels[i]}", f"{v} %", text + (f". But: {reason}" if reason else ""), numbers)
        text = f"one question of {b.n} is {step:g} points; {good} of {len(values)} values are whole numbers of questions"
        yield Finding("grim", "ok" if good == len(values) else "note", where, f"{len(values)} values", text, {"n": b.n, "possible": good})


def _sums(table: PublishedTable) -> Iterable[Finding]:
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
        slack = Decimal(0) if table.info.kind == "counts" else _half(table) * (len(known) + 1)
        yield _compare("sum", f"{table.info.title}, {column}, {label}", stated, sum(known, Decimal(0)), slack, " + ".join(map(str, known)))


def _gaps(table: PublishedTable) -> Iterable[Finding]:
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
        yield _compare("gap", f"{table.info.title}, {column}, {gap.label}", stated, mean - reference, 3 * _half(table), text)


def _half(table: PublishedTable) -> Decimal:
    return Decimal(5).scaleb(-table.info.decimals - 1)


def _compare(check: Check, where: str, stated: Decimal, computed: Decimal, slack: Decimal, text: str) -> Finding:
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


def _repeated_rows(table: PublishedTable) -> Iterable[Finding]:
    for label in dict.fromkeys(x for x in table.labels if table.labels.count(x) > 1):
        rows = [table.values[i] for i, x in enumerate(table.labels) if x == label]
        differing = [c for c in table.numeric if len({r[c] for r in rows}) > 1]
        text = f"given {len(rows)} times, " + (f"differing in {', '.join(differing)}" if differing else "with equal values")
        yield Finding("same", "fault" if differing else "ok", f"{table.info.title}, {label}", "repeated row", text, {"times": len(rows)})


def _provenance(published: Published) -> Iterable[Finding]:
    for text in published.manifest.missing:
        yield Finding("provenance", "note", published.manifest.title, "left out", text, {})
    for b in published.manifest.benchmarks.values():
        if b.undocumented:
            counts = " or ".join(str(n) for n in (b.n, *(v.n for v in b.variants)))
            yield Finding("provenance", "note", b.title, "undocumented", f"{b.undocumented} Taken here: {counts} questions.", {"n": b.n})


def _need(published: Published, file: str, row: str, column: str, claim: str) -> tuple[PublishedTable, Decimal]:
    table = published.table(file)
    value = table.value(row, column)
    if value is None:
        raise PublishedError(f"claim {claim!r}: {file} reports no {column} for {row!r}")
    return table, value


def _claims(published: Published) -> Iterable[Finding]:
    called_percent: list[str] = []
    for c in published.manifest.claims:
        if isinstance(c, ValueClaim):
            table, value = _need(published, c.cell.table, c.cell.row, c.cell.column, c.id)
            text = f"{table.info.title} has {value}"
            numbers: dict[str, Number] = {"stated": float(c.value), "computed": float(value)}
            yield Finding("value", "ok" if value == c.value else "fault", _where(c.text, c.source), str(c.value), text, numbers)
        elif isinstance(c, DifferenceClaim):
            table, a = _need(published, c.cell.table, c.cell.row, c.cell.column, c.id)
            other, b = _need(published, c.other.table, c.other.row, c.other.column, c.id)
            # Two rounded values and a rounded difference.
            slack = _half(table) + _half(other) + Decimal(5).scaleb(min(0, int(c.value.as_tuple().exponent)) - 1)
            yield _compare("difference", _where(c.text, c.source), c.value, a - b, slack, f"{a} - {b}")
            if c.unit == "percent" and table.info.kind == "accuracy" and b:
                called_percent.append(f"{c.id}: {a - b} points, relatively {float((a - b) / b) * 100:+.1f} %")
        elif isinstance(c, BestClaim):
            yield _best(published, c)
        elif isinstance(c, AboveClaim):
            yield _above(published, c)
        else:
            yield _same(published, c)
    if called_percent:
        text = "differences of percentages are points, yet called %; relative changes are other numbers: " + "; ".join(called_percent)
        yield Finding("unit", "note", "claims", f"{len(called_percent)} differences called %", text, {"count": len(called_percent)})


def _where(text: str, source: str) -> str:
    return f"{text} [{source}]"


def _best(published: Published, c: BestClaim) -> Finding:
    table, value = _need(published, c.cell.table, c.cell.row, c.cell.column, c.id)
    at = table.position(c.cell.row)
    for name in c.among:
        table.position(name)
    rivals = [
        (v, table.labels[i])
        for i, r in enumerate(table.values)
        if i != at and (v := r[c.cell.column]) is not None and (not c.among or table.labels[i] in c.among)
    ]
    if not rivals:
        return Finding("order", "note", _where(c.text, c.source), str(value), "no other row reports a value", {})
    second, name = max(rivals)
    unreported = sum(r[c.cell.column] is None for r in table.values)
    text = f"{value} against {second} ({name}), next of {len(rivals)} others" + (f"; {unreported} rows report none" if unreported else "")
    b = published.manifest.benchmarks.get(table.info.columns[c.cell.column])
    if b is not None:
        text += f"; unpaired z = {unpaired_z(float(value), float(second), b.n):.1f} at n = {b.n}"
    verdict: Verdict = "ok" if value > second else "note" if value == second else "fault"
    numbers: dict[str, Number] = {"value": float(value), "next": float(second), "next_row": name}
    return Finding("order", verdict, _where(c.text, c.source), str(value), text + (" (a tie)" if value == second else ""), numbers)


def _above(published: Published, c: AboveClaim) -> Finding:
    """All columns above, or with `comparable` none significantly below (one-sided unpaired test)."""
    parts, below, clearly_below = [], 0, 0
    for column in c.columns:
        table, a = _need(published, c.table, c.row, column, c.id)
        _, b = _need(published, c.table, c.other, column, c.id)
        info = published.manifest.benchmarks.get(table.info.columns[column])
        z = unpaired_z(float(a), float(b), info.n) if info is not None else None
        parts.append(f"{column} {a} - {b} = {a - b:+}" + (f" (z = {z:.1f})" if z is not None else ""))
        below += a <= b
        clearly_below += z is not None and z < -z_crit(2 * published.manifest.alpha)
    text = ", ".join(parts)
    if not c.comparable:
        verdict: Verdict = "ok" if not below else "fault"
    elif clearly_below:
        verdict = "doubt"
        text += f"; below by more than chance explains (one-sided {published.manifest.alpha:g}) on {clearly_below} of {len(c.columns)}"
    else:
        verdict = "note" if below else "ok"
        text += "; what is below is within chance, and without a margin 'comparable' says no more" if below else ""
    numbers: dict[str, Number] = {"below": below, "columns": len(c.columns)}
    return Finding("order", verdict, _where(c.text, c.source), f"{c.row} against {c.other}", text, numbers)


def _same(published: Published, c: SameClaim) -> Finding:
    one, two = published.table(c.table), published.table(c.other_table)
    shared = [(x, y) for x, bx in one.info.columns.items() for y, by in two.info.columns.items() if bx and bx == by]
    pairs = [(x, one.value(c.row, x), two.value(c.other_row, y)) for x, y in shared]
    differing = [f"{x}: {a} and {b}" for x, a, b in pairs if a != b]
    text = f"differing in {'; '.join(differing)}" if differing else "equal in " + ", ".join(f"{x} {a}" for x, a, _ in pairs)
    verdict: Verdict = "fault" if differing else "ok" if pairs else "note"
    return Finding("same", verdict, _where(c.text, c.source), c.row, text if pairs else "no column in common", {"columns": len(pairs)})


def _gains(published: Published) -> list[GainFinding]:
    from harness.stats import holm  # brings scipy

    families: dict[str, list[GainFinding]] = {}
    for table in published.tables.values():
        for gain in table.info.gains:
            key = gain.family or f"{table.info.file}: {gain.candidate} / {gain.baseline}"
            families.setdefault(key, []).extend(_one_gain(table, gain, published))
    out = []
    for members in families.values():
        for g, p in zip(members, holm([g.p for g in members]), strict=True):
            out.append(replace(g, p_holm=float(p), family=len(members)))
    return out


def _one_gain(table: PublishedTable, gain: Gain, published: Published) -> Iterable[GainFinding]:
    alpha = published.manifest.alpha
    for column, name in table.info.columns.items():
        a, b = table.value(gain.candidate, column), table.value(gain.baseline, column)
        if not name or a is None or b is None:
            continue
        info = published.manifest.benchmarks[name]
        x, y, half = float(a), float(b), float(_half(table))
        z, d = unpaired_z(x, y, info.n), x - y
        ends = [unpaired_z(min(100.0, max(0.0, x + s * half)), min(100.0, max(0.0, y - s * half)), info.n) for s in (-1, 1)]
        p, q = x / 100, y / 100
        exact = max_discordant_exact(d, info.n, alpha)
        yield GainFinding(
            table.info.title, gain.candidate, gain.baseline, name, info.title, info.n, info.videos, y, x, d, z, ends[0], ends[1],
            two_sided(z), 1.0, 1, 100 * max_discordant(d, info.n, alpha), None if exact is None else 100 * exact,
            (100 * abs(p - q), 100 * min(p + q, 2 - p - q)), (z / z_crit(alpha)) ** 2,
        )  # fmt: skip


def _gain_finding(g: GainFinding, benchmarks: dict[str, BenchmarkInfo], alpha: float) -> Finding:
    info, crit = benchmarks[g.benchmark], z_crit(alpha)
    p, q = g.candidate_pct / 100, g.base_pct / 100
    se = g.gain / g.z if g.z else 0.0
    text = (
        f"d = {g.candidate_pct:g} - {g.base_pct:g} = {g.gain:+.1f}; "
        f"SE = 100 sqrt(({q:.3f} x {1 - q:.3f} + {p:.3f} x {1 - p:.3f}) / {g.n}) = {se:.2f}; "
        f"unpaired z = {g.z:.2f} ({g.z_low:.2f} to {g.z_high:.2f} by rounding), p = {g.p:.2g}, Holm over {g.family}: {g.p_holm:.2g}. "
    )
    if info.granularity == "mean":
        text += "Subtasks of unequal difficulty make the SE a little smaller. "
    if g.always_paired:
        most = g.feasible_discordant_pct[1]
        text += f"Paired: significant at any share of discordant questions these accuracies allow (at most {most:.0f} %)"
    else:
        share = f"{g.n} x {abs(g.gain) / 100:.3f}^2 / {crit:.2f}^2 = {g.max_discordant_pct:.1f} %"
        exact = "none" if g.max_discordant_exact_pct is None else f"{g.max_discordant_exact_pct:.1f} %"
        text += f"Paired: significant only with at most {share} of the questions discordant (exact test: {exact})"
    if g.videos is not None and g.videos < g.n:
        text += f". The {g.n / g.videos:.1f} questions on a video are not independent, which as a rule widens the SE"
        text += f": z bears {g.max_design_effect:.1f} times the variance" if g.max_design_effect >= 1 else ""
    for v in info.variants:
        z = unpaired_z(g.candidate_pct, g.base_pct, v.n)
        text += f". With n = {v.n} ({v.meaning}): z = {z:.2f}, at most {100 * max_discordant(g.gain, v.n, alpha):.1f} % discordant"
    if info.undocumented:
        text += ". The aggregation is undocumented, so n and this standard error are an assumption"
    verdict = g.verdict(alpha)
    if verdict == "note":
        text += f". Significant alone, not among {g.family} by the unpaired test"
    numbers: dict[str, Number] = {k: v for k, v in asdict(g).items() if isinstance(v, float | int | str) or v is None}
    where = f"{g.table}, {g.candidate} over {g.baseline}, {g.title}"
    return Finding("gain", verdict, where, f"{g.gain:+.1f} points", text, numbers)


def gains_table(result: Audit) -> Table:
    """The claimed gains as a table of cells (all derived from published values)."""
    rows = []
    for g in result.gains:
        verdict = g.verdict(result.alpha)
        paired = "any" if g.always_paired else f"≤ {g.max_discordant_pct:.1f} %"
        values: list[tuple[float | int | str, str]] = [
            (g.n, f"{g.n}"), (g.gain, f"{g.gain:+.1f}"), (g.z, f"{g.z:.1f}"), (g.p, f"{g.p:.2g}"), (g.p_holm, f"{g.p_holm:.2g}"),
            (g.max_discordant_pct, paired), (g.max_design_effect, f"{g.max_design_effect:.1f}"), (verdict, verdict),
        ]  # fmt: skip
        rows.append(Row(g.title, tuple(Cell(v, t, source="derived") for v, t in values), f"{g.table}: {g.candidate} over {g.baseline}"))
    columns = ("n", "gain", "unpaired z", "p", "p (Holm)", "significant paired if discordant", "design effect borne", "verdict")
    notes = (
        f"alpha {result.alpha:g}, two-sided; questions taken as independent. Holm within each group.",
        "ok: significant after Holm even unpaired. note: significant alone only. doubt: not significant unpaired.",
        "The paired column says at what share of differently answered questions a paired test would be significant all the same.",
    )
    return Table(f"Gains claimed in {result.title}", "published", columns, tuple(rows), notes, "benchmark")
