"""Claims of the text against the tables: restated values and differences, who leads, who is above whom, tables that repeat rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal

from harness.tables.manifest import AboveClaim, BestClaim, Claim, DifferenceClaim, SameClaim, ValueClaim
from harness.tables.published import Published, PublishedError, PublishedTable
from reproduce.audit.arithmetic import p_below, unpaired_z
from reproduce.audit.finding import Finding, Number, Verdict
from reproduce.audit.form import compare, half_digit


def _need(published: Published, file: str, row: str, column: str, claim: str) -> tuple[PublishedTable, Decimal]:
    table = published.table(file)
    value = table.value(row, column)
    if value is None:
        raise PublishedError(f"claim {claim!r}: {file} reports no {column} for {row!r}")
    return table, value


def claim_findings(published: Published) -> Iterable[Finding]:
    """Every claim of the manifest, held against the tables.

    Raises:
        PublishedError: a claim names a table, row, column or value that is not there.
    """
    called_percent: list[str] = []
    for c in published.manifest.claims:
        yield replace(_held(published, c), about=c.text)
        if isinstance(c, DifferenceClaim) and c.unit == "percent":
            table, a = _need(published, c.cell.table, c.cell.row, c.cell.column, c.id)
            _, b = _need(published, c.other.table, c.other.row, c.other.column, c.id)
            if table.info.kind == "accuracy" and b:
                called_percent.append(f"{c.id}: {a - b} points, relatively {float((a - b) / b) * 100:+.1f} %")
    if called_percent:
        text = "differences of percentages are points, yet called %; relative changes are other numbers: " + "; ".join(called_percent)
        yield Finding("unit", "note", "claims", f"{len(called_percent)} differences called %", text, {"count": len(called_percent)})


def _held(published: Published, claim: Claim) -> Finding:
    if isinstance(claim, ValueClaim):
        table, value = _need(published, claim.cell.table, claim.cell.row, claim.cell.column, claim.id)
        numbers: dict[str, Number] = {"stated": float(claim.value), "computed": float(value)}
        verdict: Verdict = "ok" if value == claim.value else "fault"
        return Finding("value", verdict, _where(claim.text, claim.source), str(claim.value), f"{table.info.title} has {value}", numbers)
    if isinstance(claim, DifferenceClaim):
        table, a = _need(published, claim.cell.table, claim.cell.row, claim.cell.column, claim.id)
        other, b = _need(published, claim.other.table, claim.other.row, claim.other.column, claim.id)
        # Two rounded values and a rounded difference.
        slack = half_digit(table) + half_digit(other) + Decimal(5).scaleb(min(0, int(claim.value.as_tuple().exponent)) - 1)
        return compare("difference", _where(claim.text, claim.source), claim.value, a - b, slack, f"{a} - {b}")
    if isinstance(claim, BestClaim):
        return _best(published, claim)
    return _above(published, claim) if isinstance(claim, AboveClaim) else _same(published, claim)


def _where(text: str, source: str) -> str:
    return f"{text} [{source}]"


def _weight(
    published: Published, table: PublishedTable, one: tuple[str, Decimal], two: tuple[str, Decimal], column: str
) -> tuple[float | None, str]:
    """(unpaired z of two rows, what to say of it); no z where the column has no n, or a row may rest on other questions."""
    info = published.manifest.benchmarks.get(table.info.columns[column])
    if info is None:
        return None, ""
    reason = next((r for row, _ in (one, two) if (r := table.excluded(table.position(row)))), "")
    if reason:
        return None, f" (no z: {reason})"
    z = unpaired_z(float(one[1]), float(two[1]), info.n)
    return z, f" (unpaired z = {z:.1f} at n = {info.n})"


def _best(published: Published, claim: BestClaim) -> Finding:
    table, value = _need(published, claim.cell.table, claim.cell.row, claim.cell.column, claim.id)
    at = table.position(claim.cell.row)
    for name in claim.among:
        table.position(name)
    rivals = [
        (v, table.labels[i])
        for i, r in enumerate(table.values)
        if i != at and (v := r[claim.cell.column]) is not None and (not claim.among or table.labels[i] in claim.among)
    ]
    if not rivals:
        return Finding("order", "note", _where(claim.text, claim.source), str(value), "no other row reports a value", {})
    second, name = max(rivals)
    unreported = sum(r[claim.cell.column] is None for r in table.values)
    text = f"{value} against {second} ({name}), next of {len(rivals)} others" + (f"; {unreported} rows report none" if unreported else "")
    text += _weight(published, table, (claim.cell.row, value), (name, second), claim.cell.column)[1]
    verdict: Verdict = "ok" if value > second else "note" if value == second else "fault"
    numbers: dict[str, Number] = {"value": float(value), "next": float(second), "next_row": name}
    return Finding("order", verdict, _where(claim.text, claim.source), str(value), text + (" (a tie)" if value == second else ""), numbers)


def _above(published: Published, claim: AboveClaim) -> Finding:
    """All columns above, or with `comparable` none significantly below (one-sided unpaired test)."""
    from harness.stats import holm  # brings scipy

    alpha = published.manifest.alpha
    parts, below = [], 0
    zs: list[float] = []
    for column in claim.columns:
        table, a = _need(published, claim.table, claim.row, column, claim.id)
        _, b = _need(published, claim.table, claim.other, column, claim.id)
        z, said = _weight(published, table, (claim.row, a), (claim.other, b), column)
        parts.append(f"{column} {a} - {b} = {a - b:+}{said}")
        below += a <= b
        zs += [] if z is None else [z]
    clearly_below = sum(float(p) <= alpha for p in holm([p_below(z) for z in zs])) if zs else 0
    text = ", ".join(parts)
    if not claim.comparable:
        verdict: Verdict = "ok" if not below else "fault"
    elif clearly_below:
        verdict = "doubt"
        text += (
            f"; below by more than chance explains (one-sided {alpha:g} after Holm over the columns) on {clearly_below} of "
            f"{len(claim.columns)}"
        )
    else:
        verdict = "note" if below else "ok"
        text += "; what is below is within chance, and without a margin 'comparable' says no more" if below else ""
    numbers: dict[str, Number] = {"below": below, "columns": len(claim.columns)}
    return Finding("order", verdict, _where(claim.text, claim.source), f"{claim.row} against {claim.other}", text, numbers)


def _same(published: Published, claim: SameClaim) -> Finding:
    one, two = published.table(claim.table), published.table(claim.other_table)
    shared = [(x, y) for x, bx in one.info.columns.items() for y, by in two.info.columns.items() if bx and bx == by]
    pairs = [(x, one.value(claim.row, x), two.value(claim.other_row, y)) for x, y in shared]
    differing = [f"{x}: {a} and {b}" for x, a, b in pairs if a != b]
    text = f"differing in {'; '.join(differing)}" if differing else "equal in " + ", ".join(f"{x} {a}" for x, a, _ in pairs)
    verdict: Verdict = "fault" if differing else "ok" if pairs else "note"
    return Finding(
        "same", verdict, _where(claim.text, claim.source), claim.row, text if pairs else "no column in common", {"columns": len(pairs)}
    )
