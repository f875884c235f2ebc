"""The published tables are read exactly, and anything that is not as the manifest says is an error with a place."""

from __future__ import annotations

import shutil
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from benchmarks.catalog import PAPER, select
from harness.tables.published import PAPER_DIR, PublishedError, load_published
from reproduce.published import experiment_table, published_pair, published_rows, shown_rule
from tests.reproduce.fakes import fake_evaluation

TABLE1 = "table1_main.csv"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PAPER_DIR, tmp_path / "paper"))


def table1(model: str = "VideoSAVi", folder: Path = PAPER_DIR) -> dict[str, float]:
    table = load_published(folder).table(TABLE1)
    return table.by_benchmark(table.position(model))


def test_table1_by_benchmark() -> None:
    assert table1() == {
        "tempcompass": 69.1, "perceptiontest": 66.1, "nextqa": 80.6, "mvbench": 74.0, "egoschema": 58.8, "longvideobench": 59.8,
    }  # fmt: skip
    assert table1("Kangaroo") == {"mvbench": 61.0, "longvideobench": 54.8}, "what is not reported is left out, not 0"


def test_every_file_of_the_folder_is_listed_and_columns_are_the_catalogs() -> None:
    p = load_published()
    assert p.manifest.external is not None
    assert {f.name for f in PAPER_DIR.glob("*.csv")} == {*p.tables, p.manifest.external.file}
    assert not any("4" in t.info.title.split()[-1] for t in p.tables.values()), "Table 4 is not published on the site"
    assert any("Table 4" in m for m in p.manifest.missing)
    assert list(p.table(TABLE1).info.columns) == list(PAPER)


def test_question_counts_agree_with_the_catalog_but_for_what_is_documented() -> None:
    infos = load_published().manifest.benchmarks
    for b in select(None):
        counts = {infos[b.name].n, *(v.n for v in infos[b.name].variants)}
        assert b.n in counts, b.name
        assert infos[b.name].videos == b.videos
    assert infos["tempcompass"].n == 1580 + 2453 + 1503 + 2004
    assert infos["tempcompass"].undocumented


def test_values_are_exact_decimals() -> None:
    v = load_published().table(TABLE1).value("VideoSAVi", "tempcompass")
    assert v == Decimal("69.1")
    assert isinstance(v, Decimal)


@pytest.mark.parametrize(("scale", "rows"), [("8b", 16), ("4b", 1), ("2b", 2), ("1b", 2), ("micro", 0), ("smoke", 0)])
def test_published_rows_only_at_paper_scales(scale: str, rows: int) -> None:
    assert len(published_rows(scale)) == rows


def test_published_pair() -> None:
    base, savi = published_pair("8b")
    assert savi is not None
    assert round(savi["egoschema"] - base["egoschema"], 6) == 6.8
    assert published_pair("4b")[1] is None
    with pytest.raises(PublishedError, match="micro"):
        published_pair("micro")


def _edit(folder: Path, old: str, new: str, file: str = TABLE1) -> None:
    path = folder / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("69.1", "69.1%", "no number"),
        ("69.1", "nan", "no number"),
        ("69.1", "1e9", "no number"),
        ("69.1", "169.1", "no percentage"),
        ("69.1", "69.123", "3 decimals"),
        ("69.1,", "", "not as many fields"),
        ("mvbench", "mvbench2", "the manifest says"),
        ("yes", '"yes', "CSV"),
    ],
)
def test_a_bad_table_is_an_error_with_its_place(folder: Path, old: str, new: str, message: str) -> None:
    _edit(folder, old, new)
    with pytest.raises(PublishedError, match=message) as e:
        load_published(folder)
    assert TABLE1 in str(e.value)


def test_bad_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PublishedError, match=r"manifest\.yaml: not there"):
        load_published(tmp_path / "nowhere")
    (folder / TABLE1).write_bytes(b"\xff\xfe\x00model")
    with pytest.raises(PublishedError, match="UTF-8"):
        load_published(folder)
    (folder / TABLE1).unlink()
    with pytest.raises(PublishedError, match="lists it"):
        load_published(folder)
    (folder / "manifest.yaml").write_text("a: [")
    with pytest.raises(PublishedError, match="YAML"):
        load_published(folder)
    (folder / "manifest.yaml").write_text("just text")
    with pytest.raises(PublishedError, match="manifest"):
        load_published(folder)


def test_manifest_names_are_checked(folder: Path) -> None:
    path = folder / "manifest.yaml"
    raw = yaml.safe_load(path.read_text())
    raw["tables"][0]["file"] = "../table1_main.csv"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(PublishedError, match="plain file name"):
        load_published(folder)
    raw["tables"][0]["file"] = TABLE1
    raw["tables"][0]["columns"]["mvbench"] = "mvbanch"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(PublishedError, match="mvbanch"):
        load_published(folder)
    with pytest.raises(PublishedError, match="no row 'GPT-9'"):
        table1("GPT-9")


def test_published_rows_never_stand_beside_twins_at_a_paper_scale() -> None:
    real = fake_evaluation("egoschema", "1b", 0.5, "0")
    twins = replace(real, score=replace(real.score, data="micro"))
    for evaluation, rule, shown in ((real, "upstream", True), (twins, "strict", False)):
        rows = {"base": {"egoschema": evaluation}}
        assert shown_rule("1b", rows) == rule
        text = experiment_table(rows, scale="1b", rule="upstream", benchmarks=["egoschema"]).to_markdown()
        assert ("paper: " in text) == shown
