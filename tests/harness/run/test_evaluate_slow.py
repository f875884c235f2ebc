"""The real tasks of lmms-eval, offline, on twins: complete, equal to lmms-eval's own command line, resumed after SIGKILL.

Each evaluation runs in a process of its own, since the environment must be set before lmms-eval is imported.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.catalog import CATALOG, PAPER
from benchmarks.micro.twins.twins import TwinSet, build_twins
from harness.integrity import StatusLimits, check_evaluation, check_whole
from harness.records import Evaluation, read_evaluations, read_score, write_records
from harness.run.offline import offline_environment
from savi.base.lock import is_lock
from tests.savi import launched
from tests.savi.tiny import tiny_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[3]
LOOSE = StatusLimits()
"""The tiny model is random: only its answers' statuses are out of order."""


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> TwinSet:
    return build_twins(tmp_path_factory.mktemp("twins"), seed=1, size="smoke", benchmarks=["videomme"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


def environment(home: Path, *paths: Path) -> dict[str, str]:
    return {
        **os.environ,
        **offline_environment(home),
        "PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT))),
        "OMP_NUM_THREADS": "1",
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
    }


def command(checkpoint: Path, home: Path, out: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "harness",
        "evaluate",
        str(checkpoint),
        "--out",
        str(out),
        "--hf-home",
        str(home),
        "--batch",
        "16",
        "--json",
        *more,
    ]


def evaluate(checkpoint: Path, home: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(checkpoint, home, out, *more), capture_output=True, text=True, env=environment(home), cwd=ROOT, check=False
    )


@pytest.fixture(scope="module")
def whole(checkpoint: Path, twins: TwinSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    done = evaluate(checkpoint, twins.hf_home, out)
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(json.loads(done.stdout)) == list(PAPER), "an optional benchmark is not run unless asked for"
    assert "Postprocessing" not in done.stderr
    return out


def without_times(folder: Path) -> dict[str, str]:
    """Every file of results below an evaluation folder, wall times taken out."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not is_lock(p.name)]
    return {p.relative_to(folder).as_posix(): re.sub(r'"wall_s": [\d.e-]+', "", p.read_text()) for p in files}


def test_all_six_are_complete_and_consistent(whole: Path, twins: TwinSet) -> None:
    found = read_evaluations(whole)
    assert set(found) == set(PAPER)
    for name, e in found.items():
        assert e.score.n == e.score.n_expected == twins.n[name] == len(e.records)
        assert e.score.videos == twins.videos[name]
        assert check_evaluation(e, limits=LOOSE) == []
        assert {r.frames for r in e.records} == {8}
        assert all((twins.hf_home / r.video_path).is_file() for r in e.records)
        assert e.score.strict_pct <= e.score.upstream_pct + 1e-9
        assert not list((whole / name).glob("journal*"))


def test_a_finished_evaluation_is_not_repeated(whole: Path, checkpoint: Path, twins: TwinSet) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}
    assert evaluate(checkpoint, twins.hf_home, whole).returncode == 0
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()} == before
    once = without_times(whole)
    score = whole / "egoschema/score.json"
    score.write_text(score.read_text()[:100])  # half a file is none: that benchmark alone is measured again
    again = evaluate(checkpoint, twins.hf_home, whole)
    assert again.returncode == 0
    assert "score.json.damaged-1" in again.stderr
    kept = sorted((whole / "egoschema").glob("*.damaged-1"))
    assert [p.name for p in kept] == ["questions.jsonl.damaged-1", "score.json.damaged-1"]
    for path in kept:
        path.unlink()
    assert without_times(whole) == once
    first = read_evaluations(whole)["mvbench"].records[0]
    questions = whole / "mvbench/questions.jsonl"
    edited = [replace(first, answer=first.answer + " edited"), *read_evaluations(whole)["mvbench"].records[1:]]
    write_records(questions, edited)
    assert evaluate(checkpoint, twins.hf_home, whole).returncode == 0
    for path in (whole / "mvbench").glob("*.damaged-1"):
        path.unlink()
    assert without_times(whole) == once, "an edited record is none of this model's answers"
    assert (whole / "nextqa/score.json").stat().st_mtime_ns == before[whole / "nextqa/score.json"]


def test_other_weights_are_measured_again(whole: Path, twins: TwinSet, tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path / "other", seed=5)
    assert evaluate(other, twins.hf_home, tmp_path / "out", "--benchmarks", "egoschema").returncode == 0
    mine, theirs = read_score(tmp_path / "out/egoschema/score.json"), read_score(whole / "egoschema/score.json")
    assert mine.provenance.weights != theirs.provenance.weights
    assert mine.provenance.prompts == theirs.provenance.prompts
    assert mine.provenance.media == theirs.provenance.media


def entry_point(out: Path) -> Path:
    """A folder of packages that names the model to lmms-eval, as `pip install` does."""
    site = out / "site"
    info = site / "videosavi_harness-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: videosavi-harness\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[lmms_eval.models]\nsavi = harness.run.manifest:manifest\n")
    return site


def stock(checkpoint: Path, home: Path, out: Path, task: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """lmms-eval's own command line, through the launcher."""
    args = ["--model", "savi", "--model_args", f"pretrained={checkpoint},num_frames=8,max_new_tokens=48,rows=16"]
    args += ["--tasks", task, "--output_path", str(out / "stock"), "--log_samples", "--process_docs_parallel", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "harness", "lmms-eval", *args],
        capture_output=True,
        text=True,
        env=environment(home, entry_point(out)),
        cwd=out,
        check=False,
    )
    results = list((out / "stock").rglob("*results.json"))
    assert len(results) == 1, done.stdout[-2000:] + done.stderr[-3000:]
    samples = next((out / "stock").rglob(f"*samples_{task}.jsonl"))
    return json.loads(results[0].read_text()), [json.loads(line) for line in samples.read_text().splitlines()]


@pytest.fixture(scope="module")
def optional(checkpoint: Path, twins: TwinSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("optional")
    done = evaluate(checkpoint, twins.hf_home, out, "--benchmarks", "videomme")
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_an_optional_benchmark_is_complete_when_asked_for(optional: Path, twins: TwinSet) -> None:
    found = read_evaluations(optional)
    assert list(found) == ["videomme"]
    e = found["videomme"]
    assert e.score.n == e.score.n_expected == twins.n["videomme"] == 36
    assert e.score.videos == twins.videos["videomme"] == 12
    assert check_evaluation(e, limits=LOOSE) == []
    assert all((twins.hf_home / r.video_path).is_file() for r in e.records)
    assert e.score.chance_pct == 25.0
    assert "Answer with the option's letter" in e.records[0].prompt


@pytest.mark.parametrize("name", ["egoschema", "nextqa", "videomme"])
def test_equals_lmms_evals_own_command_line(
    name: str, whole: Path, optional: Path, checkpoint: Path, twins: TwinSet, tmp_path: Path
) -> None:
    b = CATALOG[name]
    results, samples = stock(checkpoint, twins.hf_home, tmp_path, b.tasks[0])
    ours: Evaluation = (read_evaluations(whole) | read_evaluations(optional))[name]
    assert ours.score.upstream_pct == pytest.approx(100 / b.unit * results["results"][b.tasks[0]][f"{b.metric},none"], abs=1e-9)
    theirs = {s["doc_id"]: s for s in samples}
    assert len(theirs) == ours.score.n
    for r in ours.records:
        said = theirs[r.doc_id]["filtered_resps"]
        assert r.answer == (said if isinstance(said, str) else said[0])


def test_the_releases_own_line_with_another_model(whole: Path, checkpoint: Path, twins: TwinSet, tmp_path: Path) -> None:
    """docs/release.md's line, on one process, with the workaround for a torchvision that does not match torch in both programs."""
    text = (ROOT / "docs/release.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^    (accelerate launch .*)$", text, flags=re.MULTILINE)
    places = {
        "--num_processes 4": "--num_processes 1 --cpu",
        "PORT": "0",
        "CKPT": str(checkpoint),
        "=32,": "=8,",
        "TASK": "egoschema_subset",
    }
    places |= {"DIR": str(tmp_path / "stock"), "-m lmms_eval": "-m harness lmms-eval"}
    for name, value in places.items():
        assert line.count(name) == 1, name
        line = line.replace(name, value)
    code = "from savi.base.torchvision import fix_torchvision as fix; fix(); from accelerate.commands.accelerate_cli import main; main()"
    words = [sys.executable, "-c", code, *line.split()[1:], "--process_docs_parallel", "1"]
    done = subprocess.run(
        words, capture_output=True, text=True, env=environment(twins.hf_home, entry_point(tmp_path)), cwd=tmp_path, check=False
    )
    results = list((tmp_path / "stock").rglob("*results.json"))
    assert len(results) == 1, done.stdout[-2000:] + done.stderr[-3000:]
    score = json.loads(results[0].read_text())["results"]["egoschema_subset"]["score,none"]
    assert 100 * score == pytest.approx(read_evaluations(whole)["egoschema"].score.upstream_pct, abs=1e-9)


def test_killed_and_started_again_is_the_same(whole: Path, checkpoint: Path, twins: TwinSet, tmp_path: Path) -> None:
    out = tmp_path / "out"
    kills = 0
    for want in ("tempcompass", "mvbench"):
        with subprocess.Popen(
            command(checkpoint, twins.hf_home, out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(twins.hf_home),
            cwd=ROOT,
        ) as p:
            journal = out / want / "journal.jsonl"
            until = time.monotonic() + 300
            while p.poll() is None and time.monotonic() < until:
                if journal.exists() and journal.stat().st_size > 0:
                    p.send_signal(signal.SIGKILL)
                    kills += 1
                    break
                time.sleep(0.005)
            p.wait()
    assert kills == 2
    last = out / "mvbench/journal.jsonl"
    last.write_bytes(last.read_bytes()[:-7])  # and the last line torn
    assert evaluate(checkpoint, twins.hf_home, out).returncode == 0
    assert without_times(out) == without_times(whole)


def test_a_limit_is_said_and_never_takes_a_whole_results_place(whole: Path, checkpoint: Path, twins: TwinSet, tmp_path: Path) -> None:
    done = evaluate(checkpoint, twins.hf_home, tmp_path / "part", "--limit", "2", "--benchmarks", "mvbench,tempcompass")
    assert done.returncode == 0
    assert "--limit 2" in done.stderr
    found = read_evaluations(tmp_path / "part")
    assert {n: (e.score.n, e.score.n_expected, e.score.limit) for n, e in found.items()} == {
        "tempcompass": (6, twins.n["tempcompass"], 2),
        "mvbench": (40, twins.n["mvbench"], 2),
    }
    assert [p for e in found.values() for p in check_evaluation(e, limits=LOOSE)] == []  # a part that says so: fine beside the same part
    assert {p.code for n, e in found.items() for p in check_whole(e, CATALOG[n])} == {"whole_set"}  # and never beside a published number
    before = without_times(whole)
    refused = evaluate(checkpoint, twins.hf_home, whole, "--limit", "3", "--benchmarks", "egoschema")
    assert refused.returncode == 2
    assert "limit: none there, 3 here" in refused.stderr
    assert without_times(whole) == before


def test_another_model_never_takes_a_results_place(whole: Path, twins: TwinSet, tmp_path: Path) -> None:
    before = without_times(whole)
    other = tiny_checkpoint(tmp_path / "other", seed=6)
    refused = evaluate(other, twins.hf_home, whole, "--benchmarks", "nextqa")
    assert refused.returncode == 2
    assert str(other) in refused.stderr
    assert f"{whole}/nextqa holds a finished result of" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert without_times(whole) == before
    copy = tmp_path / "copy"
    shutil.copytree(whole / "nextqa", copy / "nextqa")
    assert evaluate(other, twins.hf_home, copy, "--benchmarks", "nextqa", "--replace").returncode == 0
    assert read_score(copy / "nextqa/score.json").provenance.weights != read_score(whole / "nextqa/score.json").provenance.weights


def torchrun(count: int, *arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *arguments],
        capture_output=True, text=True, env=environment(home), cwd=ROOT, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_give_what_one_gives(count: int, whole: Path, checkpoint: Path, twins: TwinSet, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = torchrun(count, *command(checkpoint, twins.hf_home, out)[1:], home=twins.hf_home)
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(json.loads(done.stdout)) == set(read_evaluations(whole)), "the first process alone prints"
    assert without_times(out) == without_times(whole)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_or_hung_process_is_gone_on_from_with_another_number(
    number: signal.Signals, whole: Path, checkpoint: Path, twins: TwinSet, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    env = {**environment(twins.hf_home), "SAVI_SILENCE_S": "15"}
    with launched.torchrun(2, *command(checkpoint, twins.hf_home, out)[2:], env=env) as process:
        seconds, errors, last = launched.hit(process, out, number, lambda _: any(j.stat().st_size for j in out.glob("*/journal-1.jsonl")))
    assert seconds < 60
    assert f"error: process 1 ({last['pid']} on " in errors
    assert "it was at video " in errors
    assert ".mp4 (evaluate)" in errors
    assert evaluate(checkpoint, twins.hf_home, out).returncode == 0
    assert without_times(out) == without_times(whole)


def test_another_result_is_refused_in_all_processes(whole: Path, checkpoint: Path, twins: TwinSet) -> None:
    before = without_times(whole)
    done = torchrun(2, *command(checkpoint, twins.hf_home, whole, "--limit", "3")[1:], home=twins.hf_home)
    assert done.returncode != 0
    assert "holds a finished result" in done.stderr
    assert without_times(whole) == before


def test_check_asks_the_same_as_one_process(whole: Path, checkpoint: Path, twins: TwinSet, tmp_path: Path) -> None:
    """The same order, questions, verdict and exit code."""
    said = {}
    for count in (1, 2):
        more = ["--out", str(tmp_path / str(count)), "--data", str(twins.hf_home), "--against", str(whole), "--nonce", "n", "--json"]
        done = torchrun(count, "-m", "harness", "check", str(checkpoint), "--benchmarks", "egoschema,nextqa", *more, home=twins.hf_home)
        said[count] = json.loads(done.stdout)
        assert json.loads((tmp_path / str(count) / "check.json").read_text()) == said[count]
        assert done.returncode == (0 if said[count]["gate"]["exit_code"] == 0 else 1), done.stderr[-2000:]
    assert said[1] == said[2]
    assert sum(one["questions"] for one in said[1]["asked"]) > 10
    assert list((tmp_path / "2").rglob("journal-1.jsonl"))


def test_check_ends_with_a_dead_process_and_asks_nothing_twice(whole: Path, checkpoint: Path, twins: TwinSet, tmp_path: Path) -> None:
    """Going on alone it comes to the verdict of one process that was never killed."""
    out = tmp_path / "out"
    more = ["--data", str(twins.hf_home), "--against", str(whole), "--nonce", "n", "--json", "--benchmarks", "egoschema,nextqa"]
    check = ["harness", "check", str(checkpoint), *more]
    env = environment(twins.hf_home)
    with launched.torchrun(2, *check, "--out", out, env=env) as process:
        seconds, errors, last = launched.hit(
            process, out, signal.SIGKILL, lambda _: any(j.stat().st_size for j in out.rglob("journal*.jsonl"))
        )
    assert seconds < 60
    assert f"process 1 ({last['pid']} on " in errors
    kept = sum(len(path.read_bytes().splitlines()) - 1 for path in out.rglob("journal*.jsonl"))
    assert kept > 0
    said = {}
    for name, folder in (("killed", out), ("straight", tmp_path / "straight")):
        done = subprocess.run(
            [sys.executable, "-m", *check, "--out", str(folder)], capture_output=True, text=True, env=env, cwd=ROOT, check=False
        )
        said[name] = json.loads(done.stdout)
        assert done.returncode == (0 if said[name]["gate"]["exit_code"] == 0 else 1), done.stderr[-2000:]
    assert said["killed"]["gate"] == said["straight"]["gate"]


def test_a_missing_video_fails_its_questions_only(checkpoint: Path, tmp_path: Path) -> None:
    home = build_twins(tmp_path / "twins", seed=1, size="smoke").hf_home
    gone = sorted((home / "egoschema/videos").glob("*.mp4"))[0]
    torn = sorted((home / "nextqa/NExTVideo").glob("*.mp4"))[0]
    gone.unlink()
    torn.write_bytes(torn.read_bytes()[:300])
    assert evaluate(checkpoint, home, tmp_path / "out", "--benchmarks", "egoschema,nextqa").returncode == 0
    over = evaluate(checkpoint, home, tmp_path / "out", "--benchmarks", "egoschema,nextqa", "--fail-over", "0%")
    assert over.returncode == 5
    assert "questions failed, more than --fail-over 0%" in over.stderr
    found = read_evaluations(tmp_path / "out")
    for name, video in (("egoschema", gone), ("nextqa", torn)):
        failed = [r for r in found[name].records if r.status == "failed"]
        assert {r.video_id for r in failed} == {video.stem}
        assert all(r.strict == 0 and r.frames == 0 and r.error for r in failed)
        assert found[name].score.n == found[name].score.n_expected


def test_usage_errors(checkpoint: Path, twins: TwinSet, tmp_path: Path) -> None:
    assert evaluate(checkpoint, twins.hf_home, tmp_path, "--benchmarks", "mmlu").returncode == 2
    absent = evaluate(checkpoint, tmp_path / "empty", tmp_path)
    assert absent.returncode == 5
    assert "prepare tempcompass" in absent.stderr
    no_model = evaluate(tmp_path / "none", twins.hf_home, tmp_path)
    assert no_model.returncode == 2
    assert "Traceback" not in no_model.stderr + absent.stderr


THINKER = """
import sys
from pathlib import Path
from dataclasses import replace
from harness.run.evaluate import evaluate
from savi.engine.video_lm import VideoLM
lm = VideoLM.from_pretrained(sys.argv[1])
ask = lm.ask
lm.ask = lambda *a, **k: [replace(r, text="<think>Option B does not fit, so I go with A.</think>\\n\\nA") for r in ask(*a, **k)]
evaluate(lm, benchmarks=["egoschema", "perceptiontest"], hf_home=Path(sys.argv[2]), out=Path(sys.argv[3]), num_frames=2, scale="micro")
"""


def test_reasoning_is_removed_as_by_lmms_evals_command_line(checkpoint: Path, twins: TwinSet, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", THINKER, str(checkpoint), str(twins.hf_home), str(tmp_path)],
        capture_output=True, text=True, env=environment(twins.hf_home), cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for e in read_evaluations(tmp_path).values():
        assert {r.answer for r in e.records} == {"A"}
        assert all(r.raw is not None and r.raw.startswith("<think>") for r in e.records)
        assert {(r.parsed, r.status) for r in e.records} == {("A", "ok")}
        share = 100 * sum(r.target == "A" for r in e.records) / len(e.records)
        assert (e.score.upstream_pct, e.score.strict_pct) == (pytest.approx(share), pytest.approx(share))
        assert "<think>" in str(e.score.provenance.reading["reasoning_tags"])
