"""What is on disk: paths, fingerprints, refusals; unpacking of archives; the command line."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.catalog import CATALOG, UnknownBenchmarkError, select
from benchmarks.data import download
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


def _zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as z:
        for name, data in members.items():
            z.writestr(name, data)


def _tar_parts(folder: Path, members: dict[str, bytes]) -> None:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as t:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    data = whole.getvalue()
    for i, k in enumerate(range(0, len(data), 3000)):
        (folder / f"videos.tar.part.a{chr(97 + i)}").write_bytes(data[k : k + 3000])


def test_unpacks_zips_split_tars_and_loose_videos(tmp_path: Path) -> None:
    source, target = tmp_path / "snapshot", tmp_path / "out"
    (source / "more").mkdir(parents=True)
    _zip(source / "videos_chunked_01.zip", {"videos/a.mp4": b"a" * 5000, "videos/b.mp4": b"b"})
    _tar_parts(source, {"videos/c.mp4": b"c" * 9000, "videos/d.mp4": b"d"})
    (source / "more/e.mp4").write_bytes(b"e")
    assert download.unpack(source, target) == 5
    assert (target / "videos/c.mp4").read_bytes() == b"c" * 9000
    assert (target / "videos/a.mp4").read_bytes() == b"a" * 5000
    assert (target / "more/e.mp4").read_bytes() == b"e"
    assert download.unpack(source, target) == 0


@pytest.mark.parametrize("name", ["../evil.mp4", "/evil.mp4", "videos/../../evil.mp4"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_may_not_reach_outside(tmp_path: Path, name: str, kind: str) -> None:
    source = tmp_path / "snapshot"
    source.mkdir()
    if kind == "zip":
        _zip(source / "v.zip", {name: b"x"})
    else:
        _tar_parts(source, {name: b"x"})
    with pytest.raises(DatasetError, match="outside"):
        download.unpack(source, tmp_path / "deep/out")
    assert not list(tmp_path.rglob("evil.mp4"))


def test_broken_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "v.zip").write_bytes(b"no zip")
    with pytest.raises(DatasetError, match=r"v\.zip"):
        download.unpack(tmp_path, tmp_path / "out")


def test_prepare_brings_what_is_missing(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = CATALOG["egoschema"]
    repo = tmp_path / "repo"
    repo.mkdir()
    _zip(repo / "videos.zip", {f"videos/{p.name}": p.read_bytes() for p in (home / "egoschema/videos").glob("*.mp4")})
    mine = tmp_path / "home"

    def build(_: object, config: str) -> None:
        source = next(home.glob(f"datasets/*egoschema/{config}/*/*"))
        to = mine / source.relative_to(home)
        to.mkdir(parents=True)
        for f in source.iterdir():
            (to / f.name).write_bytes(f.read_bytes())

    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**15))
    status = download.prepare(mine, b, fetch=lambda _: repo, build=build)
    assert status.missing == ()
    assert status.n == 34  # of 500: the twin stands in for the real set here
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    with pytest.raises(DatasetError, match="GB are free"):
        download.prepare(tmp_path / "other", b, fetch=lambda _: repo, build=build)


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


def test_nothing_is_downloaded_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("downloaded")

    monkeypatch.setattr(download, "prepare", never)
    done = runner.invoke(app, ["prepare", "egoschema", "--hf-home", str(tmp_path)])
    assert done.exit_code == 0
    assert "would download about 106 GB" in done.output
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert runner.invoke(app, ["prepare", "egoschema", "--hf-home", str(tmp_path), "--download"]).exit_code == 2
