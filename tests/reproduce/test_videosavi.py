"""The one command `videosavi`: the same commands as by `python -m`, and nothing imported that is not called."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer

from reproduce.videosavi import PACKAGES, command_line

ROOT = Path(__file__).parents[2]


def run(*arguments: str, then: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys, atexit; from reproduce.videosavi import main; sys.argv[0] = 'videosavi'; {then}\nmain()"
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)


def test_it_is_installed_as_a_command() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    module, _, name = scripts["videosavi"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_it_has_savis_commands_and_the_packages() -> None:
    savi = importlib.import_module("savi.__main__").app
    own = set(typer.main.get_command(savi).commands)  # type: ignore[attr-defined]
    assert not own & set(PACKAGES)
    assert set(typer.main.get_command(command_line(savi)).commands) == own | set(PACKAGES)  # type: ignore[attr-defined]
    shown = run("--help")
    assert shown.returncode == 0
    assert all(f" {name} " in shown.stdout for name in own | set(PACKAGES))


@pytest.mark.parametrize(("package", "command"), [("harness", "gate"), ("benchmarks", "list"), ("reproduce", "paper")])
def test_a_package_is_called_as_by_python_m(package: str, command: str) -> None:
    ours = run(package, command, "--help")
    theirs = subprocess.run([sys.executable, "-m", package, command, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert ours.returncode == theirs.returncode == 0
    assert f"videosavi {package} {command}" in ours.stdout
    assert ours.stdout.replace(f"videosavi {package}", f"python -m {package}").split() == theirs.stdout.split()


def test_exit_codes_are_the_same() -> None:
    assert run("harness", "gate").returncode == 2
    assert run("gate").returncode == 2
    asked = run("ask", "absent.mp4", "what", "--model", "micro")
    assert asked.returncode == 2
    assert asked.stderr == "error: absent.mp4: no such file\n"
    assert run("benchmarks", "list", "--json").stdout.startswith("[")


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], "torch transformers harness lmms_eval pandas scipy"),
        (["benchmarks", "--help"], "torch transformers harness savi.cli lmms_eval"),
        (["ask", "--help"], "torch transformers harness lmms_eval"),
        (["harness", "--help"], "torch transformers lmms_eval pandas scipy matplotlib numpy pydantic"),
        (["reproduce", "--help"], "torch transformers lmms_eval pandas scipy matplotlib harness"),
    ],
)
def test_help_imports_no_more_than_it_shows(arguments: list[str], absent: str) -> None:
    then = f"atexit.register(lambda: print('imported:', *sorted(set({absent.split()!r}) & set(sys.modules))))"
    assert run(*arguments, then=then).stdout.splitlines()[-1] == "imported:"
