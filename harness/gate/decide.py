"""From evidence to decisions, and from decisions to one verdict and an exit code. Knows no records, no statistics and no files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

from harness.gate.decision import ALL, QUESTION_TEXT, Changed, Decision, Evidence, GateResult, Overall, Question, Verdict, exit_code
from harness.gate.exceptions import EXCUSABLE_PROBLEMS
from harness.gate.settings import GateSettings
from harness.integrity import IntegrityProblem

ADJUST_PASS = frozenset({"improved"})
"""Questions where a pass of any benchmark is news, so passes are adjusted. Elsewhere the overall pass needs every benchmark to pass, so
each is tested at alpha (intersection-union; Berger 1982). A fail of any benchmark fails all, so fails are always adjusted."""


def decide(evidence: Sequence[Evidence], settings: GateSettings) -> list[Decision]:
    """Verdicts at level alpha. The settings' rule adjusts for the benchmarks that are asked the same question; their mean stands by
    itself."""
    out: list[Decision] = []
    for question in dict.fromkeys(e.question for e in evidence):
        group = [e for e in evidence if e.question == question and e.benchmark != ALL]
        adjust = settings.multiplicity.adjust
        adjusted = zip(group, adjust([e.p_value for e in group]), adjust([e.p_fail for e in group]), strict=True)
        alone = [(e, e.p_value, e.p_fail) for e in evidence if e.question == question and e.benchmark == ALL]
        for e, p_adjusted, p_fail in (*adjusted, *alone):
            p_pass = p_adjusted if question in ADJUST_PASS else e.p_value
            verdict: Verdict = "pass" if p_pass <= settings.alpha else "fail" if p_fail <= settings.alpha else "inconclusive"
            out.append(
                Decision(
                    **{**asdict(e), "note": e.note or _NOTES[e.question](e, verdict)},
                    verdict=verdict,
                    p_adjusted=float(p_adjusted),
                    p_fail_adjusted=float(p_fail),
                    required=settings.is_required(question, e.benchmark, mean=bool(alone)),
                    veto=settings.has_veto(question),
                )
            )
    return out


def _needs(evidence: Evidence) -> str:
    need = (
        f"; about {evidence.n_needed:,} questions would settle a difference of {evidence.margin:g}"
        if evidence.n_needed and evidence.n_needed > evidence.n
        else ""
    )
    if evidence.mde is None:
        return "too few videos for any statement"
    power = f"; power {evidence.power:.2f} if nothing changed" if evidence.power is not None else ""
    return f"smallest effect seen with this many questions: {evidence.mde:.1f} points{need}{power}"


def _no_regression_note(evidence: Evidence, verdict: Verdict) -> str:
    if verdict == "pass":
        return f"a loss of {evidence.margin:g} points or more is ruled out"
    if verdict == "fail":
        return f"worse by more than {evidence.margin:g} points ({evidence.estimate:+.1f})"
    return f"a loss of {evidence.margin:g} points is neither shown nor ruled out; {_needs(evidence)}"


def _improved_note(evidence: Evidence, verdict: Verdict) -> str:
    if verdict == "pass":
        return f"better ({evidence.estimate:+.1f} points)"
    if verdict == "fail":
        return f"worse ({evidence.estimate:+.1f} points)"
    return f"no improvement shown; {_needs(evidence)}"


def _format_note(evidence: Evidence, verdict: Verdict) -> str:
    if evidence.reference_pct is None:
        said = {"pass": "below", "fail": "above"}.get(verdict, "not shown to be below")
        return f"{evidence.candidate_pct:.1f} % of the answers cannot be read, {said} {evidence.margin:g} %"
    shares = f"{evidence.candidate_pct:.1f} % of the answers cannot be read, {evidence.reference_pct:.1f} % before"
    if verdict == "pass":
        return f"{shares}; a rise of {evidence.margin:g} points or more is ruled out"
    if verdict == "fail":
        return f"{shares}; risen by more than {evidence.margin:g} points"
    return f"{shares}; a rise of {evidence.margin:g} points is neither shown nor ruled out"


def _published_note(evidence: Evidence, verdict: Verdict) -> str:
    what = "score" if evidence.question == "published_score" else "gain"
    if verdict == "pass":
        return f"the {what} agrees with the published one within {evidence.margin:g} points"
    if verdict == "fail":
        side = "above" if evidence.estimate > 0 else "below"
        return f"the {what} is {abs(evidence.estimate):.1f} points {side} the published one (either way means a different measurement)"
    seen = f"{evidence.mde:.1f} points" if evidence.mde is not None else "nothing"
    return f"neither agreement nor difference is shown; with this rerun noise agreement within {seen} can be shown"


_NOTES: dict[Question, Callable[[Evidence, Verdict], str]] = {
    "no_regression": _no_regression_note,
    "improved": _improved_note,
    "format": _format_note,
    "published_score": _published_note,
    "published_gain": _published_note,
}


def excuse(problems: Sequence[IntegrityProblem], settings: GateSettings) -> list[IntegrityProblem]:
    """The problems, those that an approved exception covers marked so."""
    return [replace(p, excused_by=_exception_for(p.benchmark, p.code, settings)) if p.code in EXCUSABLE_PROBLEMS else p for p in problems]


def _exception_for(benchmark: str, code: str, settings: GateSettings) -> str | None:
    return next(
        (
            e.text(settings.day)
            for e in settings.exceptions
            if e.covers_case(benchmark=benchmark, code=code, run=settings.run, today=settings.day)
        ),
        None,
    )


def conclude(
    decisions: Sequence[Decision],
    problems: Sequence[IntegrityProblem],
    settings: GateSettings,
    *,
    candidate: str = "",
    reference: str = "",
    scale: str = "",
    changed: Mapping[str, Changed] | None = None,
) -> GateResult:
    """Combine decisions into a result: integrity before everything, then any `fail` that counts, then any required `inconclusive`, then
    `pass`."""
    problems = excuse(problems, settings)
    decided = [
        replace(d, excused_by=_exception_for(d.benchmark, d.question, settings)) if d.verdict != "pass" and (d.required or d.veto) else d
        for d in decisions
    ]
    stopping = [p for p in problems if p.stops]
    counted = [d for d in decided if d.counts]
    verdict: Overall
    if stopping:
        verdict = "integrity"
        reasons = [f"{p.benchmark} ({p.side}): {p.message}" for p in stopping]
    elif not any(d.required for d in decided):
        verdict, reasons = "inconclusive", ["nothing was decided"]
    else:
        found = {d.verdict for d in counted}
        verdict = "fail" if "fail" in found else "inconclusive" if "inconclusive" in found else "pass"
        reasons = [f"{d.benchmark}: {d.note or QUESTION_TEXT[d.question]}" for d in counted if d.verdict == verdict != "pass"]
    return GateResult(
        decisions=decided,
        integrity=problems,
        verdict=verdict,
        exit_code=exit_code(verdict, settings.inconclusive),
        exceptions=[e.text(settings.day) for e in settings.exceptions if e.run == settings.run],
        candidate=candidate,
        reference=reference,
        scale=scale,
        alpha=settings.alpha,
        reasons=reasons,
        inconclusive=settings.inconclusive,
        changed=dict(changed or {}),
    )
