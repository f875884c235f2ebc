"""A stage runs once, again when its inputs change, and never leaves something half made behind a stamp."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from reproduce.stages import (
    Stage,
    StageContext,
    StageError,
    StampsLostError,
    drop_stamps,
    failures_path,
    in_turn,
    refuse_lost_stamps,
    run_stages,
    stamp_path,
    statuses,
    take_stages,
)
from savi.base.stamp import read_stamp


class Quiet:
    def __init__(self) -> None:
        self.skipped: list[str] = []
        self.remarks: list[str] = []

    def begin(self, stage: Stage, number: int, of: int) -> Any:
        return lambda done, total, /: None

    def end(self, stage: Stage, summary: str, seconds: float) -> None: ...

    def skip(self, stage: Stage, summary: str) -> None:
        self.skipped.append(stage.name)

    def remark(self, text: str) -> None:
        self.remarks.append(text)


def write(name: str, text: str) -> Any:
    def run(c: StageContext) -> str:
        (c.run / name).parent.mkdir(parents=True, exist_ok=True)
        (c.run / name).write_text(text)
        return f"wrote {name}"

    return run


def chain(first: str = "a", settings: Mapping[str, Any] | None = None) -> list[Stage]:
    """one -> two; three stands alone."""
    copy = lambda c: write("two/file.txt", (c.run / "one.txt").read_text() + "!")(c)
    return [
        Stage("one", "one", settings or {}, (), ("one.txt",), write("one.txt", first)),
        Stage("two", "two", {}, ("one",), ("two",), copy),
        Stage("three", "three", {}, (), ("three.txt",), write("three.txt", "3")),
    ]


def test_runs_once(tmp_path: Path) -> None:
    assert run_stages(tmp_path, chain(), Quiet()) == ["one", "two", "three"]
    quiet = Quiet()
    assert run_stages(tmp_path, chain(), quiet) == []
    assert quiet.skipped == ["one", "two", "three"]


def test_other_settings_run_through_to_what_depends_on_them(tmp_path: Path) -> None:
    run_stages(tmp_path, chain(), Quiet())
    assert run_stages(tmp_path, chain("b", {"x": 1}), Quiet()) == ["one", "two"]
    assert (tmp_path / "two/file.txt").read_text() == "b!"


def test_equal_output_does_not_run_what_depends_on_it(tmp_path: Path) -> None:
    run_stages(tmp_path, chain(), Quiet())
    assert run_stages(tmp_path, chain("a", {"x": 1}), Quiet()) == ["one"]


@pytest.mark.parametrize("damage", ["remove", "same size", "truncate"])
def test_a_damaged_output_is_made_again(tmp_path: Path, damage: str) -> None:
    run_stages(tmp_path, chain(), Quiet())
    path = tmp_path / "two/file.txt"
    if damage == "remove":
        path.unlink()
    else:
        path.write_text("b!" if damage == "same size" else "")
    assert statuses(tmp_path, chain())["two"].why == "two/file.txt is missing or changed"
    quiet = Quiet()
    assert run_stages(tmp_path, chain(), quiet) == ["two"]
    assert "two/file.txt" in quiet.remarks[0]
    assert path.read_text() == "a!"


def test_files_beside_a_damaged_one_are_made_again_and_others_kept(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def run(c: StageContext) -> str:
        seen.append(sorted(p.relative_to(c.run).as_posix() for p in (c.run / "e").rglob("*.txt")) if (c.run / "e").exists() else [])
        for name in ("e/a/q.txt", "e/a/s.txt", "e/b/q.txt"):
            write(name, name)(c)
        return ""

    stage = [Stage("eval", "eval", {}, (), ("e",), run)]
    run_stages(tmp_path, stage, Quiet())
    (tmp_path / "e/a/q.txt").write_text("tampered!")
    run_stages(tmp_path, stage, Quiet())
    assert seen == [[], ["e/b/q.txt"]]


def test_leftovers_of_other_inputs_are_removed_before_the_stage_runs(tmp_path: Path) -> None:
    def run(c: StageContext) -> str:
        assert not (c.run / "one.txt").exists()
        assert not c.failures.exists()
        c.failures.write_text("{}\n")
        return write("one.txt", "x")(c)

    for value in (1, 2):
        run_stages(tmp_path, [Stage("one", "", {"v": value}, (), ("one.txt",), run)], Quiet())


def test_a_stage_that_breaks_leaves_no_stamp_and_keeps_what_it_began(tmp_path: Path) -> None:
    def breaks(c: StageContext) -> str:
        write("one.txt", "half")(c)
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        run_stages(tmp_path, [Stage("one", "", {}, (), ("one.txt",), breaks)], Quiet())
    stamp = read_stamp(stamp_path(tmp_path, "one"))
    assert stamp is not None
    assert not stamp.done
    seen: list[str] = []

    def goes_on(c: StageContext) -> str:
        seen.append((c.run / "one.txt").read_text())
        return write("one.txt", "whole")(c)

    assert run_stages(tmp_path, [Stage("one", "", {}, (), ("one.txt",), goes_on)], Quiet()) == ["one"]
    assert seen == ["half"]


def test_a_missing_output_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"without making nothing\.txt"):
        run_stages(tmp_path, [Stage("one", "", {}, (), ("nothing.txt",), lambda c: "")], Quiet())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"stamp": 99}',
        '{"stamp": 1, "made_from": {}, "files": [], "facts": {}}',
        "\x00",
        '{"stamp": 1, "made_from": 3, "files": {}}',
    ],
)
def test_an_unreadable_stamp_means_not_done(tmp_path: Path, text: str) -> None:
    run_stages(tmp_path, chain(), Quiet())
    stamp_path(tmp_path, "one").write_text(text)
    assert run_stages(tmp_path, chain(), Quiet()) == ["one"]


def test_what_was_made_from_other_inputs_is_kept_until_it_is_replaced(tmp_path: Path) -> None:
    stage = lambda value, run: [Stage("one", "", {"v": value}, (), ("out",), run)]
    run_stages(tmp_path, stage(1, write("out/a.txt", "finished")), Quiet())

    def breaks(c: StageContext) -> str:
        write("out/a.txt", "half")(c)
        raise RuntimeError("power")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="power"):
            run_stages(tmp_path, stage(2, breaks), Quiet())
        assert [p.read_text() for p in sorted(tmp_path.rglob("a.txt"))] == ["half", "finished"]
    run_stages(tmp_path, stage(2, write("out/a.txt", "new")), Quiet())
    assert [p.read_text() for p in tmp_path.rglob("a.txt")] == ["new"]


def test_a_run_copied_without_hidden_files_is_done(tmp_path: Path) -> None:
    run, copy = tmp_path / "run", tmp_path / "copy"
    run_stages(run, chain(), Quiet())
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns(".*"))
    assert run_stages(copy, chain(), Quiet()) == []


def test_another_runs_stages_are_taken_where_they_would_come_out_the_same(tmp_path: Path) -> None:
    """Those of equal settings and inputs; a changed file, or one from other settings, and all that reads it, is made here."""
    source, same, other, damaged = (tmp_path / name for name in ("source", "same", "other", "damaged"))
    run_stages(source, chain(), Quiet())
    failures_path(source, "one").write_text("{}\n")
    assert take_stages(source, same, chain()) == ["one", "two", "three"]
    assert run_stages(same, chain(), Quiet()) == []
    assert (same / "two/file.txt").read_text() == "a!"
    assert failures_path(same, "one").is_file()
    assert take_stages(source, same, chain()) == []
    assert take_stages(source, other, chain("b", {"x": 1})) == ["three"]
    assert run_stages(other, chain("b", {"x": 1}), Quiet()) == ["one", "two"]
    (source / "two/file.txt").write_text("?")
    assert take_stages(source, damaged, chain()) == ["one", "three"]
    assert run_stages(damaged, chain(), Quiet()) == ["two"]
    assert take_stages(tmp_path / "nowhere", tmp_path / "new", chain()) == []
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/three.txt").write_text("mine")
    assert take_stages(source, tmp_path / "begun", chain()) == ["one"]
    assert (tmp_path / "begun/three.txt").read_text() == "mine"


def test_outputs_without_a_stamp_are_refused_and_kept(tmp_path: Path) -> None:
    refuse_lost_stamps(tmp_path, chain())
    run_stages(tmp_path, chain(), Quiet())
    refuse_lost_stamps(tmp_path, chain())
    shutil.rmtree(tmp_path / "stages")
    with pytest.raises(StampsLostError, match=r"3 outputs are there \(one\.txt, \.\.\.\).*--start-over"):
        refuse_lost_stamps(tmp_path, chain())


def test_started_over_every_stage_runs_and_nothing_is_gone_before_its_replacement(tmp_path: Path) -> None:
    run_stages(tmp_path, chain(), Quiet())
    drop_stamps(tmp_path, chain())
    seen: list[int] = []

    def watched(stage: Stage) -> Stage:
        def run(c: StageContext) -> str:
            seen.append(sum(p.is_file() for name in ("one.txt", "file.txt", "three.txt") for p in tmp_path.rglob(name)))
            return stage.run(c)

        return dataclasses.replace(stage, run=run)

    assert run_stages(tmp_path, [watched(stage) for stage in chain()], Quiet()) == ["one", "two", "three"]
    assert seen == [3, 3, 3]


def test_a_file_changed_without_its_size_or_date_is_seen(tmp_path: Path) -> None:
    run_stages(tmp_path, chain(), Quiet())
    path = tmp_path / "three.txt"
    before = path.stat()
    time.sleep(0.15)
    run_stages(tmp_path, chain(), Quiet())  # every digest is remembered now
    path.write_text("4")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert statuses(tmp_path, chain())["three"].why == "three.txt is missing or changed"


def test_what_a_stage_made_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_stages(tmp_path, chain(), Quiet())
    time.sleep(0.15)
    statuses(tmp_path, chain())
    monkeypatch.setattr("savi.base.digest_memory.sha256_file", lambda path: pytest.fail(f"{path} was read again"))
    assert run_stages(tmp_path, chain(), Quiet()) == []


def test_an_empty_folder_is_no_output(tmp_path: Path) -> None:
    def run(c: StageContext) -> str:
        (c.run / "out").mkdir()
        return ""

    with pytest.raises(StageError, match="without making out"):
        run_stages(tmp_path, [Stage("one", "", {}, (), ("out",), run)], Quiet())


def test_statuses_say_why(tmp_path: Path) -> None:
    assert [s.why for s in statuses(tmp_path, chain()).values()] == ["not done yet", "waits for one", "not done yet"]
    run_stages(tmp_path, chain(), Quiet())
    assert all(s.done for s in statuses(tmp_path, chain()).values())
    assert statuses(tmp_path, chain("a", {"x": 1}))["one"].why == "made from other inputs"


def test_timings_are_noted(tmp_path: Path) -> None:
    noted: dict[str, Mapping[str, Any]] = {}
    run_stages(tmp_path, chain(), Quiet(), note_timing=lambda name, values: noted.update({name: values}))
    assert set(noted) == {"one", "two", "three"}
    assert all(v["wall_s"] >= 0 and v["peak_memory_gb"] > 0 for v in noted.values())


KILLED = """
import os, signal, sys
from pathlib import Path
from reproduce.stages import Stage, run_stages
sys.path.insert(0, sys.argv[1])
from tests.reproduce.test_stages import Quiet, chain
run, at = Path(sys.argv[2]), sys.argv[3]
stages = chain()
def wrap(stage):
    def run_it(c):
        if stage.name == at.split()[1] and at.startswith("before"):
            os.kill(os.getpid(), signal.SIGKILL)
        out = stage.run(c)
        if stage.name == at.split()[1] and at.startswith("after"):
            os.kill(os.getpid(), signal.SIGKILL)
        return out
    return Stage(stage.name, stage.title, stage.settings, stage.after, stage.outputs, run_it)
run_stages(run, [wrap(s) for s in stages], Quiet())
"""


@pytest.mark.parametrize("at", ["after one", "before two", "after two", "before three"])
def test_sigkill_and_the_same_again_gives_the_same_files(tmp_path: Path, at: str) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_stages(whole, chain(), Quiet())
    done = subprocess.run([sys.executable, "-c", KILLED, str(Path(__file__).parents[2]), str(killed), at], check=False, env={**os.environ})
    assert done.returncode == -signal.SIGKILL
    run_stages(killed, chain(), Quiet())
    files = {p.relative_to(whole): p.read_bytes() for p in whole.rglob("[!.]*") if p.is_file()}
    assert files == {p.relative_to(killed): p.read_bytes() for p in killed.rglob("[!.]*") if p.is_file()}


def test_failures_are_kept_with_their_stage(tmp_path: Path) -> None:
    def run(c: StageContext) -> str:
        c.failures.write_text(json.dumps({"what": "v"}) + "\n")
        return write("one.txt", "x")(c)

    run_stages(tmp_path, [Stage("iter-1/propose", "", {}, (), ("one.txt",), run)], Quiet())
    assert failures_path(tmp_path, "iter-1/propose").name == "iter-1.propose.failures.jsonl"
    assert failures_path(tmp_path, "iter-1/propose").exists()


class InHere:
    """Another process, in this one: it does a job when it is waited for, or dies before."""

    def __init__(self, run: Path, stages: list[Stage], dies: bool) -> None:
        self.run, self.dies = run, dies
        self.stages = {stage.name: stage for stage in stages}
        self.begun: list[str] = []

    def begin(self, job: tuple[str, Any], /) -> None:
        assert job[0] == "stage"
        self.begun.append(job[1])

    def wait(self, name: str, /) -> float:
        if name in self.begun and not self.dies:
            self.stages[name].run(StageContext(self.run, lambda done, total, /: None, failures_path(self.run, name)))
        return 7.0 if name in self.begun else 0.0


def loop(run: list[str]) -> list[Stage]:
    """measure-0, then train, measure and gate twice: a measurement may be made beside the next training."""

    def once(name: str) -> Any:
        def work(c: StageContext) -> str:
            if not (c.run / name).exists():
                run.append(name)
                (c.run / name).write_text(name)
            return name

        return work

    def stage(name: str, *after: str, beside: str = "") -> Stage:
        return Stage(name, name, {}, after, (name,), once(name), beside=beside)

    return [
        stage("measure-0", beside="train-1"),
        stage("train-1"),
        stage("measure-1", "train-1", beside="train-2"),
        stage("gate-1", "measure-0", "measure-1"),
        stage("train-2", "train-1"),
        stage("measure-2", "train-2", beside="train-3"),
        stage("gate-2", "measure-1", "measure-2"),
    ]


@pytest.mark.parametrize("dies", [False, True])
def test_another_process_makes_stages_ahead(dies: bool, tmp_path: Path) -> None:
    run: list[str] = []
    stages = loop(run)
    order = [stage.name for stage in in_turn(stages)]
    assert order == ["train-1", "measure-0", "train-2", "measure-1", "gate-1", "measure-2", "gate-2"]
    other, timed = InHere(tmp_path, stages, dies), {}
    console = Quiet()
    ran = run_stages(tmp_path, stages, console, note_timing=lambda name, values: timed.update({name: values["wall_s"]}), ahead=other)
    assert ran == run == order, "each once, whoever did it"
    assert other.begun == ["measure-0", "measure-1"]
    assert timed["measure-0"] >= 7 > timed["train-1"]
    assert all(status.done for status in statuses(tmp_path, stages).values())
    assert run_stages(tmp_path, stages, Quiet(), ahead=InHere(tmp_path, stages, dies)) == []
