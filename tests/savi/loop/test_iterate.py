"""One iteration from checkpoint to checkpoint, and the controls."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from savi.engine.sampling import GenerationSettings
from savi.engine.video_lm import VideoLM
from savi.loop.iterate import IterationResult, StageError, run_iteration, transform_pairs
from savi.loop.preferences import PreferencePair, read_pairs, write_pairs
from savi.loop.prompts import Question, choice, parse_question, same_answer
from savi.loop.propose import AlignSettings, ResumeError, journal_path, propose, read_unchanged
from savi.training.settings import DPOSettings
from tests.savi.scripted import FRAMES, ScriptedLM, micro_reply, random_pairs, write_clips
from tests.savi.tiny import tiny_checkpoint

ROOT = Path(__file__).parents[3]
SHORT = GenerationSettings(max_new_tokens=6, temperature=1.0)
ALIGN = AlignSettings(num_frames=FRAMES, prompts="micro", chunk_videos=2, ask=SHORT, answer=SHORT, critique=SHORT, revise=SHORT)
DPO = DPOSettings(learning_rate=1e-3, epochs=2, pairs_per_step=4, logging_steps=2)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_clips(tmp_path_factory.mktemp("clips"), 12)


@pytest.fixture(scope="module")
def made(clips: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Pairs and unchanged questions of a scripted micro model."""
    folder = tmp_path_factory.mktemp("made")
    settings = replace(ALIGN, questions_per_kind=3)
    pairs = list(propose(ScriptedLM(micro_reply), clips, settings, out=folder / "pairs.jsonl"))  # type: ignore[arg-type]
    return pairs, read_unchanged(folder / "dropped.jsonl")


# controls


def question_of(pair: PreferencePair) -> Question:
    question = parse_question(pair.question)
    assert isinstance(question, Question)
    return question


def test_none_and_sft_leave_the_pairs_alone(made: tuple[list[PreferencePair], list[PreferencePair]]) -> None:
    assert transform_pairs(made[0], "none") == made[0]
    assert transform_pairs(made[0], "sft") == made[0]
    with pytest.raises(ValueError, match="there are none, reversed, blind, sft"):
        transform_pairs(made[0], "shuffled")  # type: ignore[arg-type]


def test_reversed(made: tuple[list[PreferencePair], list[PreferencePair]]) -> None:
    for before, after in zip(made[0], transform_pairs(made[0], "reversed"), strict=True):
        assert (after.chosen, after.rejected) == (before.rejected, before.chosen)
        assert (after.pair_id, after.question, after.initial, after.critique) == (
            before.pair_id,
            before.question,
            before.initial,
            before.critique,
        )
        assert after.meta["control"] == "reversed"


def test_blind_pairs_are_answers_but_not_the_critiques(made: tuple[list[PreferencePair], list[PreferencePair]]) -> None:
    pairs, unchanged = made
    blind = transform_pairs(pairs, "blind", seed=1, unchanged=unchanged)
    assert len(blind) == len(pairs) > 20
    assert len({pair.pair_id for pair in blind}) == len(blind)
    for pair in blind:
        question = question_of(pair)
        assert pair.rejected == pair.initial
        assert not same_answer(pair.chosen, pair.rejected)
        if question.options:
            assert choice(pair.chosen, question) in set(question.letters) - {choice(pair.initial, question)}
        else:
            assert pair.chosen in {"yes", "no"}
    drawn = {pair.pair_id for pair in blind} & {pair.pair_id for pair in unchanged}
    assert drawn, "questions the critique left alone are drawn too, or the choice of questions would hand on its verdict"
    assert transform_pairs(list(reversed(pairs)), "blind", seed=1, unchanged=unchanged) == blind
    assert transform_pairs(pairs, "blind", seed=2, unchanged=unchanged) != blind


def test_blind_keeps_as_many_answers_as_the_critique_did(made: tuple[list[PreferencePair], list[PreferencePair]]) -> None:
    pairs, unchanged = made
    kept = [replace(pair, rejected=pair.chosen) for pair in unchanged]
    blind = transform_pairs([*pairs, *kept], "blind", seed=1, unchanged=[])
    assert len({pair.pair_id for pair in blind}) == len(blind) == len(pairs) + len(kept)
    assert sum(pair.chosen != pair.rejected for pair in blind) == len(pairs)
    assert all(pair.chosen == pair.initial for pair in blind if pair.chosen == pair.rejected)
    assert {pair.pair_id for pair in blind if pair.chosen != pair.rejected} != {pair.pair_id for pair in pairs}


def test_blind_does_not_read_its_own_critique(made: tuple[list[PreferencePair], list[PreferencePair]]) -> None:
    """With critique and revision of the choice questions replaced by anything, their blind pairs stay the same."""
    pairs, unchanged = made

    def cover(pair: PreferencePair) -> PreferencePair:
        return replace(pair, critique="?", chosen="whatever") if question_of(pair).options else replace(pair, critique="?")

    before = transform_pairs(pairs, "blind", seed=3, unchanged=unchanged)
    after = transform_pairs([cover(pair) for pair in pairs], "blind", seed=3, unchanged=[cover(pair) for pair in unchanged])
    assert [(pair.pair_id, pair.chosen) for pair in before] == [(pair.pair_id, pair.chosen) for pair in after]


def test_blind_options_are_spread(made: tuple[list[PreferencePair], list[PreferencePair]]) -> None:
    letters = Counter(
        pair.chosen
        for seed in range(5)
        for pair in transform_pairs(made[0], "blind", seed=seed, unchanged=made[1])
        if question_of(pair).options
    )
    assert set(letters) == {"A", "B", "C"}
    assert max(letters.values()) < 0.6 * sum(letters.values())


def test_blind_needs_the_unchanged_questions(made: tuple[list[PreferencePair], list[PreferencePair]]) -> None:
    with pytest.raises(ValueError, match="unchanged"):
        transform_pairs(made[0], "blind")


def test_blind_keeps_the_form_of_the_answer(clips: list[Path]) -> None:
    (pair,) = random_pairs(clips[:1], 1)
    asked = replace(pair, question="what is it ? A red cup B blue cup", chosen="what the critique made of it")
    for initial, expected in (("A", "B"), ("(A) red cup.", "(B) blue cup."), ("the red cup falls", "the blue cup falls"), ("B", "A")):
        (blind,) = transform_pairs([replace(asked, initial=initial, rejected=initial)], "blind", unchanged=[])
        assert blind.chosen == expected


# the iteration


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
    assert not result.trained
    assert result.counts.questions == 6
    assert result.counts.pairs == 0
    assert seen[-1] == ("propose", 3, 3)
    assert set(result.seconds) == {"propose", "train"}
    assert "no pair to train on" in (tmp_path / "iter-1" / "failures.jsonl").read_text()
    assert (result.model / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    before = files(tmp_path)
    again = run_iteration(base, clips[:3], tmp_path / "iter-1", ALIGN, DPO)
    assert again.seconds == {}
    assert replace(again, seconds=result.seconds) == result
    assert files(tmp_path) == before


def test_training_and_the_next_iteration(clips: list[Path], base: Path, tmp_path: Path) -> None:
    out = prepared(tmp_path, clips[:3], base)
    result = run_iteration(base, clips[:3], out, ALIGN, DPO)
    assert result.trained
    assert result.pairs_used == 6
    assert result.steps == 4
    assert set(result.seconds) == {"train"}
    assert (result.model / "model.safetensors").read_bytes() != (base / "model.safetensors").read_bytes()
    before = files(out)
    assert run_iteration(base, clips[:3], out, ALIGN, DPO).seconds == {}
    assert files(out) == before
    following = run_iteration(result.model, clips[:2], tmp_path / "iter-2", ALIGN, DPO)
    assert following.counts.videos == 2
    with pytest.raises(ResumeError, match="another model"):
        run_iteration(result.model, clips[:3], out, ALIGN, DPO)
    with pytest.raises(ResumeError, match="another videos"):
        run_iteration(base, clips[:2], out, ALIGN, DPO)
    with pytest.raises(StageError, match="other settings"):
        run_iteration(base, clips[:3], out, ALIGN, DPO.model_copy(update={"beta": 0.9}))


def test_controls_in_an_iteration(clips: list[Path], base: Path, tmp_path: Path) -> None:
    models = {}
    for control in ("none", "reversed", "sft"):
        out = prepared(tmp_path / control, clips[:3], base)
        result = run_iteration(base, clips[:3], out, ALIGN, DPO, control)  # type: ignore[arg-type]
        models[control] = (result.model / "model.safetensors").read_bytes()
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
from savi.loop.iterate import run_iteration
from tests.savi.loop.test_iterate import ALIGN, DPO
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
