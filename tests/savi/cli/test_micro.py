"""`--model micro`: the shipped model by its name, from any folder, asked in words that it knows."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from setuptools import find_namespace_packages

from savi.base.files import read_jsonl
from savi.base.hub import NoSuchModelError, find_checkpoint
from savi.base.shipped import SHIPPED, named_folder
from savi.cli.common import fitting_prompts
from savi.engine.model_folder import load_tokenizer
from tests.savi.cli.test_cli import ROOT, failed, run
from tests.savi.clips import grey_frames, write_clip

BASE = ROOT / "benchmarks" / "micro" / "base"
SAID = "prompts: micro, as micro does not know the words of videosavi"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", grey_frames(12, width=64, height=64))


def test_the_name_is_the_shipped_folder(tmp_path: Path) -> None:
    assert find_checkpoint("micro").samefile(BASE)
    with pytest.raises(NoSuchModelError, match="no such checkpoint folder"):
        find_checkpoint(Path("micro"))
    (tmp_path / "micro").mkdir()
    assert named_folder("micro").samefile(BASE), "a folder of runs that is called micro is no checkpoint"
    (tmp_path / "micro" / "config.json").write_text("{}")
    assert named_folder("micro").samefile(tmp_path / "micro")


def test_a_name_whose_files_are_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from savi.base import shipped

    monkeypatch.setitem(shipped.SHIPPED, "micro", shipped.Shipped("nowhere_at_all", "base", ""))
    with pytest.raises(NoSuchModelError, match="not installed"):
        find_checkpoint("micro")


def test_its_files_are_package_data() -> None:
    """So that an installed wheel has them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = find_namespace_packages(str(ROOT), include=settings["packages"]["find"]["include"])
    for one in SHIPPED.values():
        assert one.package in packages
        assert f"{one.folder}/*" in settings["package-data"][one.package]


def test_ask_says_what_it_understands(clip: Path) -> None:
    known = run("ask", clip, SHIPPED["micro"].question, "--model", "micro", "-n", 4)
    assert known.exit_code == 0, known.output
    assert known.stdout.strip() and not known.stderr
    other = run("ask", clip, "what does the dog do ?", "--model", "micro", "-n", 4)
    assert "micro does not know the word 'dog'" in other.stderr
    assert "understands these words: " in other.stderr and " triangle " in other.stderr
    assert f"for instance: {SHIPPED['micro'].question}" in other.stderr


def test_prompts_are_those_it_knows(clip: Path, tmp_path: Path) -> None:
    chosen = run("pairs", clip, "--model", "micro", "--out", tmp_path / "a" / "pairs.jsonl", "--questions-per-kind", 1)
    assert chosen.exit_code in (0, 1), chosen.output
    assert chosen.stderr.count(SAID) == 1
    given = run("pairs", clip, "--model", "micro", "--out", tmp_path / "b" / "pairs.jsonl", "--questions-per-kind", 1, "--prompts", "micro")
    assert SAID not in given.stderr
    assert chosen.exit_code == given.exit_code
    both = [(tmp_path / name).read_text() if (tmp_path / name).exists() else "" for name in ("a/pairs.jsonl", "b/pairs.jsonl")]
    assert both[0] == both[1]
    assert all(row["meta"]["prompts"] == "micro" for row in read_jsonl(tmp_path / "a" / "pairs.jsonl"))


def test_an_aligned_micro_model_is_asked_in_its_words_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = load_tokenizer(BASE)
    assert fitting_prompts("aligned/iter-1/model", tokenizer) == "micro"
    assert "aligned/iter-1/model does not know" in capsys.readouterr().err
    assert fitting_prompts("openai:http://localhost/v1#m", None) == "videosavi"
    assert not capsys.readouterr().err


def test_align_chooses_them_before_anything_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import savi.iterate
    from savi.base.errors import UsageError

    asked = []

    def stopped(_base: object, _clips: object, _out: object, settings: object, *_: object, **__: object) -> None:
        asked.append(settings)
        raise UsageError("far enough")

    monkeypatch.setattr(savi.iterate, "run_iteration", stopped)
    write_clip(tmp_path / "clip.mp4", grey_frames(4, width=64, height=64))
    result = run("align", tmp_path / "clip.mp4", "--model", "micro", "--out", tmp_path / "run", "--iterations", 1)
    assert SAID in failed(result, 2)
    assert [one.prompts for one in asked] == ["micro"]


def test_the_harness_takes_the_name(tmp_path: Path) -> None:
    from harness.run.lmms_model import weights_of

    assert weights_of("micro") == weights_of(BASE)
