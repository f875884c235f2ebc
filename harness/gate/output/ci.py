"""The gate's result in the forms a CI reads: JUnit XML, GitHub step summary (Markdown), GitHub annotations.

Text only: nothing here runs, opens or decides anything. Names and messages may quote model answers, so every form escapes them:
control characters are dropped, markup is shown as text, line breaks cannot start a new workflow command.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from harness.gate.decision import QUESTION_TEXT, Decision, GateResult

MAX_MESSAGE = 2_000
_NOT_TEXT = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|[\u200e\u200f\u202a-\u202e\u2066-\u2069]")
MARKS = {"pass": "✅", "fail": "❌", "inconclusive": "❓", "integrity": "⛔"}


def plain(text: str, limit: int = MAX_MESSAGE) -> str:
    """Text without control characters, escape sequences and direction marks, cut at `limit` characters."""
    clean = _NOT_TEXT.sub("�", text)
    return clean if len(clean) <= limit else f"{clean[:limit]}... ({len(clean):,} characters)"


def decision_line(d: Decision) -> str:
    """One line: estimate, bounds, margin, MDE, n."""
    mde = f"MDE {d.mde:.2f}" if d.mde is not None else "MDE unknown"
    return (
        f"{d.estimate:+.2f} points [{d.low:+.2f}, {d.high:+.2f}], margin {d.margin:g}, {mde}, {d.n:,} questions on {d.videos:,} videos, "
        f"p = {d.p_value:.3g}, {d.method}"
    )


def junit(result: GateResult, *, suite: str = "gate") -> str:
    """JUnit XML: one test a benchmark and a decision, and one for each integrity problem.

    A fail is a `failure`; an inconclusive required decision too (a gate that cannot tell has not passed); integrity problems are `error`s;
    decisions for information only, and excused ones, are `skipped` unless they pass.
    """
    counts = {"failures": 0, "errors": 0, "skipped": 0}
    root = ET.Element("testsuites")
    ts = ET.SubElement(root, "testsuite", name=plain(suite))
    for p in result.integrity:
        case = ET.SubElement(ts, "testcase", classname=f"{plain(suite)}.integrity", name=plain(f"{p.benchmark} {p.side} {p.code}"))
        kind = "skipped" if p.excused_by else "error"
        counts["skipped" if p.excused_by else "errors"] += 1
        _add(case, kind, p.code, p.excused_by or p.message)
    for d in result.decisions:
        case = ET.SubElement(ts, "testcase", classname=f"{plain(suite)}.{d.question}", name=plain(d.benchmark))
        ET.SubElement(case, "system-out").text = plain(decision_line(d))
        if d.verdict == "pass":
            continue
        informal = not d.required or d.excused_by is not None
        counts["skipped" if informal else "failures"] += 1
        _add(case, "skipped" if informal else "failure", d.verdict, f"{d.excused_by or d.note} ({decision_line(d)})")
    if not result.decisions and not result.integrity:
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
    out = [head, f"{who}, alpha {result.alpha:g}, exit code {result.exit_code}\n"]
    if result.integrity:
        out.append("\n| integrity | side | problem |\n|---|---|---|\n")
        out += [f"| {_cell(p.benchmark)} {_cell(p.code)} | {p.side} | {_cell(p.excused_by or p.message)} |\n" for p in result.integrity]
    if result.decisions:
        out.append("\n| benchmark | question | candidate | reference | difference (bounds) | margin | MDE | n (videos) | verdict | |\n")
        out.append("|---|---|---:|---:|---:|---:|---:|---:|---|---|\n")
        for d in result.decisions:
            mde = f"{d.mde:.2f}" if d.mde is not None else "?"
            out.append(
                f"| {_cell(d.benchmark)} | {_cell(QUESTION_TEXT[d.question])} | {_pct(d.candidate_pct)} | {_pct(d.reference_pct)} "
                f"| {d.estimate:+.2f} ({d.low:+.2f} to {d.high:+.2f}) | {d.margin:g} | {mde} | {d.n:,} ({d.videos:,}) "
                f"| {MARKS[d.verdict]} {d.verdict}{'' if d.required else ' (information)'} | {_cell(d.excused_by or d.note)} |\n"
            )
    if result.exceptions:
        out.append("\nApproved exceptions:\n\n" + "".join(f"- {_cell(x)}\n" for x in result.exceptions))
    return "".join(out)


def _pct(x: float | None) -> str:
    return f"{x:.2f}" if x is not None else ""


def _data(text: str) -> str:
    return plain(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def workflow_commands(result: GateResult) -> list[str]:
    """GitHub workflow commands: an error for each fail and integrity problem, a warning for what is inconclusive, a notice for
    exceptions."""
    out = []
    for p in result.integrity:
        level = "notice" if p.excused_by else "error"
        out.append(f"::{level} title={_property(f'gate integrity: {p.benchmark} {p.code}')}::{_data(p.excused_by or p.message)}")
    for d in result.decisions:
        if d.verdict == "pass" or not d.required:
            continue
        level = "notice" if d.excused_by else "error" if d.verdict == "fail" else "warning"
        out.append(
            f"::{level} title={_property(f'gate {d.verdict}: {d.benchmark}')}::{_data(f'{d.excused_by or d.note} ({decision_line(d)})')}"
        )
    out += [f"::notice title=gate exception::{_data(x)}" for x in result.exceptions]
    return out
