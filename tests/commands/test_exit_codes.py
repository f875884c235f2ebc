"""Exit codes are the same everywhere: by the source, by the help texts, and by what commands do with what is absent or broken."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from savi.base.errors import EXIT_CODES_TEXT, ExitCode
from tests.commands.walk import PACKAGES, commands

ROOT = Path(__file__).resolve().parents[2]
ABSENT = {
    "savi ask": "absent.mp4 what --model micro",
    "savi pairs": "absent --model micro --out pairs.jsonl",
    "savi train": "absent.jsonl --model micro --out trained",
    "savi align": "absent --model micro --out aligned",
    "savi convert": "./absent converted",
    "savi export": "absent.jsonl --out out.jsonl",
    "savi push": "absent us/model --dry-run",
    "benchmarks check": "absent",
    "benchmarks prepare": "absent",
    "benchmarks doctor": "absent",
    "benchmarks overlap": "--videos absent",
    "benchmarks micro": "--build-twins twins --size absent",
    "harness evaluate": "./absent --out out",
    "harness gate": "absent --against paper",
    "harness diff": "absent absent",
    "harness reference": "absent out.json",
    "harness init-ci": "absent.json --model micro",
    "harness power": "--benchmarks absent",
    "harness check": "micro --against absent --data .",
    "harness simulate": "--benchmarks absent",
    "harness leaderboard": "absent",
    "harness report": "absent",
    "harness view": "absent",
    "harness bundle": "absent --out site",
    "reproduce paper": "--scale absent",
    "reproduce tables": "absent",
    "reproduce audit": "--tables absent",
    "reproduce bases": "--check absent",
    "reproduce study": "--controls absent",
    "reproduce study-table": "absent",
    "reproduce study-figures": "absent",
    "reproduce speed": "--preset absent",
}
"""A command -> arguments that name what is not there: exit code 2."""
NAMES_NOTHING = {"savi families", "benchmarks list", "harness doctor", "harness lmms-eval", "reproduce study-coverage"}
BROKEN = {
    "savi ask": "broken.mp4 what --model micro",
    "savi train": "broken.jsonl --model micro --out trained",
    "savi convert": "./model converted",
    "savi export": "broken.jsonl --out out.jsonl",
    "savi push": "broken.jsonl us/pairs --dry-run",
    "harness evaluate": "./model --data . --out out",
    "harness gate": "run --against run",
    "harness diff": "run run",
    "harness reference": "run out.json",
    "harness init-ci": "reference.json --model micro",
    "harness check": "micro --against run --data .",
    "harness leaderboard": "run",
    "reproduce tables": "run",
    "reproduce audit": "--tables tables",
    "reproduce study-table": "study",
    "reproduce study-figures": "study",
}
"""A command -> arguments that name a broken file: exit code 4."""


def invoke(name: str, arguments: str) -> tuple[int, str]:
    package, command = name.split()
    result = CliRunner(env={"SAVI_MODEL": "", "COLUMNS": "200"}).invoke(
        importlib.import_module(f"{package}.__main__").app, [command, *arguments.split()]
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a broken one of everything."""
    for name in (
        "broken.mp4",
        "broken.jsonl",
        "model/config.json",
        "run/run.json",
        "run/base/eval/egoschema/score.json",
        "reference.json",
        "study/questions.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"half": ')
    (tmp_path / "run/base/eval/egoschema/questions.jsonl").write_text("{}\n")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/manifest.yaml").write_text("title: [\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_is_tried() -> None:
    assert set(ABSENT) | NAMES_NOTHING == set(commands())


@pytest.mark.parametrize("name", sorted(set(commands()) - {"harness lmms-eval"}))
def test_an_unknown_option_is_wrong_use(name: str) -> None:
    assert invoke(name, "--no-such-option")[0] == ExitCode.USAGE


@pytest.mark.parametrize("name", ABSENT)
def test_what_is_absent_is_wrong_use(name: str, folder: Path) -> None:
    code, said = invoke(name, ABSENT[name])
    assert (code, "absent" in said) == (ExitCode.USAGE, True), said


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one(name: str, folder: Path) -> None:
    code, said = invoke(name, BROKEN[name])
    assert code == ExitCode.BROKEN, said
    assert "Traceback" not in said


def test_a_bug_is_not_a_fail(tmp_path: Path) -> None:
    """Python's own exit code of an exception is 1, which says "fail" here."""
    code = (
        "import typer; from savi.base.cli import run_app; app = typer.Typer()\n@app.command()\ndef go(): raise KeyError\nrun_app(app, 'go')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == ExitCode.MACHINE
    assert "KeyError" in done.stderr
    assert "in go" in done.stderr, "its traceback"


def test_no_number_stands_where_the_name_should() -> None:
    """A literal in `typer.Exit(5)` or `stop(..., 5)` is not seen where the meanings change."""
    found = []
    for path in (p for package in PACKAGES for p in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("typer.Exit", "stop"):
                code = [*node.args[-1:], *(k.value for k in node.keywords if k.arg == "code")]
                literals = [
                    leaf for given in code for leaf in ast.walk(given) if isinstance(leaf, ast.Constant) and type(leaf.value) is int
                ]
                found += [f"{path.name}:{node.lineno}" for _ in literals]
    assert found == []


def meanings(text: str) -> dict[int, str]:
    """Code -> what it says, of a sentence "Exit codes...: 0 this, 1 that (or: more), ..."."""
    sentence = re.sub(r"\([^)]*\)", "", re.search(r"Exit codes[^:]*:(.*?143 \w+)", text, flags=re.DOTALL)[1])  # type: ignore[index]
    return {int(number): " ".join(said.split()) for number, said in re.findall(r"(\d+) ([^,]+)", sentence)}


def test_the_help_texts_and_the_readme_say_the_same() -> None:
    said = meanings(EXIT_CODES_TEXT)
    assert set(said) == {int(code) for code in ExitCode}
    assert meanings((ROOT / "README.md").read_text(encoding="utf-8")) == said
    for package in PACKAGES:
        assert importlib.import_module(f"{package}.__main__").app.info.epilog == EXIT_CODES_TEXT


def test_help_texts_name_only_codes_there_are() -> None:
    for name, command in commands().items():
        for said in re.findall(r"[Ee]xit(?: codes?)?:? (\d+)", " ".join((command.help or "").split())):
            assert int(said) in list(ExitCode), name


def test_one_means_more_only_where_the_help_text_says_so() -> None:
    """`raise typer.Exit(FAIL)` outside the gate's verdict and "no output"."""
    for name in ("benchmarks overlap", "harness simulate", "reproduce audit"):
        command = commands()[name]
        texts = " ".join([command.help, *(p.help or "" for p in command.params)])
        assert re.search(r"[Ee]xit(?: codes?)?:?[^.]* 1\b", " ".join(texts.split())), name
