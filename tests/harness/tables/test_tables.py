"""One table, five formats: values kept, hostile text shown as text, scales named, published numbers kept in their place."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.catalog import CATALOG, PAPER, select
from harness import escape
from harness.records import Evaluation, Provenance, QuestionRecord, Score
from harness.tables.html import page
from harness.tables.plots import Point, plot_iterations
from harness.tables.results import PublishedRow, clustered_se, mean_cell, results_table, scored
from harness.tables.table import Cell, Row, Table, TableError, from_json, pct_cell

HOSTILE = [
    "<script>alert(1)</script>", "a|b|c", "\x1b[31mred\x1b[0m", "nul\x00byte", "\u202egnp.exe", r"\input{/etc/passwd}", "$\\write18{ls}$",
    "=HYPERLINK(1)", "line\nbreak\r\n| x |", "**bold** _it_ `code` [a](javascript:b)", "&lt;b&gt; &amp;",
    "\ud800 lone", "]]> --> \"'", "~^#%&{}_",
]  # fmt: skip


def evaluation(
    benchmark: str = "egoschema", right: list[int] | None = None, *, scale: str = "micro", videos: list[str] | None = None
) -> Evaluation:
    right = right if right is not None else [1, 0, 1, 1]
    videos = videos or [f"v{i}" for i in range(len(right))]
    task = CATALOG[benchmark].tasks[0]
    records = [
        QuestionRecord(
            benchmark=benchmark, task=task, doc_id=i, question_id=f"{benchmark}-{i:030d}", video_id=v, prompt="?", target="A",
            answer="A", parsed="A", upstream=float(r), strict=float(r), status="ok", frames=8,
        )
        for i, (r, v) in enumerate(zip(right, videos, strict=True))
    ]  # fmt: skip
    pct = 100 * sum(right) / len(right)
    provenance = Provenance(model="m", weights="w", media="x", prompts="p", generation={}, frames={}, versions={})
    score = Score(
        benchmark=benchmark, scale=scale, n=len(right), n_expected=len(right), videos=len(set(videos)), upstream_pct=pct, strict_pct=pct,
        se_pct=1.0, chance_pct=20.0, subtasks={task: pct}, statuses={"ok": len(right)}, provenance=provenance,
    )  # fmt: skip
    return Evaluation(score, records)


def hostile_table() -> Table:
    rows = tuple(Row(h, (pct_cell(50.0, (40.0, 60.0), note=h, link=h), Cell(h, h)), h) for h in HOSTILE)
    return Table("T " + HOSTILE[0], "micro|" + HOSTILE[0], ("x|<b>", "y\x00"), rows, tuple(HOSTILE))


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.links += [v or "" for k, v in attrs if k == "href"]
        assert not any(k.startswith("on") for k, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def _no_control(text: str) -> None:
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)


def test_html_shows_hostile_text_as_text() -> None:
    page = hostile_table().to_html()
    _no_control(page)
    tags = _Tags()
    tags.feed(page)
    assert tags.seen <= {"figure", "figcaption", "span", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "bdi", "a", "div"}
    assert "<script>alert(1)</script>" in tags.text
    assert not any("script" in x or "javascript" in x for x in tags.links)


def test_markdown_keeps_its_columns() -> None:
    text = hostile_table().to_markdown()
    _no_control(text)
    lines = [x for x in text.splitlines() if x.startswith("|")]
    bars = {len(re.findall(r"(?<!\\)\|", x)) for x in lines}
    assert bars == {4}, "every line has two columns and a label, whatever is in them"
    assert "<script" not in text
    assert not re.search(r"(?<!\\)\]\(<?javascript", text)


def test_latex_has_no_command_of_the_text() -> None:
    text = hostile_table().to_latex()
    _no_control(text)
    known = {
        "begin", "end", "centering", "caption", "toprule", "midrule", "bottomrule", "multicolumn", "textit", "textbf", "textbackslash",
        "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar", "textquotedbl", "textasciigrave", "par", "smallskip",
        "footnotesize", "scriptsize", "label", "setlength", "tabcolsep", "parbox", "textwidth", "raggedright", "pm", "texttt",
    }  # fmt: skip
    assert set(re.findall(r"\\([a-zA-Z]+)", text)) <= known
    body = [x for x in text.splitlines() if x.endswith(r" \\") and "multicolumn" not in x]
    assert {len(re.findall(r"(?<!\\)&", x)) for x in body} == {2}
    assert text.count("{") == text.count("}")


def test_csv_is_values_and_no_formula() -> None:
    rows = list(csv.DictReader(io.StringIO(hostile_table().to_csv())))
    assert len(rows) == len(HOSTILE)
    assert all(float(r["x|<b>"]) == 50.0 and float(r["x|<b> low"]) == 40.0 for r in rows)
    assert not any(v.startswith(("=", "+", "-", "@")) for r in rows for v in r.values())
    assert {r["x|<b> source"] for r in rows} == {"measured"}


def test_json_comes_back_equal() -> None:
    table = hostile_table()
    assert from_json(table.to_json()) == table
    json.loads(table.to_json())
    with pytest.raises(TableError):
        from_json("{}")
    with pytest.raises(TableError, match="schema"):
        from_json(table.to_json().replace('"schema_version": 1', '"schema_version": 9'))


@given(st.text(max_size=60))
@settings(max_examples=60)
def test_any_text_is_harmless(text: str) -> None:
    table = Table("t", "micro", ("c",), (Row(text, (Cell(text, text, note=text, link=text),)),))
    for fmt in ("md", "latex", "html", "csv"):
        _no_control(table.render(fmt))  # type: ignore[arg-type]
    lines = [x for x in table.to_markdown().splitlines() if x.startswith("|")]
    assert len(lines) == 3
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", x)) for x in lines} == {3}
    assert len(list(csv.reader(io.StringIO(table.to_csv())))) == 2


def test_a_megabyte_of_text_is_cut_and_says_so() -> None:
    shown = escape.visible("x" * 1_000_000 + "\x1b")
    assert len(shown) < 500
    assert "1,000,001 characters" in shown


@pytest.mark.parametrize(
    ("link", "kept"),
    [("https://a.b/c?d=e&f=g#h", True), ("runs/a/report.html", True), ("javascript:alert(1)", False), ("JaVaScRiPt:x", False),
     ("//evil", False), ("data:text/html,x", False), ("https://a b", False), ("https:///x", False), ("a:b/c", False), ("", False),
     (None, False), ("x\u202ey", False)],
)  # fmt: skip
def test_links(link: str | None, kept: bool) -> None:
    assert (escape.safe_link(link) is not None) == kept


def test_a_table_that_cannot_be_is_refused() -> None:
    with pytest.raises(TableError, match="names no scale"):
        Table("t", "", ("a",), ())
    with pytest.raises(TableError, match="2 cells for 1 columns"):
        Table("t", "micro", ("a",), (Row("r", (Cell(), Cell())),))
    for bad in (math.nan, math.inf):
        with pytest.raises(TableError, match="no finite number"):
            Table("t", "micro", ("a",), (Row("r", (Cell(bad, "x"),)),))


def test_every_format_names_the_scale() -> None:
    table = Table("Results", "micro", ("a",), (Row("r", (pct_cell(50.0),)),))
    for fmt in ("md", "latex", "html", "csv", "json"):
        assert "micro" in table.render(fmt)  # type: ignore[arg-type]


def test_bold_is_for_a_first_rank_that_not_all_share() -> None:
    def text(ranks: list[int]) -> str:
        return Table("t", "micro", ("a",), tuple(Row(f"r{i}", (pct_cell(50.0, rank=r),)) for i, r in enumerate(ranks))).to_markdown()

    assert "**50.0**" in text([1, 2])
    assert "**50.0**" not in text([1, 1])


def test_clustered_error_by_hand() -> None:
    """Two videos with two equal answers each: the score's error is that of two values, sd/sqrt(2)."""
    e = evaluation(right=[1, 1, 0, 0], videos=["a", "a", "b", "b"])
    se, videos = clustered_se(e, "strict")
    assert videos == 2
    assert se == pytest.approx(100 * math.sqrt(0.5) / math.sqrt(2))
    alone = evaluation(right=[1, 1, 0, 0])
    assert clustered_se(alone, "strict")[0] == pytest.approx(100 * math.sqrt(1 / 3) / 2)


def test_mean_cell() -> None:
    parts = [scored(evaluation(right=[1, 0] * 20), "strict"), scored(evaluation("mvbench", right=[1, 1, 1, 0] * 10), "strict")]
    cell = mean_cell(parts)
    assert cell.value == 62.5
    assert cell.source == "derived"
    assert cell.interval is not None
    half = cell.interval[1] - 62.5
    assert half < max(p.half for p in parts), "a mean of two is surer than one"
    assert mean_cell([parts[0], None]).value is None


def test_results_table_rows_columns_and_notes() -> None:
    rows = {"base": {b: evaluation(b) for b in PAPER}, "iteration 1": {"egoschema": evaluation(right=[1, 1, 1, 1])}}
    t = results_table(rows, scale="micro", rule="strict")
    assert [r.label for r in t.rows] == ["base", "iteration 1"]
    assert t.columns == (*(b.title for b in select(None)), "Mean")
    assert t.rows[0].cells[-1].value == 75.0
    assert t.rows[1].cells[-1].value is None
    assert t.rows[1].cells[0].value is None, "what was not measured is no number"
    notes = " ".join(t.notes)
    assert "strict score" in notes
    assert "no number here reproduces" in notes
    assert "upstream score" in " ".join(results_table(rows, scale="micro", rule="upstream").notes)


def test_what_goes_to_lmms_evals_judge_is_said_beside_the_score() -> None:
    made = evaluation("tempcompass")
    judged = replace(made, score=replace(made.score, to_judge=3))
    t = results_table({"base": {"tempcompass": judged}}, scale="micro", rule="upstream", benchmarks=["tempcompass"])
    assert "would send 3 to its judge" in t.rows[0].cells[0].note
    plain = results_table({"base": {"tempcompass": made}}, scale="micro", rule="upstream", benchmarks=["tempcompass"])
    assert "judge" not in plain.rows[0].cells[0].note


def test_an_optional_benchmark_has_a_column_and_no_part_in_the_mean() -> None:
    rows = {"base": {"egoschema": evaluation(), "videomme": evaluation("videomme", right=[0, 0, 0, 1])}}
    t = results_table(rows, scale="micro", rule="strict", benchmarks=["videomme", "egoschema"])
    assert t.columns == ("EgoSchema", "Video-MME", "Mean of 1")
    assert [c.value for c in t.rows[0].cells] == [75.0, 25.0, 75.0]
    six = {"base": {b: evaluation(b) for b in PAPER} | {"videomme": evaluation("videomme", right=[0, 0, 0, 1])}}
    whole = results_table(six, scale="micro", rule="strict", benchmarks=[*PAPER, "videomme"])
    assert whole.columns[-2:] == ("Video-MME", "Mean")
    assert whole.rows[0].cells[-1].value == 75.0
    alone = results_table(rows, scale="micro", rule="strict", benchmarks=["videomme"])
    assert (alone.columns, alone.rows[0].cells[-1].value) == (("Video-MME", "Mean of 1"), 25.0)


def test_published_rows_never_stand_beside_synthetic_data_and_are_never_measured() -> None:
    row = PublishedRow("paper", dict.fromkeys(PAPER, 60.0), "Table 1")
    rows = {"base": {"egoschema": evaluation(scale="8b")}}
    t = results_table(rows, scale="8b", rule="upstream", published=[row])
    assert {c.source for c in t.rows[-1].cells} == {"published", "derived"}
    assert "*paper*" in t.to_markdown()
    assert 'class="published"' in t.to_html()
    with pytest.raises(TableError, match="no reference for synthetic data"):
        results_table({"base": {"egoschema": evaluation()}}, scale="micro", rule="upstream", published=[row])
    with pytest.raises(TableError, match="published numbers are upstream scores"):
        results_table(rows, scale="8b", rule="strict", published=[row])
    with pytest.raises(TableError, match="never mixed"):
        results_table({"base": {"egoschema": evaluation()}}, scale="8b", rule="upstream")


def test_the_mean_of_a_published_row_is_marked_as_computed() -> None:
    base = dict.fromkeys(PAPER, 60.0)
    published = [PublishedRow("paper: x", base, "Table 1"), PublishedRow("paper: y", base | {"mvbench": 66.0}, "Table 1", base=base)]
    t = results_table({"base": {"egoschema": evaluation(scale="8b")}}, scale="8b", rule="upstream", published=published)
    assert [r.cells[-1].text for r in t.rows[1:]] == ["60.0 ‡", "61.0 ‡"]
    assert "‡: the mean of a published row is computed here." in t.notes
    assert [c.delta for c in t.rows[1].cells] == [None] * 7
    assert [c.delta for c in t.rows[2].cells] == [0.0, 0.0, 0.0, 6.0, 0.0, 0.0, 1.0]


def small_results() -> Table:
    """Two benchmarks, base and one iteration of 40 questions each."""
    rows = {
        "base": {"egoschema": evaluation(right=[1, 0] * 20), "mvbench": evaluation("mvbench", right=[1, 0] * 20)},
        "iteration 1": {"egoschema": evaluation(right=[1, 1, 1, 0] * 10), "mvbench": evaluation("mvbench", right=[1, 0] * 20)},
    }
    return results_table(rows, scale="micro", rule="strict", benchmarks=["egoschema", "mvbench"])


def test_latex_marks_the_best_and_shows_intervals_and_differences() -> None:
    text = small_results().to_latex()
    base, iteration = (
        next(x for x in text.splitlines() if x.startswith(name)).removesuffix(r" \\").split(" & ") for name in ("base", "iter")
    )
    assert iteration[2].startswith(r"\textbf{75.0}$^{+25.0}_{\pm"), "EgoSchema"
    assert base[2].startswith(r"\underline{50.0}")
    assert base[1].startswith("50.0"), "MVBench: all alike, so none is best"
    assert iteration[1].startswith("50.0$^{+0.0}_")
    assert "^" not in "".join(base)
    assert r"\begin{table*}[t]" in text
    assert r"\label{tab:results-micro}" in text
    assert "underlined: the second" in text
    assert " to " not in "".join((*base, *iteration)), "intervals are shown once"


def test_latex_has_no_links_to_files() -> None:
    table = Table("t", "micro", ("a",), (Row("r", (pct_cell(50.0, link="runs/x/report.html"),)),))
    assert "runs/x" not in table.to_latex()


def big_results() -> Table:
    """Every benchmark of the six, with all rows of the paper's Table 1."""
    from reproduce.published import experiment_table

    rows = {name: {b: evaluation(b, right=[1, 0, k, 1] * 30, scale="8b") for b in PAPER} for k, name in enumerate(("base", "iteration 1"))}
    return experiment_table(rows, scale="8b", rule="upstream")


def test_all_rows_of_the_papers_table_stand_beside_ours() -> None:
    t = big_results()
    labels = [r.label for r in t.rows if r.published]
    assert len(labels) == 16
    assert "paper: Kangaroo †" in labels
    assert {r.group for r in t.rows if r.published} == {
        "published: baseline", "published: state-of-the-art", "published: preference-optimized", "published: ours",
    }  # fmt: skip
    savi = next(r for r in t.rows if r.label == "paper: VideoSAVi")
    assert [round(c.delta or 0, 1) for c in savi.cells[:6]] == [0.8, 3.9, 3.6, 4.2, 6.8, 2.0]
    assert sum(n.startswith("†: ") for n in t.notes) == 1


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="LaTeX is not installed")
@pytest.mark.parametrize("make", [small_results, big_results, hostile_table])
def test_latex_compiles_and_fits(make: Callable[[], Table], tmp_path: Path) -> None:
    """In a page of two columns, 6.875 inches wide, as conferences have it."""
    table = make()
    words = "\u4e2d\u6587 \u00e9\u0142\u00df \U0001f600 \u03b1"
    table = replace(table, rows=(*table.rows, Row(words, tuple(Cell(None, "–") for _ in table.columns))))
    head = r"\documentclass[10pt,twocolumn]{article}\usepackage[T1]{fontenc}\usepackage{booktabs,textcomp}\setlength{\textwidth}{6.875in}"
    (tmp_path / "t.tex").write_text(f"{head}\n\\begin{{document}}\n{table.to_latex()}\\end{{document}}\n", encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "t.tex"], cwd=tmp_path, capture_output=True,
        check=False, timeout=120,
    )  # fmt: skip
    log = (tmp_path / "t.log").read_text(encoding="utf-8", errors="replace")
    assert done.returncode == 0, log[-3000:]
    assert (tmp_path / "t.pdf").stat().st_size > 1000
    if make is not hostile_table:
        assert "Overfull \\hbox" not in log


def test_the_page_runs_its_own_script_alone() -> None:
    text = page([small_results(), hostile_table()], "Leaderboard")
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert text.count("<script") == 1
    assert "http" not in re.sub(r'href="[^"]*"|http-equiv', "", text)


def test_plot_is_svg_with_every_number_in_words_and_escaped_names() -> None:
    svg = plot_iterations(
        {"<b>$x$</b>": [Point(40.0, (35.0, 45.0)), None, Point(50.0)], "y": [Point(42.0)] * 3},
        ["base", "1", "2"],
        title="T & t",
        scale="micro",
    )
    root = ElementTree.fromstring(svg)
    words = " ".join(e.text or "" for e in root.iter())
    assert "<b>$x$</b>: base 40.0 (35.0 to 45.0), 1 not measured, 2 50.0; y: base 42.0" in words, "the name is text, not markup"
    assert "T & t (scale: micro)" in words
    assert len(list(root.iter("{http://www.w3.org/2000/svg}text"))) > 5, "letters are letters, not outlines"
    assert not re.search(r'="[^"]*nan', svg)
    assert not re.search(r"\d{4}-\d\d-\d\dT", svg), "no time stamp"
    with pytest.raises(ValueError, match="2 points for 1"):
        plot_iterations({"x": [None, None]}, ["base"], title="t", scale="s")
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_iterations({"x": [None]}, ["base"], title="t", scale="s")
    with pytest.raises(ValueError, match="not finite"):
        plot_iterations({"x": [Point(math.nan)]}, ["base"], title="t", scale="s")


@pytest.mark.parametrize("value", [0.0, 100.0, 50.0])
def test_plot_of_one_point(value: float) -> None:
    one, two = (plot_iterations({"x": [Point(value)]}, ["base"], title="t", scale="s") for _ in range(2))
    assert one == two
    ElementTree.fromstring(one)
