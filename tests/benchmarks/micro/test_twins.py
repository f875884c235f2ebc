"""Twins: laid out as the real sets, balanced, the same bytes from the same seed, whole again after damage."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.catalog import CATALOG, PAPER, select
from benchmarks.data.layout import DatasetError, check_all, expected_n, read_docs, twins_stamp
from benchmarks.micro.twins.twins import TwinSet, build_twins, check_twins
from benchmarks.micro.world.questions import VALUES
from benchmarks.mvbench import SUBTASKS
from tests.savi.base.disk import Disk


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> TwinSet:
    return build_twins(tmp_path_factory.mktemp("twins"), seed=3, size="smoke")


def docs(twins: TwinSet, name: str, config: int = 0) -> list[dict]:
    b = CATALOG[name]
    return list(read_docs(twins.hf_home, b, b.configs[config]))


def test_every_benchmark_is_whole(twins: TwinSet) -> None:
    found = check_all(twins.hf_home)
    assert [s.benchmark for s in found] == list(PAPER)
    for s in found:
        b = CATALOG[s.benchmark]
        assert s.ready, s
        assert s.n == twins.n[s.benchmark] == len(b.tasks) * b.twin_questions["smoke"]
        assert s.videos == twins.videos[s.benchmark]


def test_expected_n_follows_lmms_evals_limit(twins: TwinSet) -> None:
    assert expected_n(twins.hf_home, CATALOG["mvbench"], 2) == 40
    assert expected_n(twins.hf_home, CATALOG["tempcompass"], 5) == 15
    assert expected_n(twins.hf_home, CATALOG["egoschema"], 10_000) == twins.n["egoschema"]


def test_only_mp4_files_and_questions_lie_there(twins: TwinSet) -> None:
    suffixes = Counter(p.suffix for p in twins.hf_home.rglob("*") if p.is_file())
    assert set(suffixes) == {".mp4", ".arrow", ".json", ""}
    assert suffixes[".mp4"] == sum(twins.videos.values())
    assert suffixes[".arrow"] == 20 + 1 + 3 + 1 + 1 + 1


def test_what_is_said_to_be_whole_is_there_after_a_power_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root := tmp_path / "disk").mkdir()
    disk = Disk(root, monkeypatch)
    build_twins(root / "twins", seed=3, size="smoke")
    found = disk.after(len(disk.states) - 1, tmp_path / "after")
    disk.close()
    assert check_twins(found / "twins") == []


def test_the_right_answer_is_one_of_the_options_and_positions_are_even(twins: TwinSet) -> None:
    ego = docs(twins, "egoschema")
    places = Counter(d["answer"] for d in ego)
    assert max(places.values()) - min(places.values()) <= 1
    assert set(places) == set("01234")
    for d in ego:
        assert [o[:3] for o in d["option"]] == ["A. ", "B. ", "C. ", "D. ", "E. "]
        assert len(set(d["option"])) == 5
    yes = Counter(d["answer"] for d in docs(twins, "tempcompass", 1))
    assert abs(yes["yes"] - yes["no"]) <= 1
    for d in docs(twins, "nextqa"):
        assert len({d[f"a{k}"] for k in range(5)}) == 5
        assert 0 <= d["answer"] < 5


def test_options_belong_to_the_subtasks_family(twins: TwinSet) -> None:
    b = CATALOG["mvbench"]
    for config in b.configs:
        subtask = SUBTASKS[config]
        for d in read_docs(twins.hf_home, b, config):
            assert len(d["candidates"]) == subtask.options
            assert set(d["candidates"]) <= set(VALUES[subtask.family])
            assert d["answer"] in d["candidates"]


def test_prompt_forms(twins: TwinSet) -> None:
    multi = docs(twins, "tempcompass", 0)[0]
    question, *lines = multi["question"].split("\n")
    assert question
    assert multi["answer"] in lines
    assert [x[:3] for x in lines] == ["A. ", "B. ", "C. ", "D. "][: len(lines)]
    match = docs(twins, "tempcompass", 2)[0]
    first, a, c = match["question"].split("\n")
    assert first == "Which caption matches the video better?"
    assert a.startswith("Caption A: ")
    assert c.startswith("Caption B: ")
    assert match["answer"] in (a, c)
    assert a.split(": ")[1] != c.split(": ")[1]
    options = Counter(sum(d[f"option{k}"] != "N/A" for k in range(5)) for d in docs(twins, "longvideobench"))
    assert set(options) == {4, 5}


def test_videos_are_shared_as_in_the_real_sets(twins: TwinSet) -> None:
    assert twins.n["egoschema"] == twins.videos["egoschema"]
    assert twins.n["nextqa"] / twins.videos["nextqa"] > 4
    assert twins.n["perceptiontest"] / twins.videos["perceptiontest"] > 2


def test_no_question_is_asked_twice_on_a_video(twins: TwinSet) -> None:
    for b in select(None):
        for task, config in zip(b.tasks, b.configs, strict=True):
            asked = [(b.video_file(task, d), d["question"]) for d in read_docs(twins.hf_home, b, config)]
            assert len(asked) == len(set(asked)), config


def test_same_seed_same_bytes_other_seed_others(twins: TwinSet, tmp_path: Path) -> None:
    assert build_twins(tmp_path / "again", seed=3, size="smoke").fingerprint == twins.fingerprint
    stamp, again = twins_stamp(twins.hf_home), twins_stamp(tmp_path / "again")
    assert stamp is not None
    assert again is not None
    assert stamp["files"] == again["files"]
    assert build_twins(tmp_path / "other", seed=4, size="smoke").fingerprint != twins.fingerprint


def test_kept_when_whole_and_repaired_when_not(tmp_path: Path) -> None:
    made = build_twins(tmp_path, seed=3, size="smoke")
    video = next((tmp_path / "egoschema/videos").glob("*.mp4"))
    before = video.stat().st_mtime_ns
    assert build_twins(tmp_path, seed=3, size="smoke") == made
    assert video.stat().st_mtime_ns == before

    data = video.read_bytes()
    video.unlink()
    other = next((tmp_path / "tempcompass/videos").glob("*.mp4"))
    whole = other.read_bytes()
    other.write_bytes(b"\0" * len(whole))
    assert set(check_twins(tmp_path)) == {video.relative_to(tmp_path).as_posix(), other.relative_to(tmp_path).as_posix()}
    assert [s.missing for s in check_all(tmp_path) if not s.ready] == [(video.relative_to(tmp_path).as_posix(),)]
    assert build_twins(tmp_path, seed=3, size="smoke") == made
    assert video.read_bytes() == data
    assert other.read_bytes() == whole
    (tmp_path / "twins.json").unlink()
    assert build_twins(tmp_path, seed=3, size="smoke") == made


def test_another_seed_replaces_everything(tmp_path: Path) -> None:
    build_twins(tmp_path, seed=3, size="smoke")
    build_twins(tmp_path, seed=5, size="smoke")
    stamp = twins_stamp(tmp_path)
    assert stamp is not None
    on_disk = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*") if p.is_file() and not p.name.startswith(".")}
    assert on_disk - {"twins.json"} == set(stamp["files"])
    assert all(len(list(p.iterdir())) == 1 for p in tmp_path.glob("datasets/*/*/0.0.0"))


def test_real_data_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "egoschema/videos").mkdir(parents=True)
    with pytest.raises(DatasetError, match="folder of their own"):
        build_twins(tmp_path, seed=3, size="smoke")


def test_unknown_size() -> None:
    with pytest.raises(ValueError, match="choose from ci, micro, smoke"):
        build_twins(Path("unused"), seed=1, size="huge")  # type: ignore[arg-type]


def test_a_broken_stamp_is_named(tmp_path: Path) -> None:
    (tmp_path / "twins.json").write_text("{")
    with pytest.raises(DatasetError, match=r"twins\.json"):
        check_twins(tmp_path)
    (tmp_path / "twins.json").write_text(json.dumps([]))
    with pytest.raises(DatasetError, match="object"):
        check_twins(tmp_path)


@pytest.mark.parametrize("name", PAPER)
def test_size_ci_is_four_times_micro_with_no_question_twice(name: str) -> None:
    """Drawn, not rendered: enough questions that CI can decide."""
    b = CATALOG[name]
    n = b.twin_task("ci")
    assert n == 4 * b.twin_questions["micro"]
    rows = b.twin(1, n).rows
    for task, config in zip(b.tasks, b.configs, strict=True):
        assert len({(b.video_file(task, d), b.document(task, d).question, b.document(task, d).options) for d in rows[config]}) == n
