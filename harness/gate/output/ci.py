"""The gate's result in the forms a CI reads: JUnit XML, GitHub step summary (Markdown), GitHub annotations.

Text only: nothing here runs, opens or decides anything. Names and messages may quote model answers, so every form escapes them:
control characters are dropped, markup is shown as text, line breaks cannot start a new workflow command.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from harness.gate.decision import QUESTION_TEXT, Decision, GateResult

MAX_MESSAGE = 2_000
MAX_OUTPUT = 20_000
MAX_CHANGED = 100
_NOT_TEXT = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|[\u200e\u200f\u202a-\u202e\u2066-\u2069]")
MARKS = {"pass": "✅", "fail": "❌", "inconclusive": "❓", "integrity": "⛔"}


def plain(text: str, limit: int = MAX_MESSAGE) -> str:
    """Text without control characters, escape sequences and direction marks, cut at `limit` characters."""
    clean = _NOT_TEXT.sub("�", text)
    return clean if len(clean) <= limit else f"{clean[:limit]}... ({len(clean):,} characters)"


def decision_line(decision: Decision) -> str:
    """One line: estimate, bounds, margin, MDE, n."""
    mde = f"MDE {decision.mde:.2f}" if decision.mde is not None else "MDE unknown"
    return (
        f"{decision.estimate:+.2f} points [{decision.low:+.2f}, {decision.high:+.2f}], margin {decision.margin:g}, {mde}, "
        f"{decision.n:,} questions on {decision.videos:,} videos, p = {decision.p_value:.3g}, {decision.method}"
    )


def status(decision: Decision) -> str:
    """The verdict with what it counts for."""
    note = "excused" if decision.excused_by else "" if decision.required else "can only fail" if decision.veto else "information"
    return f"{decision.verdict} ({note})" if note else decision.verdict


def changed_text(result: GateResult, benchmark: str, limit: int = MAX_CHANGED) -> str:
    """The questions of a benchmark that were gained and lost, one a line."""
    found = result.changed.get(benchmark)
    if found is None:
        return ""
    out = []
    for what, names in (("lost", found.lost), ("gained", found.gained)):
        out += [f"{what} {len(names):,} questions", *(f"  {what} {x}" for x in names[:limit])]
        if len(names) > limit:
            out.append(f"  and {len(names) - limit:,} more: python -m harness diff")
    return "\n".join(out)


def junit(result: GateResult, *, suite: str = "gate") -> str:
    """JUnit XML: one test a benchmark and a decision, and one for each integrity problem.

    A fail that counts is a `failure`, and so is a required decision that is inconclusive, unless the gate was told to let those be;
    integrity problems are `error`s; everything else that is no pass is `skipped`. The output names the questions gained and lost.
    """
    counts = {"failures": 0, "errors": 0, "skipped": 0}
    root = ET.Element("testsuites")
    ts = ET.SubElement(root, "testsuite", name=plain(suite))
    for p in result.integrity:
        case = ET.SubElement(ts, "testcase", classname=f"{plain(suite)}.integrity", name=plain(f"{p.benchmark} {p.side} {p.code}"))
        counts["errors" if p.stops else "skipped"] += 1
        _add(case, "error" if p.stops else "skipped", p.code, p.excused_by or p.message)
    for d in result.decisions:
        case = ET.SubElement(ts, "testcase", classname=f"{plain(suite)}.{d.question}", name=plain(d.benchmark))
        changed = changed_text(result, d.benchmark) if d.question == "no_regression" else ""
        ET.SubElement(case, "system-out").text = plain(f"{decision_line(d)}\n{changed}".strip(), MAX_OUTPUT)
        if d.verdict == "pass":
            continue
        red = d.counts and (d.verdict == "fail" or result.inconclusive == "fail")
        counts["failures" if red else "skipped"] += 1
        _add(case, "failure" if red else "skipped", d.verdict, f"{d.excused_by or d.note} ({decision_line(d)})")
    if not result.decisions and not any(p.stops for p in result.integrity):
        counts["errors"] += 1
        _add(
            ET.SubElement(ts, "testcase", classname=f"{plain(suite)}.gate", name="decisions"), "error", "empty", "the gate decided nothing"
        )
    ts.set("tests", str(len(ts)))
    for k, v in counts.items():
        ts.set(k, str(v))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _add(case: ET.Element, tag: str, kind: str, message: str) -> None:
    e = ET.SubElement(case, tag, message=plain(message).replace("\n", " "))
    if tag != "skipped":
        e.set("type", kind)


def junit_error(message: str, *, code: int) -> str:
    """JUnit XML for a gate that could not run at all: one error, so that a missing file never looks like a green suite."""
    root = ET.Element("testsuites")
    ts = ET.SubElement(root, "testsuite", name="gate", tests="1", failures="0", errors="1", skipped="0")
    _add(ET.SubElement(ts, "testcase", classname="gate", name="run"), "error", f"exit {code}", message)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _cell(text: str) -> str:
    """Text for a Markdown table cell: no markup, no line break, no column break."""
    t = plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|~#!])", r"\\\1", t).replace("\r", " ").replace("\n", " ")


def summary(result: GateResult) -> str:
    """Markdown for $GITHUB_STEP_SUMMARY."""
    head = f"## {MARKS[result.verdict]} Gate: {result.verdict}\n\n"
    who = (
        f"{_cell(result.candidate or 'candidate')} against {_cell(result.reference or 'baseline')}, scale "
        f"{_cell(result.scale or 'unknown')}"
    )
    out = [head, f"{who}, alpha {result.alpha:g}, exit code {result.exit_code}{policy(result)}\n"]
    out += [f"\n- {_cell(x)}" for x in result.reasons] + ["\n"] * bool(result.reasons)
    if result.integrity:
        out.append("\n| integrity | side | problem |\n|---|---|---|\n")
        out += [
            f"| {_cell(p.benchmark)} {_cell(p.code)}{' (warning)' * p.warns} | {p.side} | {_cell(p.excused_by or p.message)} |\n"
            for p in result.integrity
        ]
    if result.decisions:
        out.append("\n| benchmark | question | candidate | reference | difference (bounds) | margin | MDE | n (videos) | verdict | |\n")
        out.append("|---|---|---:|---:|---:|---:|---:|---:|---|---|\n")
        for d in result.decisions:
            mde = f"{d.mde:.2f}" if d.mde is not None else "?"
            out.append(
                f"| {_cell(d.benchmark)} | {_cell(QUESTION_TEXT[d.question])} | {_pct(d.candidate_pct)} | {_pct(d.reference_pct)} "
                f"| {d.estimate:+.2f} ({d.low:+.2f} to {d.high:+.2f}) | {d.margin:g} | {mde} | {d.n:,} ({d.videos:,}) "
                f"| {MARKS[d.verdict]} {status(d)} | {_cell(d.excused_by or d.note)} |\n"
            )
    for name, c in result.changed.items():
        if c.gained or c.lost:
            head = f"{name}: {len(c.lost):,} questions lost, {len(c.gained):,} gained"
            lines = _cell(changed_text(result, name, 20)).replace("  ", "<br>")
            out.append(f"\n<details><summary>{_cell(head)}</summary>\n\n{lines}\n\n</details>\n")
    if result.exceptions:
        out.append("\nApproved exceptions:\n\n" + "".join(f"- {_cell(x)}\n" for x in result.exceptions))
    return "".join(out)


def policy(result: GateResult) -> str:
    """What is done about an inconclusive verdict, where that matters."""
    return f" (--inconclusive {result.inconclusive})" if result.verdict == "inconclusive" else ""


def _pct(value: float | None) -> str:
    return f"{value:.2f}" if value is not None else ""


def _data(text: str) -> str:
    return plain(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def workflow_commands(result: GateResult) -> list[str]:
    """GitHub workflow commands: an error for each fail and integrity problem, a warning for what is inconclusive, a notice for
    exceptions."""
    out = []
    for p in result.integrity:
        level = "error" if p.stops else "warning" if p.warns else "notice"
        out.append(f"::{level} title={_property(f'gate integrity: {p.benchmark} {p.code}')}::{_data(p.excused_by or p.message)}")
    for d in result.decisions:
        if d.verdict == "pass" or not (d.counts or (d.excused_by and d.required)):
            continue
        if d.verdict == "inconclusive" and result.inconclusive == "pass":
            continue
        level = "notice" if d.excused_by else "error" if d.verdict == "fail" else "warning"
        out.append(
            f"::{level} title={_property(f'gate {d.verdict}: {d.benchmark}')}::{_data(f'{d.excused_by or d.note} ({decision_line(d)})')}"
        )
    out += [f"::notice title=gate exception::{_data(x)}" for x in result.exceptions]
    return out
