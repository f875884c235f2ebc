"""What the README says can be typed, and what it says exists does. Whole runs of its two commands are `tox -e paper` and `.ci/run`."""

from __future__ import annotations

import configparser
import importlib
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement
from packaging.version import Version

from reproduce.scale import load_scale, scale_names

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULE_COMMANDS = sorted(set(re.findall(r"python -m ((?:savi|benchmarks|harness|reproduce)[^`\n#|&]*)", README)))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def options_of(package: str, command: str) -> set[str]:
    """The option names of a subcommand."""
    app = importlib.import_module(f"{package}.__main__").app
    group = typer.main.get_command(app)
    commands = getattr(group, "commands", {})
    assert command in commands, f"python -m {package} has no command {command!r}; it has {sorted(commands)}"
    return {name for parameter in commands[command].params for name in (*parameter.opts, *parameter.secondary_opts)}


def test_the_two_commands_stand_in_it() -> None:
    assert "pip install -e . && python -m reproduce paper " in README
    assert "pip install tox && tox " in README


def test_ci_runs_the_readmes_test_command() -> None:
    lines = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert "pip install tox && tox" in lines
    assert "set -eu" in lines
    assert "exec </dev/null" in lines


@pytest.mark.parametrize("line", MODULE_COMMANDS)
def test_every_command_exists_with_its_options(line: str) -> None:
    words = shlex.split(line)
    options = options_of(words[0], words[1])
    for word in words[2:]:
        if word.startswith("-"):
            assert word.split("=")[0] in options, f"{word} is no option of {words[0]} {words[1]}"


def test_the_example_question_is_answered_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its two lines, typed in an empty folder: the clip is made, and the shipped model's answer is the truth of the scene."""
    import transformers  # noqa: F401 - its log handler keeps the stderr of the moment it is imported, which must outlive this test
    from typer.testing import CliRunner

    from benchmarks.micro.pretrain.wording import SPECIAL, vocabulary
    from benchmarks.micro.world.videos import scene_rng
    from benchmarks.micro.world.world import make_scene

    make, ask = re.findall(r"^    python -m ((?:benchmarks micro --build-videos|savi ask) .*)$", README, flags=re.MULTILINE)
    said = re.search(r"^answers `([^`]+)`, which is right", README, flags=re.MULTILINE)
    assert said is not None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    answers = []
    for line in (make, ask):
        package, *words = shlex.split(line)
        result = CliRunner().invoke(importlib.import_module(f"{package}.__main__").app, words)
        assert result.exit_code == 0, result.output
        answers.append(result.stdout.strip())
    assert answers[1] == said[1]
    first = min(make_scene(scene_rng(1, 7, "unlabelled")).things, key=lambda thing: thing.first)
    assert f"C {first.color}" in ask
    assert said[1] == f"{first.color} C"
    assert f"knows the {len(vocabulary()) - len(SPECIAL)} words" in README


def test_every_command_of_reproduce_is_listed() -> None:
    app = importlib.import_module("reproduce.__main__").app
    for name in getattr(typer.main.get_command(app), "commands", {}):
        assert f"python -m reproduce {name}" in README


def test_scales_and_options_named_outside_commands_exist() -> None:
    rows = re.findall(r"^\| ((?:`\w+` ?)+)\|([^|]*)\|([^|]*)\|$", README, flags=re.MULTILINE)
    table = [([load_scale(name) for name in re.findall(r"`(\w+)`", names)], model, needs) for names, model, needs in rows]
    assert [s.name for scales, _, _ in table for s in scales] == scale_names()
    for scales, model, needs in table:
        gpu = [f"{s.machine.gpu_gb.value:.0f}" for s in scales]
        assert all(s.data == "micro" for s in scales) or f"{gpu[0]} to {gpu[-1]} GB" in needs
        assert {s.data == "real" and s.published is None for s in scales} == {"not in the paper" in model}
    paper = options_of("reproduce", "paper")
    for name in ("--scale", "--videos", "--offline", "--control"):
        assert name in README
        assert name in paper


def test_tox_environments_named_exist() -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    for name in re.findall(r"tox -e (\w+)", README):
        assert f"testenv:{name}" in tox, name
    assert {e.strip() for e in tox["tox"]["env_list"].split(",")} == {"lint", "tests"}


def test_paths_named_exist() -> None:
    for path in ("constraints.txt", "reproduce/scales", "results/paper", "LICENSE", "CHANGELOG.md"):
        assert (ROOT / path).exists(), path
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "END OF TERMS AND CONDITIONS" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_constraints_lie_in_the_declared_ranges() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            assert version, f"{line!r} pins nothing"
            assert "@" not in line
            assert "+" not in version, f"{line!r}: a local version is not to be had everywhere"
            pins[name.lower().replace("_", "-")] = Version(version)
    declared = [Requirement(r) for r in PYPROJECT["project"]["dependencies"]]
    for requirement in declared:
        pin = pins.get(requirement.name.lower().replace("_", "-"))
        assert pin is not None, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(pin), f"{requirement} does not allow the tested {pin}"


def test_every_third_party_import_is_declared() -> None:
    import ast
    import sys

    declared = PYPROJECT["project"]["dependencies"] + PYPROJECT["project"]["optional-dependencies"]["torchcodec"]
    known = {r.lower().replace("-", "_") for r in (Requirement(d).name for d in declared)}
    known |= {"yaml", "pil", "savi", "benchmarks", "harness", "reproduce"}
    comes_with = {"huggingface_hub", "tokenizers", "tqdm", "packaging"}  # transformers
    comes_with |= {"nltk", "loguru", "cv2"}  # lmms_eval
    comes_with |= {"pyarrow", "psutil", "click", "google", "markupsafe", "pydantic_core"}  # datasets, accelerate, typer, sentencepiece, ...
    found: dict[str, str] = {}
    for package in ("savi", "benchmarks", "harness", "reproduce"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    names = [node.module]
                for name in names:
                    found[name.split(".")[0]] = f"{path.name}:{node.lineno}"
    unknown = {
        n: where for n, where in found.items() if n not in sys.stdlib_module_names and n.lower() not in known and n not in comes_with
    }
    assert unknown == {}


def test_data_files_are_packaged() -> None:
    data = PYPROJECT["tool"]["setuptools"]["package-data"]
    for folder, patterns in (("reproduce/scales", data["reproduce.scales"]), ("results/paper", data["results.paper"])):
        covered = {p for pattern in patterns for p in (ROOT / folder).glob(pattern)}
        left = {p for p in (ROOT / folder).iterdir() if p.is_file() and p.suffix != ".md"} - covered
        assert not left, f"{left} would be missing from an installed copy"
    assert "base/*" in data["benchmarks.micro"]
    assert data["harness.report.templates"] == ["*"]
