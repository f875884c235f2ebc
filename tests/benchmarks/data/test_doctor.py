"""Every planted fault is found and named with its fix, and nothing is said of whole data."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.benchmark import Benchmark
from benchmarks.catalog import CATALOG, select
from benchmarks.data.doctor import Finding, examine, known_bad, task_differences
from benchmarks.data.layout import MediaIndex, arrow_files, read_docs
from benchmarks.micro.twins.twins import build_twins

EGO, MVBENCH, LVB = CATALOG["egoschema"], CATALOG["mvbench"], CATALOG["longvideobench"]
runner = CliRunner()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_twins(tmp_path_factory.mktemp("twins"), seed=1, size="smoke", benchmarks=["videomme"]).hf_home


@pytest.fixture
def home(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "home"))


def videos(home: Path, b: Benchmark = EGO) -> list[Path]:
    return sorted((home / b.video_folder).rglob("*.mp4"))


def found(home: Path, b: Benchmark = EGO) -> list[tuple[str, str]]:
    return [(f.what, f.where) for f in examine(home, b)]


def name(home: Path, path: Path) -> str:
    return path.relative_to(home).as_posix()


def rewrite_questions(home: Path, b: Benchmark, rows: list[dict]) -> None:
    (arrow,) = arrow_files(home, b, b.configs[0])
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(arrow), "wb") as f, pa.ipc.new_stream(f, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize("b", CATALOG.values(), ids=lambda b: b.name)
def test_whole_data_have_no_fault(whole: Path, b: Benchmark) -> None:
    """This also holds every benchmark's file against the installed lmms-eval: tasks, repository, folders, split."""
    assert examine(whole, b) == []


def test_absent_and_unreadable(home: Path) -> None:
    gone, torn, empty = videos(home)[:3]
    gone.unlink()
    torn.write_bytes(torn.read_bytes()[:700])
    empty.write_bytes(b"")
    kinds = found(home)
    assert ("absent", name(home, gone)) in kinds
    assert ("unreadable", name(home, torn)) in kinds
    assert ("unreadable", name(home, empty)) in kinds
    assert {what for what, _ in kinds} == {"absent", "unreadable", "changed"}, "changed: other bytes than were made"


def write_long(path: Path, seconds: int) -> None:
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", format="matroska") as c:
        s = c.add_stream("libx264", rate=10)
        s.width = s.height = 64
        s.pix_fmt = "yuv420p"
        s.options = {"g": "10"}
        for _ in range(10 * seconds):
            for packet in s.encode(av.VideoFrame.from_ndarray(rng.integers(0, 255, (64, 64, 3), np.uint8), format="rgb24")):
                c.mux(packet)
        for packet in s.encode():
            c.mux(packet)


def test_questions_that_do_not_say_their_video_end_no_command(home: Path) -> None:
    rows = list(read_docs(home, EGO, EGO.configs[0]))
    rewrite_questions(home, EGO, [{key: value for key, value in row.items() if key != "video_idx"} for row in rows])
    assert "wrong revision" in {f.what for f in examine(home, EGO)}
    assert found(home, LVB) == []
    for command in ("check", "doctor", "overlap"):
        more = ["--videos", str(home / EGO.video_folder)] if command == "overlap" else []
        done = runner.invoke(app, [command, "egoschema", *more, "--hf-home", str(home)])
        assert done.exit_code == 5, done.output
        assert "video_idx" in done.output
        assert not isinstance(done.exception, KeyError)


@pytest.mark.parametrize("text", ["[]", '{"egoschema": 1}', '{"egoschema": {"repo": "r"}}', "[" * 100_000, "{"])
def test_a_broken_record_is_a_finding(home: Path, text: str) -> None:
    (home / "prepared.json").write_text(text)
    assert ("broken record", "prepared.json") in found(home)
    entry = {"repo": "r", "commit": "c", "questions": "", "videos": {"v": ["big"]}}
    (home / "prepared.json").write_text(json.dumps({"egoschema": entry}))
    assert ("broken record", "prepared.json") in found(home)


@pytest.mark.parametrize("text", ["{}", '{"tasks": 1, "files": {}}', "[]", "no"])
def test_a_broken_stamp_of_twins_is_one_line(home: Path, text: str) -> None:
    (home / "twins.json").write_text(text)
    done = runner.invoke(app, ["check", "egoschema", "--hf-home", str(home)])
    assert done.exit_code == 5
    assert "twins.json" in done.stderr and isinstance(done.exception, SystemExit)


def test_a_video_that_cannot_be_read_does_not_end_the_rest(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, cut = videos(home)[:2]
    cut.write_bytes(b"")
    digest = MediaIndex.digest

    def failing(self: MediaIndex, path: Path) -> str:
        if path == bad:
            raise OSError(5, "Input/output error", str(path))
        return digest(self, path)

    monkeypatch.setattr(MediaIndex, "digest", failing)
    kinds = found(home)
    assert ("unreadable", name(home, bad)) in kinds
    assert ("unreadable", name(home, cut)) in kinds


def test_short_videos(home: Path) -> None:
    cut, early = videos(home)[0], videos(home, LVB)[0]
    write_long(cut, 10)
    assert not [k for k in found(home) if k[0] == "short"]
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 6 // 10])
    assert ("short", name(home, cut)) in found(home)
    rows = list(read_docs(home, LVB, "default"))
    of = [r for r in rows if r["video_path"] == early.name]
    for r in of:
        r["duration"] = 90.0
    rewrite_questions(home, LVB, rows)
    short = [f for f in examine(home, LVB) if f.what == "short"]
    assert [f.where for f in short] == [name(home, early)]
    assert "a question needs 90.0 s" in short[0].detail


def test_duplicated_and_swapped(home: Path) -> None:
    a, b, c, d = videos(home)[:4]
    a.write_bytes(b.read_bytes())
    first, second = c.read_bytes(), d.read_bytes()
    c.write_bytes(second)
    d.write_bytes(first)
    kinds = found(home)
    assert ("duplicated", name(home, b)) in kinds
    assert {w for k, w in kinds if k == "swapped"} == {name(home, a), name(home, c), name(home, d)}
    swapped = next(f for f in examine(home, EGO) if f.where == name(home, c))
    assert swapped.detail == f"has the bytes of {name(home, d)}"


def test_duplicates_are_seen_without_a_record(home: Path) -> None:
    (home / "twins.json").unlink()
    a, b = videos(home)[:2]
    a.write_bytes(b.read_bytes())
    assert ("duplicated", name(home, b)) in found(home)


def test_questions_of_another_revision(home: Path) -> None:
    rows = list(read_docs(home, EGO, "Subset"))
    rewrite_questions(home, EGO, rows[:-1])
    assert [k for k, _ in found(home)] == ["wrong revision"]
    rewrite_questions(home, EGO, [{k: v for k, v in r.items() if k != "option"} for r in rows])
    (finding,) = examine(home, EGO, read_videos=False)
    assert "no field option: another revision than lmms-eval 0.7.3 reads" in finding.detail
    assert "--update" in finding.fix or "--build-twins" in finding.fix
    shutil.rmtree(home / "datasets/lmms-eval___egoschema")
    assert [k for k, _ in found(home)] == ["questions absent"]


def test_mvbench_videos_in_other_folders(home: Path) -> None:
    """As older versions of lmms-eval and the archives lay them; the fix is the command that moves them, and it is enough."""
    star = sorted((home / "mvbench_video/star").rglob("*.mp4"))
    old = home / "mvbench_video/star/Charades_v1_480"
    old.mkdir()
    for p in star:
        p.rename(old / p.name)
    clevrer = home / "mvbench_video/clevrer"
    (home / "mvbench_video/data0613").mkdir()
    shutil.move(str(clevrer), str(home / "mvbench_video/data0613/clevrer"))
    wrong = [f for f in examine(home, MVBENCH) if f.what == "wrong folder"]
    assert len(wrong) == len(star) + len(list((home / "mvbench_video/data0613").rglob("*.mp4")))
    assert not [f for f in examine(home, MVBENCH) if f.what == "absent"]
    for f in wrong:
        subprocess.run(["bash", "-c", f.fix.removeprefix("run: ")], check=True)
    assert examine(home, MVBENCH) == []


def test_another_lmms_eval_is_told(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("lmms_eval")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(shutil.copytree(Path(spec.submodule_search_locations[0]) / "tasks/mvbench", tmp_path / "mvbench"))
    assert list(task_differences(MVBENCH, folder)) == []
    utils = folder / "utils.py"
    text = utils.read_text()
    before = {
        "star/Charades_segment": "star/Charades_v1_480",
        "sta/sta_video_segment": "sta/sta_video",
        "nturgbd_convert": "nturgbd",
        "tvqa/video_fps3_hq_segment": "tvqa/frames_fps3_hq",
        "ssv2_video_mp4": "ssv2_video",
    }
    for new, old in before.items():
        text = text.replace(new, old)
    utils.write_text(text)
    (folder / "mvbench_moving_count.yaml").unlink()
    differences = list(task_differences(MVBENCH, folder))
    assert len([f for f in differences if "videos in" in f.detail]) == 7, "seven of the twenty tasks"
    assert [f.where for f in differences if "no such task" in f.detail] == ["mvbench_moving_count"]
    assert all('pip install "lmms_eval==0.7.3"' in f.fix for f in differences)


def test_known_bad_videos_are_shown_and_do_not_count(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = videos(home)[0]
    bad.unlink()
    known = {("egoschema", bad.stem): "cannot be decoded (https://example.org)"}
    assert [(f.what, f.known) for f in examine(home, EGO, known=known)] == [("absent", "cannot be decoded (https://example.org)")]
    monkeypatch.setattr("benchmarks.data.doctor.known_bad", lambda: known)
    done = runner.invoke(app, ["doctor", "egoschema", "--hf-home", str(home)])
    assert done.exit_code == 0, done.output
    assert "known: cannot be decoded" in done.output
    assert "0 faults, 1 of known bad videos" in done.output


def test_the_committed_list_names_benchmarks_and_sources() -> None:
    known = known_bad()
    assert len(known) == 8
    assert {b for b, _ in known} <= set(CATALOG)
    assert all("https://" in why for why in known.values())


def test_command_line(home: Path) -> None:
    assert runner.invoke(app, ["doctor", "--hf-home", str(home)]).exit_code == 0
    videos(home)[0].unlink()
    done = runner.invoke(app, ["doctor", "--hf-home", str(home)])
    assert done.exit_code == 5
    assert "1 faults" in done.output
    assert f"fix: run: python -m benchmarks micro --build-twins {home}" in done.output
    told = json.loads(runner.invoke(app, ["doctor", "--hf-home", str(home), "--json"]).output)
    assert [f["what"] for f in told["findings"]] == ["absent"]
    assert Finding(**told["findings"][0]).benchmark == "egoschema"
    nothing = runner.invoke(app, ["doctor", "--hf-home", str(home / "none"), "--json"])
    assert nothing.exit_code == 5
    assert len(json.loads(nothing.output)["findings"]) == sum(len(b.configs) for b in select(None))
