"""What the README and docs/ say can be typed and say exists. Whole runs of the README's two commands are `tox -e paper` and `.ci/run`."""

from __future__ import annotations

import configparser
import importlib
import json
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
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "docs/ci").glob("*")),
    *sorted((ROOT / "docs/cluster").glob("*.s*")),
    *sorted((ROOT / "results").rglob("README.md")),
]
PACKAGES = ("savi", "benchmarks", "harness", "reproduce")
RELEASE_TEXT = (ROOT / "docs/release.md").read_text(encoding="utf-8")
RELEASE = {
    option
    for cell, code in re.findall(r"^\| ([^|]*) \||[Tt]he release[^`|]*`([^`]*)`", RELEASE_TEXT, flags=re.MULTILINE)
    for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", cell + code)
}
"""What the release calls its options, by docs/release.md: first column, and commands that it says are the release's."""
OF_OTHERS = {"--model", "--model_args", "--tasks", "--log_samples", "--nproc-per-node", "--pip-args", "--torch-backend", *RELEASE}
"""Options of lmms-eval, torchrun, pipx, uv and the release that the documents name."""
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def options_of(package: str, command: str) -> set[str]:
    """The option names of a subcommand."""
    app = importlib.import_module(f"{package}.__main__").app
    group = typer.main.get_command(app)
    commands = getattr(group, "commands", {})
    assert command in commands, f"python -m {package} has no command {command!r}; it has {sorted(commands)}"
    return {name for parameter in commands[command].params for name in (*parameter.opts, *parameter.secondary_opts)}


def commands_in(text: str) -> list[tuple[str, str, list[str]]]:
    """(package, command, options) of all commands in a document; one may go on in an inline code's or a block's next line."""
    text = re.sub(r"`[^`]*`", lambda code: code[0].replace("\n", " "), text)
    text = re.sub(r"\n {8,}", " ", text)
    found = re.findall(rf"(?<![\w-])-m ({'|'.join(PACKAGES)}) ([\w-]+)([^`\n#']*)", text)
    return [(package, command, re.findall(r"(?<![\w-])--?[a-z][\w-]*", rest)) for package, command, rest in found]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_options_and_links_of_a_document_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for package, command, options in commands_in(text):
        unknown = set(options) - options_of(package, command)
        assert not unknown, f"{unknown} are no options of {package} {command}"
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        assert "://" in link or (path.parent / link).exists(), link
    for named in re.findall(
        r"`((?:savi|benchmarks|harness|reproduce|docs|results|tests)/[\w./-]*(?:\.(?:py|md|csv|json|yml|yaml|svg)|/))`", text
    ):
        assert (ROOT / named).exists() or "NAME" in named, named


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if p.name != "CHANGELOG.md"], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_an_option_named_alone_is_one_of_some_command(path: Path) -> None:
    known = set(OF_OTHERS)
    for package in PACKAGES:
        group = typer.main.get_command(importlib.import_module(f"{package}.__main__").app)
        for command in getattr(group, "commands", {}):
            known |= options_of(package, command)
    for code in re.findall(r"`([^`\n]+)`", path.read_text(encoding="utf-8")):
        if code.startswith("--") or " --" in code:
            assert {word.split("=")[0] for word in re.findall(r"(?<![\w-])--[a-z][\w-]*", code)} <= known, code


def test_an_unknown_option_in_a_second_line_is_found() -> None:
    text = "    python -m harness gate A --against B\n              [--gone]\n\nand `python -m savi ask V\nQ --neither` too"
    assert commands_in(text) == [("harness", "gate", ["--against", "--gone"]), ("savi", "ask", ["--neither"])]


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


def test_what_the_study_found_is_what_its_summary_says() -> None:
    found = json.loads((ROOT / "results/study/summary.json").read_text(encoding="utf-8"))
    assert found["claims"]
    for claim in found["claims"]:
        e = claim["effect"]
        said = "–" if e is None else f"{e['points']:+.1f} [{e['low']:+.1f}, {e['high']:+.1f}]"
        assert f"| {claim['claim']} | {said} | {claim['verdict']} |" in README
    gain = found["gains"]["dpo"][-1]
    assert f"**{gain['points']:+.1f} points [{gain['low']:+.1f}, {gain['high']:+.1f}]** after four iterations" in README
    assert f"median by score, as the freezing file rules ({found['ships']})" in README


def test_the_shipped_base_is_the_one_that_the_study_ships() -> None:
    ships = json.loads((ROOT / "results/study/summary.json").read_text(encoding="utf-8"))["ships"]
    made = json.loads((ROOT / "benchmarks/micro/base/training.json").read_text(encoding="utf-8"))
    assert f"recipe-{made['recipe']['seed']}" == ships


def test_the_example_question_is_answered_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its two lines, typed in an empty folder: the clip is made, and what the shipped model's critique sees is the truth of the scene."""
    import transformers  # noqa: F401 - its log handler keeps the stderr of the moment it is imported, which must outlive this test
    from typer.testing import CliRunner

    from benchmarks.micro.pretrain.recipe import BASE_DIR
    from benchmarks.micro.pretrain.wording import SPECIAL, THOUGHT
    from benchmarks.micro.world.videos import scene_rng
    from benchmarks.micro.world.world import make_scene

    make, ask = re.findall(r"^    python -m ((?:benchmarks micro --build-videos|savi ask) .*)$", README, flags=re.MULTILINE)
    said = re.search(r"^answers `(\w)`, which is wrong. .* it says `([^`]+)`, which is right", README, flags=re.MULTILINE)
    assert said is not None
    monkeypatch.chdir(tmp_path)
    answers = []
    for line in (make, ask):
        package, *words = shlex.split(line)
        result = CliRunner().invoke(importlib.import_module(f"{package}.__main__").app, words)
        assert result.exit_code == 0, result.output
        answers.append(result.stdout.strip())
    replies = [line for line in answers[1].splitlines() if line and not line.startswith(">")]
    assert replies == [said[1], said[2]]
    things = sorted(make_scene(scene_rng(1, 7, "unlabelled")).things, key=lambda thing: thing.first)
    assert f"C {things[0].color}" in ask
    assert said[1] != "C"
    seen = " ".join(f"{thing.color} comes f{thing.first + 1}" for thing in things)
    assert said[2] == f"{seen} so {things[0].color} C wrong"
    shipped = json.loads((BASE_DIR / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert f"knows the {len(shipped.keys() - {*SPECIAL, THOUGHT})} words" in README


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

    extras = PYPROJECT["project"]["optional-dependencies"]
    declared = PYPROJECT["project"]["dependencies"] + extras["torchcodec"] + extras["gpu"]
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
    assert data["harness.report.templates"] == ["*", "js/*"]
