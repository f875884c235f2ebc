"""What published numbers can carry, from the tables and the question counts alone: no model is run and no answer is needed.

Checks of form (can the number exist? do sums and restated differences agree?) are exact, in decimals and fractions. Checks of weight
(is a gain more than chance?) can only bound what a paired test would say, since per-question answers are not published. Every finding
carries its arithmetic. Any folder of the same form can be audited (see `harness.tables.published`).
"""

from __future__ import annotations

from dataclasses import replace

from harness.tables.manifest import DifferenceClaim
from harness.tables.published import Published
from harness.tables.table import Cell, Row, Table
from reproduce.audit.baseline import baseline_findings
from reproduce.audit.claims import claim_findings
from reproduce.audit.finding import Audit, Finding, GainFinding
from reproduce.audit.form import gaps, grim_table, provenance, repeated_rows, sums
from reproduce.audit.gains import about, claimed_gains, gain_finding, untested_gains


def audit(published: Published) -> Audit:
    """Run every check the manifest allows.

    Raises:
        PublishedError: a claim names a table, row, column or value that is not there.
    """
    m = published.manifest
    findings: list[Finding] = [*provenance(published)]
    for table in published.tables.values():
        findings += grim_table(table, m.benchmarks)
        findings += sums(table)
        findings += gaps(table)
        findings += repeated_rows(table)
    findings += claim_findings(published)
    gains = claimed_gains(published)
    findings += [gain_finding(g, m.benchmarks, m.alpha) for g in gains]
    findings += baseline_findings(published, gains)
    findings += untested_gains(published)
    words = {key: text for g in gains if (text := _claimed(g, published)) for key in (about(g),)}
    findings = [replace(f, about=words.get(f.about, f.about)) for f in findings]
    return Audit(m.title, m.source, m.alpha, tuple(findings), tuple(gains))


def _claimed(gain: GainFinding, published: Published) -> str:
    """The words of the text's claim that states this gain, so that both are one line; empty where none does."""
    for c in published.manifest.claims:
        if isinstance(c, DifferenceClaim) and (c.cell.row, c.other.row) == (gain.candidate, gain.baseline):
            info = published.table(c.cell.table).info
            if (info.title, info.columns.get(c.cell.column)) == (gain.table, gain.benchmark):
                return c.text
    return ""


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
