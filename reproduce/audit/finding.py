"""What an audit finds: one `Finding` a check, one `GainFinding` a claimed gain. Values only."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

AUDIT_SCHEMA = 2

Check = Literal["grim", "sum", "gap", "value", "difference", "order", "same", "gain", "baseline", "unit", "provenance"]
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
    about: str = ""
    """The claim it is about, in words: findings on one claim have the same; empty for a check of form."""


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

    def claims(self) -> list[tuple[str, Verdict, str]]:
        """One line a claim: its words, the worst verdict of the findings on it, and which checks gave that verdict."""
        about: dict[str, list[Finding]] = {}
        for f in self.findings:
            if f.about:
                about.setdefault(f.about, []).append(f)
        out = []
        for words, found in about.items():
            worst = min((f.verdict for f in found), key=VERDICTS.index)
            out.append((words, worst, ", ".join(dict.fromkeys(f.check for f in found if f.verdict == worst))))
        return out

    def to_json(self) -> str:
        counts = {v: len(self.of(v)) for v in VERDICTS}
        return (
            json.dumps(
                {"schema_version": AUDIT_SCHEMA, "counts": counts, "claims": self.claims(), **asdict(self)}, indent=1, allow_nan=False
            )
            + "\n"
        )
