"""Fetching from a stand-in for the hub over loopback: only what the questions need; cut, wrong, gated, full: nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.benchmark import Benchmark
from benchmarks.catalog import CATALOG
from benchmarks.data import archives, prepare, source
from benchmarks.data.layout import DatasetError, check, find_video, read_docs
from benchmarks.data.prepare import carry_out, check_room, make_plan, read_records
from benchmarks.data.source import FolderSource, HubSource
from benchmarks.micro.twins.twins import build_twins
from tests.benchmarks.data.hub import Hub

ROOT = Path(__file__).resolve().parents[3]
EGO = CATALOG["egoschema"]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_twins(tmp_path_factory.mktemp("twins"), seed=1, size="smoke", benchmarks=["videomme"]).hf_home


def add_questions(twins: Path, b: Benchmark, repo: Path) -> None:
    """The twin's questions as parquet files, with the README that says which is which."""
    lines = ["---", "configs:"]
    for config in b.configs:
        file = f"{config}/{b.split}-00000.parquet"
        (repo / config).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(list(read_docs(twins, b, config))), repo / file)
        lines += [f"- config_name: {config}", "  data_files:", f"  - split: {b.split}", f"    path: {file}"]
    (repo / "README.md").write_text("\n".join([*lines, "---", ""]))


def others(n: int) -> dict[str, bytes]:
    """Videos that no question needs, each larger than a twin's."""
    return {f"videos/other_{i}.mp4": random.Random(i).randbytes(200_000) for i in range(n)}


def ego_videos(twins: Path) -> dict[str, bytes]:
    return {f"videos/{p.name}": p.read_bytes() for p in sorted((twins / "egoschema/videos").iterdir())}


def write_zips(repo: Path, members: dict[str, bytes], parts: int) -> None:
    repo.mkdir(parents=True, exist_ok=True)
    names = sorted(members)
    for k in range(parts):
        with zipfile.ZipFile(repo / f"videos_chunked_{k:02d}.zip", "w") as z:
            for name in names[k::parts]:
                z.writestr(name, members[name])


def copy_questions(twins: Path, home: Path, b: Benchmark) -> prepare.Build:
    """Stands in for the `datasets` library where it is not what is tested."""

    def build(_: Benchmark, config: str, revision: str | None) -> None:
        for found in twins.glob(f"datasets/*{b.dataset_name}/{config}/*/*"):
            to = home / found.relative_to(twins)
            to.mkdir(parents=True, exist_ok=True)
            for f in found.iterdir():
                (to / f.name).write_bytes(f.read_bytes())

    return build


@pytest.fixture
def repo(twins: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    write_zips(folder, ego_videos(twins) | others(30), 3)
    add_questions(twins, EGO, folder)
    return folder


@pytest.fixture
def hub(repo: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub({EGO.repo: repo, "longvideobench/LongVideoBench": repo}) as h:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", h.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", h.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(source, "WAIT_S", 0.01)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", h.url, raising=False)
        yield h


def command(home: Path, hub: Hub | None, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_TOKEN_PATH": str(home / "no-token"), "PYTHONPATH": str(ROOT), **env}
    if hub is not None:
        environment["HF_ENDPOINT"] = hub.url
    line = [sys.executable, "-m", "benchmarks", "prepare", *args, "--hf-home", str(home)]
    return subprocess.run(line, capture_output=True, text=True, env=environment, cwd=ROOT, check=False, timeout=300)


@pytest.mark.timeout(300)
def test_the_command_fetches_what_the_questions_need(twins: Path, repo: Path, tmp_path: Path, hub: Hub) -> None:
    home = tmp_path / "home"
    plan = command(home, hub, "egoschema", "--plan")
    assert plan.returncode == 0, plan.stderr[-2000:]
    assert "34 videos needed, 0 there, 34 to fetch: 0.00 GB of 0.01 GB" in plan.stdout
    assert not (home / "egoschema").exists()
    done = command(home, hub, "egoschema", "--download")
    # 34 of the real set's 500 questions: complete videos, and the number of questions is said to be wrong.
    assert "34 questions on 34 videos, 0 files missing" in done.stdout
    assert "34 questions, 500 expected" in done.stdout
    assert done.returncode == 5
    for name, data in ego_videos(twins).items():
        assert (home / "egoschema" / name).read_bytes() == data
    assert len(list((home / "egoschema/videos").iterdir())) == 34, "no video that no question needs"
    zips = sum(n for name, n in hub.sent.items() if name.endswith(".zip"))
    assert zips < 0.6 * sum(p.stat().st_size for p in repo.glob("*.zip")), "parts of archives, not archives"
    record = read_records(home)["egoschema"]
    assert record.commit == hub.commit
    assert len(record.videos) == 34
    before = dict(hub.sent)
    again = command(home, hub, "egoschema", "--download")
    assert "34 there, 0 to fetch" in again.stdout
    assert "(as before)" in again.stdout
    assert {k: v for k, v in hub.sent.items() if k.endswith(".zip")} == {k: v for k, v in before.items() if k.endswith(".zip")}


def test_resumes_after_cuts(twins: Path, repo: Path, tmp_path: Path, hub: Hub) -> None:
    home = tmp_path / "home"
    hub.cut = {f"videos_chunked_{k:02d}.zip": [400, 3000, 2_000, 10] for k in range(3)}
    plan = make_plan(home, EGO, source=HubSource(EGO.repo, None, gated=False), build=copy_questions(twins, home, EGO))
    carry_out(home, plan)
    assert {p.name: p.read_bytes() for p in (home / "egoschema/videos").iterdir()} == {
        n.removeprefix("videos/"): d for n, d in ego_videos(twins).items()
    }
    assert check(home, EGO).missing == ()


def test_a_hub_that_goes_away_leaves_whole_files_and_goes_on(twins: Path, tmp_path: Path, hub: Hub) -> None:
    home = tmp_path / "home"
    plan = make_plan(home, EGO, source=HubSource(EGO.repo, None, gated=False), build=copy_questions(twins, home, EGO))
    seen = []

    def stop_after_ten(done: int, total: int) -> None:
        seen.append(done)
        hub.down = len(seen) >= 10

    plan.source.open("videos_chunked_00.zip").close()
    with pytest.raises(DatasetError, match="run the same command again"):
        carry_out(home, plan, stop_after_ten)
    there = list((home / "egoschema/videos").iterdir())
    assert 10 <= len(there) < 34
    assert all(p.read_bytes() == ego_videos(twins)[f"videos/{p.name}"] for p in there), "nothing half-written"
    hub.down = False
    plan = make_plan(home, EGO, source=HubSource(EGO.repo, None, gated=False))
    assert len(plan.fetch) == 34 - len(there)
    carry_out(home, plan)
    assert check(home, EGO).missing == ()


def test_wrong_bytes_are_refused(twins: Path, tmp_path: Path, hub: Hub, repo: Path) -> None:
    home = tmp_path / "home"
    name, data = next(iter(ego_videos(twins).items()))
    for z in repo.glob("*.zip"):
        z.unlink()
    (repo / name).parent.mkdir()
    for n, d in ego_videos(twins).items():
        (repo / n).write_bytes(d)
    hub.wrong = {name}
    plan = make_plan(home, EGO, source=HubSource(EGO.repo, None, gated=False), build=copy_questions(twins, home, EGO))
    with pytest.raises(DatasetError, match=r"SHA-256 is .*, the hub says .*nothing was kept"):
        carry_out(home, plan)
    assert not (home / EGO.data_dir / name).exists()
    assert not list((home / "egoschema/videos").glob(".*"))
    hub.wrong = set()
    carry_out(home, make_plan(home, EGO, source=HubSource(EGO.repo, None, gated=False)))
    assert (home / EGO.data_dir / name).read_bytes() == data


def test_a_broken_zip_member_is_refused(twins: Path, repo: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    z = repo / "videos_chunked_00.zip"
    name, data = next((n, d) for n, d in ego_videos(twins).items() if n in zipfile.ZipFile(z).namelist())
    whole = z.read_bytes()
    at = whole.index(data)
    z.write_bytes(whole[: at + 50] + b"XXXX" + whole[at + 54 :])
    plan = make_plan(home, EGO, source=FolderSource(repo), build=copy_questions(twins, home, EGO))
    with pytest.raises(DatasetError, match="CRC"):
        carry_out(home, plan)
    assert not (home / "egoschema" / name).exists()
    assert not list((home / "egoschema/videos").glob(".*.part"))


def test_gated_sets_are_explained_before_anything_is_fetched(tmp_path: Path, hub: Hub) -> None:
    home = tmp_path / "home"
    no_login = command(home, hub, "egoschema", "longvideobench", "--download")
    assert no_login.returncode == 5
    assert "LongVideoBench is gated: accept its licence on" in no_login.stderr
    assert hub.asked == [], "EgoSchema comes first in the list and was not begun"
    hub.gated = {"longvideobench/LongVideoBench"}
    no_access = command(home, hub, "longvideobench", "--download", HF_TOKEN="hf_made_up")
    assert no_access.returncode == 5
    assert "your login has no access: accept its licence" in no_access.stdout
    assert not [x for x in hub.asked if "/resolve/" in x]


def test_one_that_fails_does_not_end_the_rest(tmp_path: Path, hub: Hub) -> None:
    done = command(tmp_path / "home", hub, "nextqa", "egoschema", "--plan")
    assert done.returncode == 5
    assert "lmms-eval/NExTQA: not on the hub" in done.stdout
    assert "34 videos needed" in done.stdout


def test_room_is_asked_for_first(twins: Path, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    plan = make_plan(home, EGO, source=FolderSource(repo), build=copy_questions(twins, home, EGO))
    check_room(home, [plan])
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda _: SimpleNamespace(free=plan.disk_bytes + prepare.SPARE_BYTES - 1))
    with pytest.raises(DatasetError, match=r"GB are free, the videos take .*EgoSchema.*--data"):
        check_room(home, [plan])


def test_a_full_disk_leaves_nothing_half_written(twins: Path, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    plan = make_plan(home, EGO, source=FolderSource(repo), build=copy_questions(twins, home, EGO))
    calls = []
    real = archives.os.fsync

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(archives.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        carry_out(home, plan)
    monkeypatch.setattr(archives.os, "fsync", real)
    files = list((home / "egoschema/videos").iterdir())
    assert files
    assert all(p.suffix == ".mp4" and p.read_bytes() == ego_videos(twins)[f"videos/{p.name}"] for p in files)
    carry_out(home, make_plan(home, EGO, source=FolderSource(repo)))
    assert check(home, EGO).missing == ()


def test_split_tar_files(twins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    """LongVideoBench's layout: one tar file in parts, read from the hub without fetching the parts whole."""
    b, home = CATALOG["longvideobench"], tmp_path / "home"
    folder = hub.repos[b.repo] = tmp_path / "lvb"
    folder.mkdir()
    mine = {p.name: p.read_bytes() for p in (twins / "datasets/longvideobench/videos").iterdir()}
    with tarfile.open(tmp_path / "whole.tar", "w") as t:
        for name, data in sorted((mine | {k.removeprefix("videos/"): v for k, v in others(20).items()}).items()):
            (tmp_path / name).write_bytes(data)
            t.add(tmp_path / name, f"videos/{name}")
    whole = (tmp_path / "whole.tar").read_bytes()
    for i in range(0, len(whole), 700_001):
        (folder / f"videos.tar.part.a{chr(97 + i // 700_001)}").write_bytes(whole[i : i + 700_001])
    plan = make_plan(home, b, source=HubSource(b.repo, None, gated=True), build=copy_questions(twins, home, b))
    carry_out(home, plan)
    assert {p.name: p.read_bytes() for p in (home / "datasets/longvideobench/videos").iterdir()} == mine
    assert (home / prepare.INDEX_FOLDER).is_dir(), "the list of what lies where is not read twice"


def test_mvbench_by_subtask_and_from_its_folders(twins: Path, tmp_path: Path) -> None:
    """MVBench's archives: one for each origin, some files only in data0613.zip; file names repeat between folders."""
    b, home, folder = CATALOG["mvbench"], tmp_path / "home", tmp_path / "mvb"
    every = {p.relative_to(twins / "mvbench_video").as_posix(): p.read_bytes() for p in (twins / "mvbench_video").rglob("*.mp4")}
    for top in sorted({n.split("/")[0] for n in every}):
        write_zips(folder / "video" / top, {(f"data0613/{n}" if top == "star" else n): d for n, d in every.items() if n.startswith(top)}, 1)
    build = copy_questions(twins, home, b)
    part = make_plan(home, b, source=FolderSource(folder), build=build, tasks=["object_shuffle", "mvbench_action_antonym"])
    assert {v.split("/")[1] for v in part.needed} == {"perception", "ssv2_video_mp4"}
    carry_out(home, part)
    assert {p.name for p in (home / "mvbench_video").iterdir()} == {"perception", "ssv2_video_mp4"}
    carry_out(home, make_plan(home, b, source=FolderSource(folder), build=build))
    for name, data in every.items():
        assert (home / "mvbench_video" / name).read_bytes() == data
    with pytest.raises(DatasetError, match="no task 'juggling'; choose from action_sequence"):
        make_plan(home, b, source=FolderSource(folder), tasks=["juggling"])


def test_what_is_there_in_another_size_is_left_alone(twins: Path, repo: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    build = copy_questions(twins, home, EGO)
    name = next(iter(ego_videos(twins)))
    (home / "egoschema/videos").mkdir(parents=True)
    (home / "egoschema" / name).write_bytes(b"mine")
    plan = make_plan(home, EGO, source=FolderSource(repo), build=build)
    assert plan.differing == (f"egoschema/{name}",)
    assert "1 there in another size and left alone" in "".join(prepare.describe([plan]))
    carry_out(home, plan)
    assert (home / "egoschema" / name).read_bytes() == b"mine"


def test_videos_that_the_source_does_not_hold_are_named(twins: Path, repo: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (repo / "videos_chunked_01.zip").unlink()
    plan = make_plan(home, EGO, source=FolderSource(repo), build=copy_questions(twins, home, EGO))
    assert 0 < len(plan.absent) < 34
    assert f"{len(plan.absent)} in no file of the source" in "".join(prepare.describe([plan]))


def test_a_question_cannot_name_a_place_outside(twins: Path, repo: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"

    def build(b: Benchmark, config: str, revision: str | None) -> None:
        copy_questions(twins, home, EGO)(b, config, revision)
        arrow = next(home.glob("datasets/*/Subset/*/*/*.arrow"))
        rows = list(read_docs(twins, EGO, "Subset"))
        rows[0]["video_idx"] = "../../../evil"
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(arrow), "wb") as f, pa.ipc.new_stream(f, table.schema) as w:
            w.write_table(table)

    with pytest.raises(DatasetError, match="outside of egoschema; nothing was fetched"):
        make_plan(home, EGO, source=FolderSource(repo), build=build)


def test_a_broken_archive_is_named(repo: Path, twins: Path, tmp_path: Path) -> None:
    (repo / "videos_chunked_02.zip").write_bytes(b"no zip")
    with pytest.raises(DatasetError, match=r"videos_chunked_02\.zip: not a whole zip"):
        make_plan(tmp_path / "home", EGO, source=FolderSource(repo), build=copy_questions(twins, tmp_path / "home", EGO))


def test_bytes_of_each_benchmark_against_the_whole(twins: Path, tmp_path: Path) -> None:
    """Computed from the questions: each repository holds three videos that no question needs for one that some do."""
    for name in ("tempcompass", "perceptiontest", "nextqa", "egoschema", "videomme"):
        b, home = CATALOG[name], tmp_path / name
        mine = {p.name: p.read_bytes() for p in (twins / b.video_folder).iterdir()}
        more = {f"x{k}_{n}": d for n, d in mine.items() for k in range(3)}
        write_zips(tmp_path / f"{name}-repo", {f"{b.video_dir}/{n}": d for n, d in (mine | more).items()}, 2)
        plan = make_plan(home, b, source=FolderSource(tmp_path / f"{name}-repo"), build=copy_questions(twins, home, b))
        assert plan.fetch_bytes == sum(map(len, mine.values()))
        assert plan.fetch_bytes < 0.3 * plan.whole_bytes
        carry_out(home, plan)
        assert all(find_video(home, b, v) for v in plan.needed)


def test_without_download_nothing_is_asked(tmp_path: Path, hub: Hub) -> None:
    done = command(tmp_path, hub, "egoschema")
    assert done.returncode == 0
    assert "holds about 106 GB" in done.stdout
    assert hub.asked == []
    assert command(tmp_path, hub, "egoschema", "--download", HF_HUB_OFFLINE="1").returncode == 2
    assert json.loads("[]") == hub.asked
