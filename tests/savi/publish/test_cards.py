"""Cards: what they say, that huggingface_hub reads them, and that writing one anew makes no finished work start over."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import DatasetCard, ModelCard

from savi.base.stamp import CARD_FILE
from savi.cards.model_card import CardScore, Lineage, Trained, lineage, write_model_card
from savi.conversion.checkpoint import convert, weights_fingerprint
from savi.engine.video_lm import VideoLM
from savi.loop.preferences import write_pairs
from savi.publish.pairs_card import pairs_card_path, write_pairs_card
from savi.training.settings import DPOSettings
from savi.training.trainer import train
from tests.savi.cli.test_cli import run
from tests.savi.internvl_chat import qwen2_config, write_checkpoint
from tests.savi.scripted import random_pairs, write_clips
from tests.savi.tiny import tiny_checkpoint

SETTINGS = DPOSettings(num_frames=4, learning_rate=1e-3)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a card of its own."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("base") / "tiny")
    (folder / CARD_FILE).write_text("---\nlicense: mit\nbase_model: someone/Tiny-1B\n---\n# Theirs\n")
    return folder


def test_a_trained_model_says_where_it_comes_from(base: Path, tmp_path: Path) -> None:
    pairs = random_pairs(write_clips(tmp_path, 2))
    result = train(VideoLM.from_pretrained(base), pairs, SETTINGS, tmp_path / "run")
    card = ModelCard.load(result.checkpoint / CARD_FILE)
    assert (card.data.license, card.data.base_model, card.data.library_name) == ("mit", "someone/Tiny-1B", "transformers")
    assert f"on {result.pairs_used} preference pairs" in card.text
    assert weights_fingerprint(base)[:16] in card.text
    rows = card.text.splitlines()
    assert "| learning_rate | 0.001 | set |" in rows
    assert "| beta | 0.1 | default |" in rows
    assert "videosavi-harness " in card.text
    assert str(tmp_path) not in card.text and str(base) not in card.text
    assert lineage(result.checkpoint) == lineage(base) == Lineage("someone/Tiny-1B", {"license": "mit"})


def test_a_card_written_anew_makes_nothing_start_over(base: Path, tmp_path: Path) -> None:
    pairs = random_pairs(write_clips(tmp_path, 2))
    first = train(VideoLM.from_pretrained(base), pairs, SETTINGS, tmp_path / "run")
    before, fingerprint = (first.checkpoint / "model.safetensors").stat().st_mtime_ns, weights_fingerprint(first.checkpoint)
    score = CardScore("lmms-lab/TempCompass", "TempCompass", 51.234, (48.0, 54.5), 1200)
    made = Trained(4, 0, 1, {"training.beta": (0.1, "paper | table 1")}, scores=[score])
    write_model_card(first.checkpoint, "Tiny", lineage(base), made)
    assert train(VideoLM.from_pretrained(base), pairs, SETTINGS, tmp_path / "run") == first
    (first.checkpoint / CARD_FILE).unlink()
    assert train(VideoLM.from_pretrained(base), pairs, SETTINGS, tmp_path / "run") == first
    assert (first.checkpoint / "model.safetensors").stat().st_mtime_ns == before
    assert weights_fingerprint(first.checkpoint) == fingerprint


def test_scores_are_in_model_index(tmp_path: Path) -> None:
    scores = [CardScore("lmms-lab/TempCompass", "TempCompass", 51.234, (48.0, 54.5), 1200), CardScore("synthetic", "Twin", 100.0, None, 3)]
    write_model_card(tmp_path, "Tiny | x", Lineage(), Trained(4, 1, 2, {"a": ("x|y", "z")}, scores=scores))
    card = ModelCard.load(tmp_path / CARD_FILE)
    first, second = card.data.eval_results
    assert (first.metric_value, first.metric_args, first.dataset_type) == (
        51.23,
        {"interval_95": [48.0, 54.5], "n": 1200},
        "lmms-lab/TempCompass",
    )
    assert "48.0 to 54.5" in first.metric_name
    assert second.metric_args == {"interval_95": [], "n": 3}
    assert "| a | x\\|y | z |" in card.text
    assert "licence" in card.text and card.data.license is None


def test_a_base_without_a_readable_card_is_no_error(tmp_path: Path) -> None:
    assert lineage(tmp_path) == lineage(None) == Lineage()
    (tmp_path / CARD_FILE).write_text("---\n[: broken\n---\n")
    assert lineage(tmp_path) == Lineage()
    snapshot = tmp_path / "models--OpenGVLab--InternVL2_5-1B" / "snapshots" / "abc"
    assert lineage(snapshot).base == "OpenGVLab/InternVL2_5-1B"


def test_a_converted_model_keeps_the_licence(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--OpenGVLab--Tiny" / "snapshots" / "abc"
    write_checkpoint(snapshot, qwen2_config())
    (snapshot / CARD_FILE).write_text("---\nlicense: apache-2.0\n---\n")
    made = convert(snapshot, tmp_path / "native")
    assert lineage(made) == Lineage("OpenGVLab/Tiny", {"license": "apache-2.0"})
    write_model_card(made, "x", Lineage(), None)
    assert convert(snapshot, tmp_path / "native") == made, "a finished conversion is returned"


def test_pairs_have_a_card(tmp_path: Path) -> None:
    pairs = random_pairs(write_clips(tmp_path, 2))
    path = write_pairs(tmp_path / "pairs.jsonl", pairs)
    write_pairs_card(pairs_card_path(path), pairs, file=path.name, settings={"num_frames": (8, "set")}, counts="2 videos.")
    card = DatasetCard.load(tmp_path / "pairs.card.md")
    assert card.data.configs == [{"config_name": "default", "data_files": "pairs.jsonl"}]
    assert card.data.size_categories == "n<1K"
    assert f"{len(pairs)} preference pairs on 2 videos" in card.text
    assert "| num_frames | 8 | set |" in card.text


def test_savi_pairs_writes_one(base: Path, tmp_path: Path) -> None:
    write_clips(tmp_path / "videos", 2)
    result = run("pairs", tmp_path / "videos", "--model", base, "--prompts", "micro", "--out", tmp_path / "p.jsonl", "--num-frames", 4)
    assert result.exit_code in (0, 1), result.output
    card = DatasetCard.load(tmp_path / "p.card.md")
    assert "someone/Tiny-1B" in card.text and "2 videos (0 broken)" in card.text
    assert "| prompts | micro | set |" in card.text and str(tmp_path) not in card.text


def test_a_run_stopped_before_the_card_writes_it_when_it_goes_on(base: Path, tmp_path: Path) -> None:
    write_clips(tmp_path / "videos", 1)
    align = ("align", tmp_path / "videos", "--model", base, "--prompts", "micro", "--out", tmp_path / "run", "--iterations", 1)
    first = run(*align, "--num-frames", 4)
    card = tmp_path / "run" / "iter-1" / "pairs.card.md"
    before = card.read_bytes()
    card.unlink()
    assert run(*align, "--num-frames", 4).exit_code == first.exit_code
    assert card.read_bytes() == before
