"""The audit against arithmetic done by hand, against scipy and statsmodels, and on tables with planted faults."""

from __future__ import annotations

import json
import math
import shutil
from decimal import Decimal
from pathlib import Path

import pytest
import typer
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from harness.tables.published import PAPER_DIR, PublishedError, load_published
from reproduce.audit.arithmetic import grim, max_discordant, max_discordant_exact, two_sided, unpaired_z, z_crit
from reproduce.audit.audit import Audit, Finding, audit, gains_table
from reproduce.audit.cli import register, to_markdown


@pytest.fixture(scope="module")
def paper() -> Audit:
    return audit(load_published())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PAPER_DIR, tmp_path / "paper"))


def _of(result: Audit, check: str, verdict: str | None = None) -> list[Finding]:
    return [f for f in result.findings if f.check == check and verdict in (None, f.verdict)]


def test_grim_list_of_the_paper(paper: Audit) -> None:
    """Six EgoSchema values are no whole number of 500 questions; each is one of 499, as 499 x .545 = 271.96 and 272 / 499 = 54.509."""
    found = [f for f in _of(paper, "grim", "note") if "value" in f.numbers]
    assert {f.numbers["value"] for f in found} == {54.5, 48.5, 36.1, 44.7, 55.3, 51.7}
    assert all("EgoSchema" in f.where for f in found)
    assert {f.numbers["fits"] for f in found} == {499}
    assert all("1 unanswered and left out" in f.arithmetic for f in found)
    (excused,) = [f for f in found if f.numbers["value"] == 51.7]
    assert "another question set" in excused.arithmetic
    assert _of(paper, "grim", "fault") == []


def test_where_grim_has_no_power_it_says_so(paper: Audit) -> None:
    silent = [f for f in _of(paper, "grim", "note") if "GRIM has no power here" in f.arithmetic]
    assert {b for b in ("NExT-QA", "MVBench", "LongVideoBench", "Perception Test") if any(b in f.where for f in silent)} == {
        "NExT-QA", "MVBench", "LongVideoBench", "Perception Test",
    }  # fmt: skip
    (ego,) = [f for f in _of(paper, "grim") if f.where == "Table 1, EgoSchema"]
    assert "50 % are; with up to 5 questions unanswered 95 %, so GRIM has little power then" in ego.arithmetic


def test_nothing_is_at_fault(paper: Audit) -> None:
    assert paper.of("fault") == []
    assert [f.verdict for f in _of(paper, "sum")] == ["ok"] * 4
    assert [f.verdict for f in _of(paper, "gap")] == ["ok"] * 3
    assert {f.verdict for f in _of(paper, "difference")} == {"ok"}
    assert {f.verdict for f in _of(paper, "same")} == {"ok"}
    assert {f.verdict for f in _of(paper, "value")} == {"ok"}


def test_gains_by_hand(paper: Audit) -> None:
    """z = d / sqrt((p q + p' q') / n); EgoSchema: .068 / sqrt((.52 x .48 + .588 x .412) / 500) = .068 / .031365 = 2.168."""
    first = {g.benchmark: g for g in paper.gains if g.table == "Table 1"}
    hand = {"tempcompass": 1.1, "perceptiontest": 8.0, "nextqa": 5.8, "mvbench": 4.2, "egoschema": 2.2, "longvideobench": 1.1}
    assert {b: round(g.z, 1) for b, g in first.items()} == hand
    assert first["egoschema"].z == pytest.approx(0.068 / 0.031365, rel=1e-4)
    # n d^2 / 1.96^2: 7540 x .008^2 = .48256, / 3.8415 = 12.6 %; 1337 x .02^2 = .5348, / 3.8415 = 13.9 %
    assert round(first["tempcompass"].max_discordant_pct, 1) == 12.6
    assert round(first["longvideobench"].max_discordant_pct, 1) == 13.9
    assert [b for b, g in first.items() if g.always_paired] == ["perceptiontest", "nextqa", "mvbench"]
    # Holm over six: EgoSchema has the fourth smallest p, so 3 x .0302
    assert first["egoschema"].p_holm == pytest.approx(3 * first["egoschema"].p)
    assert {b: g.verdict(0.05) for b, g in first.items()} == {
        "tempcompass": "doubt", "perceptiontest": "ok", "nextqa": "ok", "mvbench": "ok", "egoschema": "note", "longvideobench": "doubt",
    }  # fmt: skip


def test_tempcompass_is_said_to_be_undocumented(paper: Audit) -> None:
    found = [f for f in paper.findings if "TempCompass" in f.where and "undocumented" in f.arithmetic + f.claim]
    assert {f.check for f in found} >= {"provenance", "gain"}
    gain = next(f for f in found if f.check == "gain")
    assert "5536" in gain.arithmetic, "the other reading of n is worked out too"
    assert any("Table 4" in f.arithmetic for f in paper.findings)


def test_every_finding_has_arithmetic_and_is_json(paper: Audit) -> None:
    assert all(f.arithmetic for f in paper.findings)
    raw = json.loads(paper.to_json())
    assert raw["counts"]["fault"] == len(paper.of("fault"))
    assert sum(raw["counts"].values()) == len(raw["findings"])


@given(k=st.integers(0, 3000), n=st.integers(1, 3000), decimals=st.integers(0, 3))
@settings(max_examples=200)
def test_grim_accepts_whatever_a_count_gives(k: int, n: int, decimals: int) -> None:
    k = min(k, n)
    exact = Decimal(100 * k) / Decimal(n)
    assert grim(round(exact, decimals), n, decimals).rounded
    cut = Decimal(math.floor(exact.scaleb(decimals))).scaleb(-decimals)
    assert grim(cut, n, decimals).truncated


@given(tenths=st.integers(0, 1000))
@settings(max_examples=100)
def test_grim_on_500_questions_is_the_even_tenths(tenths: int) -> None:
    g = grim(Decimal(tenths) / 10, 500, 1)
    assert g.rounded == (tenths % 2 == 0)
    assert g.below <= tenths / 10 < g.above


def test_holm_and_p_agree_with_statsmodels_and_scipy() -> None:
    from scipy import stats
    from statsmodels.stats.multitest import multipletests

    first = [g for g in audit(load_published()).gains if g.table == "Table 1"]
    reference = multipletests([g.p for g in first], method="holm")[1]
    assert [g.p_holm for g in first] == pytest.approx(list(reference), rel=1e-9)
    for z in (0.0, 0.5, 1.96, 5.0):
        assert two_sided(z) == pytest.approx(2 * stats.norm.sf(z), rel=1e-9)
    assert z_crit(0.05) == pytest.approx(stats.norm.isf(0.025), abs=1e-9)


@pytest.mark.parametrize(("gain", "n"), [(2.0, 1337), (0.8, 7540), (6.8, 500), (4.2, 4000), (1.8, 500)])
def test_discordance_bounds_are_where_mcnemar_turns(gain: float, n: int) -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    net = round(gain * n / 100)

    def p_at(m: int, exact: bool) -> float:
        b, c = (m + net) // 2, (m - net) // 2
        return float(mcnemar([[0, b], [c, 0]], exact=exact, correction=False).pvalue)

    share = max_discordant_exact(gain, n, 0.05)
    assert share is not None
    m = round(share * n)
    assert p_at(m, True) <= 0.05
    if m + 2 <= n:
        assert p_at(m + 2, True) > 0.05
    d = 100 * net / n  # whole questions, as the test has them
    edge = max_discordant(d, n, 0.05) * n
    below, above = net + 2 * math.floor((edge - net) / 2), net + 2 * (math.floor((edge - net) / 2) + 1)
    if above <= n:
        assert p_at(below, False) <= 0.05 < p_at(above, False)


def test_a_gain_too_small_for_any_paired_test() -> None:
    assert max_discordant_exact(0.4, 500, 0.05) is None, "2 of 500 cannot be significant: two-sided p of 2 against 0 is 0.5"
    assert max_discordant_exact(0.0, 500, 0.05) is None


def test_z_at_the_ends_of_the_scale() -> None:
    assert unpaired_z(100, 0, 10) == math.inf
    assert unpaired_z(100, 100, 10) == 0.0
    assert unpaired_z(50, 60, 10) < 0


def _change(folder: Path, file: str, old: str, new: str) -> Audit:
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))
    return audit(load_published(folder))


@pytest.mark.parametrize(
    ("file", "old", "new", "check", "where"),
    [
        ("table2_reasoning_errors.csv", "Total,200", "Total,201", "sum", "iter1"),
        ("table3_generalization.csv", "-5.2", "-5.6", "gap", "VideoSAVi"),
        ("table1_main.csv", "80.6,74.0", "80.6,73.7", "difference", "MVBench"),
        ("table1_main.csv", "68.9,62.3", "68.9,70.0", "order", "Perception Test"),
        ("table5_critics.csv", "SFT^TPO,68.8", "SFT^TPO,68.9", "same", "SFT^TPO"),
        ("table6_parameter_efficiency.csv", "(2B),65.9", "(2B),65.8", "same", "InternVL (2B)"),
        ("table1_main.csv", "80.6,74.0", "80.6,74.1", "value", "74.0 on MVBench"),
    ],
)
def test_planted_faults_are_found(folder: Path, file: str, old: str, new: str, check: str, where: str) -> None:
    found = [f for f in _of(_change(folder, file, old, new), check, "fault") if where in f.where]
    assert found, f"{file}: {old} -> {new} went unseen"


def test_rounding_of_parts_is_no_fault(folder: Path) -> None:
    result = _change(folder, "table3_generalization.csv", "-5.2", "-5.3")
    (gap,) = [f for f in _of(result, "gap") if "VideoSAVi" in f.where]
    assert gap.verdict == "note"
    assert "rounding" in gap.arithmetic


def test_another_papers_folder(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("name,acc\nours,<script>\n".replace("<script>", "51.0") + "base,50.0\n<b>evil</b>\x1b[31m,50.7\n")
    manifest = {
        "title": "Another paper", "source": "its Table 1", "benchmarks": {"q": {"title": "Quiz", "n": 100, "source": "its data card"}},
        "tables": [{"file": "t.csv", "title": "T1", "label": "name", "kind": "accuracy", "columns": {"acc": "q"},
                    "gains": [{"candidate": "ours", "baseline": "base"}]}],
    }  # fmt: skip
    (tmp_path / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    result = audit(load_published(tmp_path))
    (fault,) = result.of("fault")
    assert fault.numbers["value"] == 50.7
    assert [g.verdict(0.05) for g in result.gains] == ["doubt"]
    page = to_markdown(result)
    assert "<b>" not in page
    assert "\x1b" not in page


def _app() -> typer.Typer:
    app = typer.Typer()
    register(app)
    app.command("other")(lambda: None)
    return app


def test_command_line(tmp_path: Path) -> None:
    run = CliRunner()
    out = run.invoke(_app(), ["audit", "--markdown", str(tmp_path / "audit.md")])
    assert out.exit_code == 0
    for value in ("54.5", "48.5", "36.1", "44.7", "55.3"):
        assert f"{value} %" in out.output
    assert (tmp_path / "audit.md").read_text().startswith("# Audit of VideoSAVi")
    out = run.invoke(_app(), ["audit", "--json"])
    assert json.loads(out.stdout)["counts"]["fault"] == 0
    assert run.invoke(_app(), ["audit", "--strict"]).exit_code == 0
    out = run.invoke(_app(), ["audit", "--tables", str(tmp_path)])
    assert out.exit_code == 2
    assert "manifest.yaml: not there" in out.stderr


def test_strict_ends_with_1_on_a_fault(folder: Path) -> None:
    path = folder / "table2_reasoning_errors.csv"
    path.write_text(path.read_text().replace("Total,200", "Total,201"))
    assert CliRunner().invoke(_app(), ["audit", "--strict", "--tables", str(folder)]).exit_code == 1


def test_the_base_beside_others(paper: Audit) -> None:
    """LongVideoBench: 60.0 - 57.8 = 2.2 of a gain of 2.0; z = .022 / sqrt((.6 x .4 + .578 x .422) / 1337) = .022 / .019037 = 1.156."""
    found = {f.where: f for f in _of(paper, "baseline")}
    long = found["Table 1, InternVL2.5, LongVideoBench"]
    assert long.verdict == "doubt"
    assert long.numbers["gap"] == pytest.approx(2.2)
    assert long.numbers["z"] == pytest.approx(0.022 / 0.019037, rel=1e-3)
    assert long.numbers["share_of_gain_pct"] == pytest.approx(110)
    assert long.numbers["over_highest"] == pytest.approx(-0.2)
    assert "52.9" in long.arithmetic, "a lower measurement is said too"
    # MVBench: 72.0 - 69.8 has p = .030 alone, .061 as one of two gaps; over 72.0 the gain of 2.0 is significant (z = 2.0)
    assert found["Table 1, InternVL2.5, MVBench"].verdict == "note"
    assert found["Table 6, InternVL (2B), MVBench"].verdict == "doubt"
    assert not [f for f in found.values() if f.verdict == "fault"]


def test_measurements_on_other_questions_enter_no_arithmetic(paper: Audit) -> None:
    (ego,) = [f for f in _of(paper, "baseline") if "EgoSchema" in f.where and "Table 1" in f.where]
    assert (ego.verdict, ego.numbers) == ("note", {})
    assert "66.2" in ego.arithmetic
    assert "full test" in ego.arithmetic


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [("68.3,other questions", "68.3,some questions", "external.csv:2: grade"), ("68.3", "168.3", "external.csv:2: value"),
     ("tempcompass,68.3", "tempcompas,68.3", "external.csv:2: benchmark 'tempcompas'"), ("model,", "mode,", "columns are")],
)  # fmt: skip
def test_a_bad_external_row_is_an_error_with_its_place(folder: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(PublishedError, match=says):
        _change(folder, "external.csv", old, new)


def test_a_line_a_claim_with_its_worst_verdict(paper: Audit) -> None:
    lines = {words: (verdict, checks) for words, verdict, checks in paper.claims()}
    assert lines["VideoSAVi gains 2.0 on LongVideoBench over InternVL2.5"] == ("doubt", "gain, baseline")
    assert lines["VideoSAVi reaches 74.0 on MVBench"] == ("ok", "value")
    assert len(lines) == len({f.about for f in paper.findings if f.about})
    first = CliRunner().invoke(_app(), ["audit"]).output
    assert first.index("gains 2.0 on LongVideoBench") < first.index("the numbers alone do not carry the claim")


def _small(tmp_path: Path, csv: str, **manifest: object) -> Audit:
    (tmp_path / "t.csv").write_text(csv)
    table = {"file": "t.csv", "title": "T1", "label": "name", "kind": "accuracy", "columns": {"acc": "q"}, **manifest}
    quiz = table.pop("quiz", {"title": "Quiz", "n": 100, "source": "its data card"})
    claims = table.pop("claims", [])
    raw = {"title": "Another paper", "source": "its Table 1", "benchmarks": {"q": quiz}, "tables": [table], "claims": claims}
    (tmp_path / "manifest.yaml").write_text(yaml.safe_dump(raw))
    return audit(load_published(tmp_path))


def test_a_mean_over_unequal_subtasks_is_no_fault(tmp_path: Path) -> None:
    """(1/3 + 1/2) / 2 = 41.7 %: no multiple of 1/5, but of 1 / (2 x lcm(3, 2))."""
    quiz = {"title": "Quiz", "n": 5, "source": "s", "granularity": "mean"}
    assert _of(_small(tmp_path, "name,acc\nx,41.7\n", quiz=quiz), "grim")[0].verdict == "fault"
    equal = _small(tmp_path, "name,acc\nx,41.7\n", quiz=quiz | {"subtasks": [3, 2]})
    assert [f.verdict for f in _of(equal, "grim")] == ["ok"]
    assert _of(_small(tmp_path, "name,acc\nx,41.8\n", quiz=quiz | {"subtasks": [3, 2]}), "grim")[0].verdict == "fault"
    # (1/4 + 1/1) / 2 = 62.5 %
    assert _of(_small(tmp_path, "name,acc\nx,62.5\n", quiz=quiz | {"subtasks": [4, 1], "n": 5}), "grim")[0].verdict == "ok"
    with pytest.raises(PublishedError, match="n = 5 questions together"):
        _small(tmp_path, "name,acc\nx,41.7\n", quiz=quiz | {"subtasks": [3, 3]})


def test_excused_rows_are_excused_from_every_test_that_needs_n(tmp_path: Path) -> None:
    rows = "name,acc,own\nours,60.0,yes\nbase,50.0,no\nthird,55.0,no\n"
    reason = "another question set"
    result = _small(
        tmp_path, rows, text_columns=["own"], exclusions=[{"column": "own", "value": "no", "reason": reason}],
        gains=[{"candidate": "ours", "baseline": "base"}],
        claims=[
            {"id": "b", "kind": "best", "text": "ours leads", "source": "s", "cell": {"table": "t.csv", "row": "ours", "column": "acc"}},
            {"id": "a", "kind": "above", "text": "ours is comparable", "source": "s", "table": "t.csv", "row": "base", "other": "ours",
             "columns": ["acc"], "comparable": True},
        ],
    )  # fmt: skip
    assert result.gains == ()
    assert [f.arithmetic for f in _of(result, "gain")] == [reason]
    best, above = _of(result, "order")
    assert "z =" not in best.arithmetic + above.arithmetic
    assert reason in best.arithmetic
    assert (best.verdict, above.verdict) == ("ok", "note")


def test_one_doubtful_column_of_many_is_corrected(tmp_path: Path) -> None:
    """z = -1.8 on one of four columns: p = .036 alone, .14 after Holm."""
    columns = dict.fromkeys(("a", "b", "c", "d"), "q")
    rows = "name,a,b,c,d\nx,47.0,50.0,50.0,50.0\ny,59.5,50.0,50.0,50.0\n"
    claim = {"id": "a", "kind": "above", "text": "x is comparable", "source": "s", "table": "t.csv", "row": "x", "other": "y",
             "columns": list(columns), "comparable": True}  # fmt: skip
    (found,) = _of(_small(tmp_path, rows, columns=columns, claims=[claim]), "order")
    assert "z = -1.8" in found.arithmetic
    assert found.verdict == "note"


def test_a_claim_about_nothing_is_an_error(folder: Path) -> None:
    path = folder / "manifest.yaml"
    path.write_text(path.read_text().replace("row: Qwen2-VL", "row: Qwen9"))
    with pytest.raises(PublishedError, match="Qwen9"):
        audit(load_published(folder))


def test_gains_table_is_derived_and_scaled(paper: Audit) -> None:
    t = gains_table(paper)
    assert t.scale == "published"
    assert {c.source for r in t.rows for c in r.cells} == {"derived"}
    assert len(t.rows) == len(paper.gains) == 6 + 3 + 3 + 3
