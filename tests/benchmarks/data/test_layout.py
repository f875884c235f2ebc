"""What is on disk: paths, fingerprints, refusals; the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.catalog import CATALOG, UnknownBenchmarkError, select
from benchmarks.data.layout import (
    DatasetError,
    MediaIndex,
    check,
    expected_n,
    find_video,
    fingerprint,
    read_docs,
)
from benchmarks.micro.twins.twins import build_twins

runner = CliRunner()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_twins(tmp_path_factory.mktemp("home"), seed=1, size="smoke").hf_home


def test_catalog_names_each_task_and_config() -> None:
    assert [len(b.tasks) for b in select(None)] == [3, 1, 1, 20, 1, 1]
    assert all(len(b.tasks) == len(b.configs) == len(b.sizes) for b in CATALOG.values())
    assert select(["mvbench", "tempcompass"])[0].name == "tempcompass"
    assert len(select(None)) == 6
    with pytest.raises(UnknownBenchmarkError, match=r"'mmlu'.*egoschema"):
        select(["mmlu"])


def test_video_paths_are_those_of_the_tasks() -> None:
    of = lambda name, doc, task=None: CATALOG[name].video_file(task or CATALOG[name].tasks[0], doc)
    assert of("mvbench", {"video": "a.webm"}, "mvbench_state_change") == "mvbench_video/perception/videos/a.webm"
    assert of("perceptiontest", {"video_name": "video_1"}) == "perceptiontest_val/videos/video_1.mp4"
    assert of("nextqa", {"video": 40100}) == "nextqa/NExTVideo/40100.mp4"
    assert of("longvideobench", {"video_path": "x_y.mp4"}) == "datasets/longvideobench/videos/x_y.mp4"
    assert CATALOG["mvbench"].video_id("mvbench_video/perception/videos/a.webm") == "perception/videos/a"
    assert CATALOG["longvideobench"].video_id("datasets/longvideobench/videos/x_y.mp4") == "x_y"


def test_absent_set_names_the_command(tmp_path: Path) -> None:
    b = CATALOG["longvideobench"]
    s = check(tmp_path, b)
    assert not s.ready
    assert s.gated
    assert s.missing == ("datasets/longvideobench___long_video_bench/default",)
    assert expected_n(tmp_path, b) == 1337
    with pytest.raises(DatasetError, match="prepare longvideobench"):
        list(read_docs(tmp_path, b, "default"))
    with pytest.raises(DatasetError, match="prepare"):
        fingerprint(tmp_path, b)


def test_torn_arrow_file_is_named(tmp_path: Path) -> None:
    build_twins(tmp_path, seed=1, size="smoke")
    f = next(tmp_path.glob("datasets/*egoschema/Subset/*/*/*.arrow"))
    f.write_bytes(f.read_bytes()[: f.stat().st_size // 2])
    with pytest.raises(DatasetError, match=r"egoschema-test\.arrow"):
        list(read_docs(tmp_path, CATALOG["egoschema"], "Subset"))


def test_variants_of_a_video_name(tmp_path: Path) -> None:
    """Only what the benchmark's own task tries: MVBench's looks in data0613 for folders that it no longer has, TempCompass's at once
    stops."""
    (tmp_path / "mvbench_video/data0613/clevrer/video_validation").mkdir(parents=True)
    (tmp_path / "mvbench_video/data0613/clevrer/video_validation/v.mp4").touch()
    (tmp_path / "b.MP4").touch()
    assert find_video(tmp_path, CATALOG["egoschema"], "b.mp4") == tmp_path / "b.MP4"
    assert find_video(tmp_path, CATALOG["egoschema"], "c.mp4") is None
    assert find_video(tmp_path, CATALOG["tempcompass"], "b.mp4") is None
    assert find_video(tmp_path, CATALOG["mvbench"], "mvbench_video/clevrer/video_validation/v.mp4") is None


def test_media_digest_follows_content(tmp_path: Path) -> None:
    b = CATALOG["egoschema"]
    v = tmp_path / "v.mp4"
    v.write_bytes(b"one")
    first = MediaIndex(tmp_path).fingerprint(b, ["v.mp4"])
    index = MediaIndex(tmp_path)
    assert index.fingerprint(b, ["v.mp4", "v.mp4"]) == first
    v.write_bytes(b"two")
    os.utime(v, ns=(1, 1))
    assert index.fingerprint(b, ["v.mp4"]) != first
    v.unlink()
    assert MediaIndex(tmp_path).fingerprint(b, ["v.mp4"]) not in (first, index.digest)
    (tmp_path / ".media-sha256.json").write_text("no json")
    v.write_bytes(b"one")
    assert MediaIndex(tmp_path).fingerprint(b, ["v.mp4"]) == first


def test_fingerprint_follows_questions(home: Path, tmp_path: Path) -> None:
    other = build_twins(tmp_path, seed=2, size="smoke").hf_home
    assert fingerprint(home, CATALOG["nextqa"]) != fingerprint(other, CATALOG["nextqa"])


def test_command_line(home: Path, tmp_path: Path) -> None:
    listed = runner.invoke(app, ["list", "--json"])
    assert [b["name"] for b in json.loads(listed.output)] == list(CATALOG)
    assert runner.invoke(app, ["check", "--hf-home", str(home)]).exit_code == 0
    bad = runner.invoke(app, ["check", "--hf-home", str(tmp_path), "egoschema", "--json"])
    assert bad.exit_code == 5
    assert json.loads(bad.output)["benchmarks"][0]["ready"] is False
    assert runner.invoke(app, ["check", "nonsense"]).exit_code == 2
    assert runner.invoke(app, ["micro"]).exit_code == 2
    assert runner.invoke(app, ["micro", "--build-twins", str(tmp_path / "t"), "--size", "huge"]).exit_code == 2
    assert runner.invoke(app, ["micro", "--rebuild-base"]).exit_code == 2
    made = runner.invoke(app, ["micro", "--build-videos", str(tmp_path / "v"), "-n", "2", "--json"])
    assert json.loads(made.output)["videos"] == 2
