"""One iteration from checkpoint to checkpoint."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from savi.base.errors import ResumeError
from savi.base.files import FailureLog
from savi.engine.sampling import GenerationSettings
from savi.engine.video_lm import VideoLM
from savi.iterate import Base, IterationResult, run_iteration, train_stage
from savi.loop.journal import journal_path
from savi.loop.preferences import read_pairs, write_pairs
from savi.loop.propose import AlignSettings, propose
from savi.training.settings import DPOSettings
from tests.savi.scripted import FRAMES, random_pairs, write_clips
from tests.savi.tiny import tiny_checkpoint

ROOT = Path(__file__).parents[2]
SHORT = GenerationSettings(max_new_tokens=6, temperature=1.0)
ALIGN = AlignSettings(num_frames=FRAMES, prompts="micro", chunk_videos=2, ask=SHORT, answer=SHORT, critique=SHORT, revise=SHORT)
DPO = DPOSettings(learning_rate=1e-3, epochs=2, pairs_per_step=4, logging_steps=2)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_clips(tmp_path_factory.mktemp("clips"), 12)


def prepared(tmp_path: Path, clips: list[Path], base: Path) -> Path:
    """An iteration's folder whose proposing stage is finished, with pairs a tiny random model could not have made."""
    out = tmp_path / "iter-1"
    lm = VideoLM.from_pretrained(base, device="cpu")
    list(propose(lm, clips, ALIGN, out=out / "pairs.jsonl"))
    write_pairs(out / "pairs.jsonl", random_pairs(clips))
    journal = journal_path(out / "pairs.jsonl")
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    rows[-2]["pairs_bytes"] = (out / "pairs.jsonl").stat().st_size
    journal.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("base") / "model", layers=1)


def test_an_iteration_and_again(clips: list[Path], base: Path, tmp_path: Path) -> None:
    """A real checkpoint asks, finds nothing readable (it is random), and the model is passed on with the failure listed; again: nothing
    is done."""
    seen: list[tuple[str, int, int]] = []
    result = run_iteration(base, clips[:3], tmp_path / "iter-1", ALIGN, DPO, progress=lambda *step: seen.append(step))
    assert isinstance(result, IterationResult)
    assert not result.training.trained
    assert result.counts.questions == 6
    assert result.counts.pairs == 0
    assert seen[-1] == ("propose", 3, 3)
    assert set(result.seconds) == {"propose", "train"}
    assert "no pair to train on" in (tmp_path / "iter-1" / "failures.jsonl").read_text()
    assert (result.training.checkpoint / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    before = files(tmp_path)
    again = run_iteration(base, clips[:3], tmp_path / "iter-1", ALIGN, DPO)
    assert again.seconds == {}
    assert replace(again, seconds=result.seconds) == result
    assert files(tmp_path) == before


def test_training_and_the_next_iteration(clips: list[Path], base: Path, tmp_path: Path) -> None:
    out = prepared(tmp_path, clips[:3], base)
    result = run_iteration(base, clips[:3], out, ALIGN, DPO)
    assert result.training.trained
    assert result.training.pairs_used == 6
    assert result.training.steps == 4
    assert set(result.seconds) == {"train"}
    assert (result.training.checkpoint / "model.safetensors").read_bytes() != (base / "model.safetensors").read_bytes()
    before = files(out)
    assert run_iteration(base, clips[:3], out, ALIGN, DPO).seconds == {}
    assert files(out) == before
    following = run_iteration(result.training.checkpoint, clips[:2], tmp_path / "iter-2", ALIGN, DPO)
    assert following.counts.videos == 2
    with pytest.raises(ResumeError, match="another model"):
        run_iteration(result.training.checkpoint, clips[:3], out, ALIGN, DPO)
    with pytest.raises(ResumeError, match="another videos"):
        run_iteration(base, clips[:2], out, ALIGN, DPO)
    with pytest.raises(ResumeError, match="other settings"):
        run_iteration(base, clips[:3], out, ALIGN, DPO.model_copy(update={"beta": 0.9}))


def test_replayed_critiques_are_trained_on_and_need_an_nll_term(clips: list[Path], base: Path, tmp_path: Path) -> None:
    out = prepared(tmp_path, clips[:3], base)
    pairs = [
        replace(pair, critique=f"{pair.chosen} {pair.chosen}", meta={**pair.meta, "prompts": "micro"}) for pair in random_pairs(clips)[:6]
    ]
    write_pairs(out / "pairs.jsonl", pairs)
    failures = FailureLog(tmp_path / "failures.jsonl")
    with pytest.raises(ValueError, match="rpo_alpha"):
        train_stage(Base(base), out, DPO, seed=0, failures=failures, replay_critiques=1.0)
    with_nll = DPO.model_copy(update={"rpo_alpha": 1.0})
    result, ran = train_stage(Base(base), out, with_nll, seed=0, failures=failures, replay_critiques=1.0)
    assert ran
    assert result.pairs_used == 2 * len(pairs)
    with pytest.raises(ResumeError, match="another pairs"):
        train_stage(Base(base), out, with_nll, seed=0, failures=failures)


def test_a_model_that_is_to_stay_as_it_is_is_copied_and_no_failure(clips: list[Path], base: Path, tmp_path: Path) -> None:
    out, failures = prepared(tmp_path, clips[:3], base), FailureLog(tmp_path / "failures.jsonl")
    result, ran = train_stage(Base(base), out, DPO, seed=0, failures=failures, keep="stopped early")
    assert ran
    assert not result.trained
    assert (out / "model" / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    assert not (tmp_path / "failures.jsonl").exists() or not (tmp_path / "failures.jsonl").read_text()
    assert train_stage(Base(base), out, DPO, seed=0, failures=failures, keep="stopped early") == (result, False)


def test_a_damaged_model_is_trained_again(clips: list[Path], base: Path, tmp_path: Path) -> None:
    """A file of model/ that is no longer what was written: the same command makes the same model, and nothing is lost meanwhile."""
    out = prepared(tmp_path, clips[:3], base)
    run_iteration(base, clips[:3], out, ALIGN, DPO)
    before = files(out)
    for name in ("tokenizer.json", "model.safetensors", "config.json"):
        (out / "model" / name).write_bytes(b"")
        assert set(run_iteration(base, clips[:3], out, ALIGN, DPO).seconds) == {"train"}, name
        assert files(out) == before


def test_training_alone_reads_the_pairs_and_asks_no_model(clips: list[Path], base: Path, tmp_path: Path) -> None:
    """The stages part company: training needs neither the videos' list nor the proposing settings, and refuses half a pairs file."""
    out = prepared(tmp_path, clips[:3], base)
    failures = FailureLog(out / "failures.jsonl")
    result, ran = train_stage(Base(base), out, DPO, seed=0, failures=failures)
    assert ran and result.trained and result.pairs_used == 6
    assert train_stage(Base(base), out, DPO, seed=0, failures=failures) == (result, False)
    journal = journal_path(out / "pairs.jsonl")
    journal.write_text("".join(line + "\n" for line in journal.read_text().splitlines()[:-1]))
    with pytest.raises(ResumeError, match="not finished"):
        train_stage(Base(base), out, DPO, seed=0, failures=failures)


def test_controls_in_an_iteration(clips: list[Path], base: Path, tmp_path: Path) -> None:
    models = {}
    for control in ("none", "reversed", "sft"):
        out = prepared(tmp_path / control, clips[:3], base)
        result = run_iteration(base, clips[:3], out, ALIGN, DPO, control)  # type: ignore[arg-type]
        models[control] = (result.training.checkpoint / "model.safetensors").read_bytes()
        log = [json.loads(line) for line in (out / "train" / "log.jsonl").read_text().splitlines()]
        assert ("rewards/margins" in log[-1]) == (control != "sft")
        if control == "reversed":
            pairs, trained = read_pairs(out / "pairs.jsonl"), read_pairs(out / "train_pairs.jsonl")
            assert [pair.chosen for pair in trained] == [pair.rejected for pair in pairs]
    assert len(set(models.values())) == 3


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, os.getcwd())
from savi.iterate import run_iteration
from tests.savi.test_iterate import ALIGN, DPO
base, out, *clips = sys.argv[1:]
def progress(stage, done, total):
    if stage == "train" and done == 3:
        os.kill(os.getpid(), signal.SIGKILL)
run_iteration(base, [Path(c) for c in clips], out, ALIGN, DPO, progress=progress)
"""


def test_killed_in_training_and_run_again(clips: list[Path], base: Path, tmp_path: Path) -> None:
    """Without checkpoints on the way training starts over, and ends in the same bytes."""
    straight = prepared(tmp_path / "straight", clips[:3], base)
    run_iteration(base, clips[:3], straight, ALIGN, DPO)
    killed = prepared(tmp_path / "killed", clips[:3], base)
    arguments = [sys.executable, "-c", KILLED, str(base), str(killed), *map(str, clips[:3])]
    assert subprocess.run(arguments, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert not (killed / "model").exists()
    run_iteration(base, clips[:3], killed, ALIGN, DPO)
    wanted, found = files(straight), files(killed)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if wanted[name] != found[name]] == []


def test_the_loop_cannot_be_given_right_answers() -> None:
    """Nothing in the loop's modules names a benchmark or a truth, and none of its functions takes one."""
    import ast

    for path in [*(ROOT / "savi" / "loop").glob("*.py"), *(ROOT / "savi" / "training").glob("*.py")]:
        tree = ast.parse(path.read_text())
        names = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not any(str(name).split(".")[0] in ("benchmarks", "harness", "reproduce") for name in imported)
        assert not names & {"truth", "label", "labels", "gold", "target_answer", "scene", "scenes", "correct"}
