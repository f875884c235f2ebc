"""What a claimed gain can carry without the answers: its unpaired z, the discordance a paired test bears, others' numbers for the base."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace

from harness.tables.manifest import BenchmarkInfo, Gain
from harness.tables.published import Published, PublishedTable
from reproduce.audit.arithmetic import max_discordant, max_discordant_exact, two_sided, unpaired_z, z_crit
from reproduce.audit.finding import Finding, GainFinding, Number
from reproduce.audit.form import half_digit


def claimed_gains(published: Published) -> list[GainFinding]:
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


def _excluded(table: PublishedTable, gain: Gain) -> str:
    return next((r for row in (gain.candidate, gain.baseline) if (r := table.excluded(table.position(row)))), "")


def untested_gains(published: Published) -> Iterable[Finding]:
    """Claimed gains that no test speaks of, since a row may rest on other questions."""
    for table in published.tables.values():
        for gain in table.info.gains:
            if reason := _excluded(table, gain):
                where = f"{table.info.title}, {gain.candidate} over {gain.baseline}"
                yield Finding("gain", "note", where, "not tested", reason, {}, about=where)


def _one_gain(table: PublishedTable, gain: Gain, published: Published) -> Iterable[GainFinding]:
    alpha = published.manifest.alpha
    for column, name in table.info.columns.items():
        a, b = table.value(gain.candidate, column), table.value(gain.baseline, column)
        if not name or a is None or b is None or _excluded(table, gain):
            continue
        info = published.manifest.benchmarks[name]
        x, y, half = float(a), float(b), float(half_digit(table))
        z, d = unpaired_z(x, y, info.n), x - y
        ends = [unpaired_z(min(100.0, max(0.0, x + s * half)), min(100.0, max(0.0, y - s * half)), info.n) for s in (-1, 1)]
        p, q = x / 100, y / 100
        exact = max_discordant_exact(d, info.n, alpha)
        yield GainFinding(
            table.info.title, gain.candidate, gain.baseline, name, info.title, info.n, info.videos, y, x, d, z, ends[0], ends[1],
            two_sided(z), 1.0, 1, 100 * max_discordant(d, info.n, alpha), None if exact is None else 100 * exact,
            (100 * abs(p - q), 100 * min(p + q, 2 - p - q)), (z / z_crit(alpha)) ** 2,
        )  # fmt: skip


def gain_finding(gain: GainFinding, benchmarks: dict[str, BenchmarkInfo], alpha: float) -> Finding:
    info, crit = benchmarks[gain.benchmark], z_crit(alpha)
    p, q = gain.candidate_pct / 100, gain.base_pct / 100
    se = gain.gain / gain.z if gain.z else 0.0
    text = (
        f"d = {gain.candidate_pct:g} - {gain.base_pct:g} = {gain.gain:+.1f}; "
        f"SE = 100 sqrt(({q:.3f} x {1 - q:.3f} + {p:.3f} x {1 - p:.3f}) / {gain.n}) = {se:.2f}; "
        f"unpaired z = {gain.z:.2f} ({gain.z_low:.2f} to {gain.z_high:.2f} by rounding), p = {gain.p:.2g}, "
        f"Holm over {gain.family}: {gain.p_holm:.2g}. "
    )
    if info.granularity == "mean":
        text += "Subtasks of unequal difficulty make the SE a little smaller. "
    if gain.always_paired:
        most = gain.feasible_discordant_pct[1]
        text += f"Paired: significant at any share of discordant questions these accuracies allow (at most {most:.0f} %)"
    else:
        share = f"{gain.n} x {abs(gain.gain) / 100:.3f}^2 / {crit:.2f}^2 = {gain.max_discordant_pct:.1f} %"
        exact = "none" if gain.max_discordant_exact_pct is None else f"{gain.max_discordant_exact_pct:.1f} %"
        text += f"Paired: significant only with at most {share} of the questions discordant (exact test: {exact})"
    if gain.videos is not None and gain.videos < gain.n:
        text += f". The {gain.n / gain.videos:.1f} questions on a video are not independent, which as a rule widens the SE"
        text += f": z bears {gain.max_design_effect:.1f} times the variance" if gain.max_design_effect >= 1 else ""
    for v in info.variants:
        z = unpaired_z(gain.candidate_pct, gain.base_pct, v.n)
        text += f". With n = {v.n} ({v.meaning}): z = {z:.2f}, at most {100 * max_discordant(gain.gain, v.n, alpha):.1f} % discordant"
    if info.undocumented:
        text += ". The aggregation is undocumented, so n and this standard error are an assumption"
    verdict = gain.verdict(alpha)
    if verdict == "note":
        text += f". Significant alone, not among {gain.family} by the unpaired test"
    numbers: dict[str, Number] = {k: v for k, v in asdict(gain).items() if isinstance(v, float | int | str) or v is None}
    where = f"{gain.table}, {gain.candidate} over {gain.baseline}, {gain.title}"
    return Finding("gain", verdict, where, f"{gain.gain:+.1f} points", text, numbers, about(gain))


def about(gain: GainFinding) -> str:
    return f"{gain.candidate} over {gain.baseline} on {gain.title}: {gain.gain:+.1f} points ({gain.table})"
