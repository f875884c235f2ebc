"""The published base beside what others measured of the same model: a base below others' makes a part of a gain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.tables.manifest import External
from harness.tables.published import Published
from reproduce.audit.arithmetic import two_sided, unpaired_z
from reproduce.audit.finding import Finding, GainFinding, Number, Verdict
from reproduce.audit.gains import about

OTHER = "other questions"


def baseline_findings(published: Published, gains: Sequence[GainFinding]) -> Iterable[Finding]:
    """A finding for each gain whose base others measured too. Measurements on other questions are named and enter no arithmetic. Never a
    fault: another prompt or other frames may explain a gap."""
    from harness.stats import holm  # brings scipy

    info = published.manifest.external
    families: dict[tuple[str, str, str], list[tuple[GainFinding, list[External], float]]] = {}
    for g in gains if info else ():
        rows = [e for e in published.external if info and (info.rows.get(e.model), e.benchmark) == (g.baseline, g.benchmark)]
        comparable = [float(e.value) for e in rows if e.grade != OTHER]
        if comparable:
            families.setdefault((g.table, g.candidate, g.baseline), []).append((g, rows, max(comparable)))
        elif rows:
            text = f"nothing comparable is reported. {_said(rows)}"
            yield Finding("baseline", "note", _where(g), f"{g.base_pct:g} %", text, {}, about(g))
    for members in families.values():
        adjusted = holm([two_sided(unpaired_z(high, g.base_pct, g.n)) for g, _, high in members])
        for (g, rows, high), p in zip(members, adjusted, strict=True):
            yield _baseline(g, rows, high, float(p), len(members), published.manifest.alpha)


def _baseline(gain: GainFinding, rows: Sequence[External], high: float, p_gap: float, family: int, alpha: float) -> Finding:
    """One base on one benchmark. `high`: the highest comparable measurement; `p_gap`: of the gap to it, after Holm over `family` gaps."""
    gap, over = high - gain.base_pct, gain.candidate_pct - high
    z_gap, z_over = unpaired_z(high, gain.base_pct, gain.n), unpaired_z(gain.candidate_pct, high, gain.n)
    text = (
        f"{high:g}, the highest comparable base, is {gap:+.1f} from {gain.base_pct:g}: unpaired z = {z_gap:.1f}, p = {p_gap:.2g} "
        f"after Holm over {family}; "
    )
    if gap > 0 and gain.gain > 0:
        text += f"that covers {100 * gap / gain.gain:.0f} % of the gain of {gain.gain:+.1f}; "
    text += f"over the highest base the gain is {gain.candidate_pct:g} - {high:g} = {over:+.1f}, unpaired z = {z_over:.1f}. {_said(rows)}"
    verdict: Verdict = "ok" if gap <= 0 else "note"
    if gap > 0 and (p_gap <= alpha or over <= 0 or two_sided(z_over) > alpha):
        verdict = "doubt"
    numbers: dict[str, Number] = {
        "published": gain.base_pct, "highest": high, "gap": gap, "z": z_gap, "p_holm": p_gap, "over_highest": over,
        "z_over_highest": z_over, "share_of_gain_pct": 100 * gap / gain.gain if gain.gain > 0 else None,
    }  # fmt: skip
    return Finding("baseline", verdict, _where(gain), f"{gain.base_pct:g} %", text, numbers, about(gain))


def _where(gain: GainFinding) -> str:
    return f"{gain.table}, {gain.baseline}, {gain.title}"


def _said(rows: Sequence[External]) -> str:
    """What others report, each with what is known of how it was measured."""
    parts = []
    for e in rows:
        known = {"split": e.split, "n": e.n, "frames": e.frames, "prompt": e.prompt, "harness": e.harness}
        how = ", ".join([e.grade, *(f"{what} {text}" for what, text in known.items() if text), *([e.note] if e.note else [])])
        parts.append(f"{e.value} by {e.measured_by} ({e.source}: {how})")
    return "Others report: " + "; ".join(parts)
