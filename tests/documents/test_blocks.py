"""Every code block of README and docs/ is run by a test or listed with a reason; each command line is one that its program takes."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from harness.gate.exceptions import read_exceptions
from tests.commands.walk import commands
from tests.documents.blocks import PAGES, ROOT, Block, blocks, is_synopsis
from tests.documents.ledger import NOT_RUN, OTHER, reason

BLOCKS = [block for page in PAGES for block in blocks(page)]
LINES = sorted({(block.page, line) for block in BLOCKS for line in block.commands})
OURS = re.compile(r"-m (savi|benchmarks|harness|reproduce) ([\w-]+) ?(.*)$")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def entry(block: Block) -> tuple[str, str] | None:
    """The entry of `OTHER` that a block has."""
    return next((key for key in OTHER if key[0] == block.page and block.first.startswith(key[1])), None)


def unknown(found: list[Block]) -> list[str]:
    """The blocks that are neither commands nor listed."""
    return [f"{b.page}:{b.line}: {b.first!r} is no command, and not in OTHER" for b in found if not b.commands and entry(b) is None]


def test_no_block_is_left_out() -> None:
    assert unknown(BLOCKS) == []
    assert {key for key in OTHER if all(entry(block) != key for block in BLOCKS)} == set(), "listed, and in no document"
    used = {start for _, line in LINES for start in NOT_RUN if line.startswith(start)}
    assert set(NOT_RUN) - used == set(), "listed, and in no document"


def test_a_new_block_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "new.md"
    page.write_text(
        "Text\n\n    {json: 1}\n\n```sh\npython -m savi families   # all\n    --more\n```\n\n- item\n\n  ```\n  curl x\n  ```\n"
    )
    monkeypatch.setattr("tests.documents.blocks.ROOT", tmp_path)
    found = blocks(page)
    assert [block.commands for block in found] == [[], ["python -m savi families --more"], []]
    assert unknown(found) == [
        "new.md:3: '{json: 1}' is no command, and not in OTHER",
        "new.md:12: 'curl x' is no command, and not in OTHER",
    ]


@pytest.mark.parametrize("why", [*NOT_RUN.values(), *OTHER.values()])
def test_the_tests_that_are_named_exist(why: str) -> None:
    for named in re.findall(r"tests/[\w/]+\.py", why):
        assert (ROOT / named).is_file(), named


@pytest.mark.parametrize(("page", "line"), LINES, ids=[f"{page}: {line[:60]}" for page, line in LINES])
def test_a_command_line_is_one_its_program_takes(page: str, line: str) -> None:
    if ours := OURS.search(line):
        package, name, rest = ours.groups()
        command: Any = commands()[f"{package} {name}"]
        if not is_synopsis(line):
            command.make_context(name, shlex.split(rest))
        known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
        assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", rest)) <= known
    elif line.startswith("pip install"):
        wanted = line.split("&&")[0].split()[-1].strip('"')
        extras = Requirement(wanted.replace(".", "videosavi-harness", 1)).extras if wanted.startswith(".") else set()
        assert extras <= set(PYPROJECT["project"]["optional-dependencies"])
    elif line.startswith("tox"):
        tox = configparser.ConfigParser(interpolation=None)
        tox.read(ROOT / "tox.ini", encoding="utf-8")
        sections = " ".join(tox.sections()).replace("py3{11,12,13}", "py311 testenv:py312 testenv:py313")
        assert all(f"testenv:{name}" in sections.split() for name in re.findall(r"-e (\w+)", line))
    else:
        assert reason(line), f"{page}: {line}: neither run nor read by a test"


@pytest.mark.parametrize(
    "script", [*sorted((ROOT / "docs").rglob("*.sh")), *sorted((ROOT / "docs").rglob("*.sbatch"))], ids=lambda p: p.name
)
def test_shell_scripts_can_be_read(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""


def test_command_lines_are_shell() -> None:
    text = "\n".join(line for _, line in LINES if not is_synopsis(line))
    assert subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True).stderr == ""


def test_files_of_settings_can_be_read() -> None:
    found = [path for path in (ROOT / "docs").rglob("*") if path.suffix in (".yml", ".yaml")]
    assert len(found) == 3
    assert all(isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict) for path in found)
    assert {block.language for block in BLOCKS} <= {"", "yaml"}, "a new language: read its blocks here"


def test_the_exceptions_in_the_gates_page_are_read(tmp_path: Path) -> None:
    (block,) = [block for block in BLOCKS if block.language == "yaml"]
    path = tmp_path / "gate-exceptions.yaml"
    path.write_text(block.text, encoding="utf-8")
    (exception,) = read_exceptions(path)
    assert (exception.benchmark, exception.covers, exception.run) == ("egoschema", "no_regression", "nightly-7")


def test_the_folders_in_the_readme_exist() -> None:
    (block,) = [block for block in BLOCKS if block.first.startswith("savi         aligns")]
    package = ""
    for line in block.text.splitlines():
        package = line.split()[0] if not line.startswith(" ") else package
        for folder in re.findall(r"(?<!\w)([a-z]+)/", line):
            assert (ROOT / package / folder).is_dir(), f"{package}/{folder}"


def test_the_message_of_a_lost_process_is_the_codes() -> None:
    (block,) = [block for block in BLOCKS if block.first.startswith("error: process 3")]
    said = " ".join(block.text.split())
    code = (ROOT / "savi/base/watch.py").read_text(encoding="utf-8") + (ROOT / "savi/base/processes.py").read_text(encoding="utf-8")
    for words in (
        "has not been heard of for",
        "it was at",
        "what is finished is kept; run the same command to go on, with any number of processes",
    ):
        assert words in said
        assert words in code
