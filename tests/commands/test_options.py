"""One name is one option everywhere: the same short name, the same kind, the same meaning; and one thing has one name."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from savi.base.former import listed
from tests.commands.walk import Option, commands, options

ROOT = Path(__file__).resolve().parents[2]
MEANINGS = {
    "--out": "what the command makes goes there: a file or a folder",
    "--format": "of what is written",
    "--json": "JSON instead of text",
    "--model": "the model that is used",
    "--data": "where the data sets lie",
    "--benchmarks": "only these",
    "--seed": "of what is drawn",
    "--seeds": "of bases, or of the loop",
    "--jobs": "at a time, a core each",
    "--scale": "the scale's name",
    "--videos": "a folder of videos",
    "--against": "what is compared with",
    "--set": "a setting of the scale",
    "--alpha": "error rate",
    "--num-frames": "frames of a video",
    "--margin": "in points",
    "--replace": "something else that stands there is lost",
    "--rule": "which score",
    "--twins-seed": "of the synthetic benchmarks",
    "--dry-run": "say what would be done, do nothing",
    "--iterations": "of the loop",
    "--processes": "on this machine",
    "--retry-failed": "videos that could not be read",
    "--max-new-tokens": "the longest reply",
}
"""Options whose help texts differ from command to command, with what is the same in all of them."""
FORMER = {
    "--hf-home": "--data",
    "--benchmark": "--benchmarks",
    "--limit": "--show",
    "--force": "--replace",
    "--n": "--num-questions",
    "-n": "--num-videos",
    "--batch": "--look-every",
    "--jobs": "--processes",
    "--from": "--from-format",
    "--format": "--from-format",
    "--base": "--original --bases",
    "--json": "--out",
}
"""Hidden option -> what it is called now; two names where it was another thing in another command."""


def problems(found: Iterable[Option]) -> list[str]:
    """What is called differently, or is something else, in two commands."""
    said, by_name, by_help = [], defaultdict(list), defaultdict(set)
    for one in found:
        for name in one.names:
            by_name[name].append(one)
        by_help[one.help].add(one.names)
    for name, group in by_name.items():
        first = group[0]
        for other in group[1:]:
            where = f"{name} of {first.command} and of {other.command}"
            if other.names != first.names:
                said.append(f"{where}: {first.names} and {other.names}")
            if other.kind != first.kind:
                said.append(f"{where}: {first.kind} and {other.kind}")
            if other.help != first.help and not set(MEANINGS) & set(first.names):
                said.append(f"{where}: {first.help!r} and {other.help!r}")
    said += [f"{sorted(names)} say the same: {text!r}" for text, names in by_help.items() if len(names) > 1]
    return said


def test_one_name_is_one_option_everywhere() -> None:
    assert problems(one for one in options() if not one.hidden) == []


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Option("b", ("--seed",), False, "value", "Of draws.", ""), "('--seed', '-s') and ('--seed',)"),
        (Option("b", ("--seed", "-s"), False, "repeated", "Of draws.", ""), "value and repeated"),
        (Option("b", ("--start", "-s"), False, "value", "Where to.", ""), "('--seed', '-s') and ('--start', '-s')"),
        (Option("b", ("--random",), False, "value", "Of draws.", ""), "say the same"),
    ],
)
def test_a_second_name_or_meaning_is_found(other: Option, said: str) -> None:
    assert any(said in problem for problem in problems([Option("a", ("--seed", "-s"), False, "value", "Of draws.", ""), other]))


def test_every_meaning_is_still_needed() -> None:
    texts = defaultdict(set)
    for one in options():
        if not one.hidden:
            texts[one.names[0]].add(one.help)
    assert {name for name in MEANINGS if len(texts[name]) < 2} == set()


def test_lists_of_names_may_be_repeated_or_have_commas() -> None:
    lists = [one for one in options() if "with commas" in one.help]
    study = {"--bases", "--seeds", "--controls", "--rivals"}
    assert {one.names[0] for one in lists} == {"--benchmarks", "--report-to", "--task", "--case", *study}
    assert all(one.kind == "repeated" for one in lists)
    assert [one for one in options() if one.kind == "repeated" and not one.hidden and "repeated" not in one.help] == []
    assert listed(["a,b", " c ", "", "b"]) == ["a", "b", "c"]
    assert listed(None) == []


def test_former_names_are_hidden_and_known() -> None:
    hidden = [one for one in options() if one.hidden]
    now = {
        one.command: {name for other in options() if other.command == one.command and not other.hidden for name in other.names}
        for one in hidden
    }
    for one in hidden:
        (name,) = one.names
        assert set(FORMER[name].split()) & now[one.command], (one.command, name)
    for name in ("--hf-home", "--benchmark", "--limit", "--force", "--n", "--batch", "--jobs", "--from", "--format", "--base", "--json"):
        assert any(one.names == (name,) for one in hidden), name


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda path: path.name)
def test_documents_use_the_present_names(path: Path) -> None:
    hidden = {(one.command, name) for one in options() if one.hidden for name in one.names}
    text = re.sub(r"`[^`]*`", lambda code: code[0].replace("\n", " "), path.read_text(encoding="utf-8"))
    for package, command, rest in re.findall(r"-m (savi|benchmarks|harness|reproduce) ([\w-]+)([^`\n#']*)", text):
        used = {(f"{package} {command}", word) for word in re.findall(r"(?<![\w-])--?[a-z][\w-]*", rest)}
        assert not used & hidden, used & hidden


def invoke(line: str) -> tuple[int, str]:
    import importlib

    package, *words = line.split()
    result = CliRunner(env={"COLUMNS": "200"}).invoke(importlib.import_module(f"{package}.__main__").app, words)
    return result.exit_code, result.output


def test_a_former_name_does_what_the_present_one_does() -> None:
    assert invoke("harness power --n 500 --benchmarks egoschema") == invoke("harness power --num-questions 500 --benchmarks egoschema")
    assert invoke("harness power --benchmarks egoschema,nextqa") == invoke("harness power --benchmarks egoschema --benchmarks nextqa")
    assert invoke("benchmarks check egoschema --hf-home absent --json") == invoke("benchmarks check egoschema --data absent --json")
    assert invoke("benchmarks check egoschema,nextqa --data absent") == invoke("benchmarks check egoschema nextqa --data absent")


def test_both_names_at_once_are_wrong_use() -> None:
    code, said = invoke("benchmarks check --hf-home a --data b")
    assert code == 2
    assert "--hf-home is the former name of --data: give one of them" in said


def test_former_names_keep_the_limits_of_the_present_ones() -> None:
    assert invoke("harness power --n 1")[0] == invoke("harness power --num-questions 1")[0] == 2


def test_every_command_has_a_help_text() -> None:
    assert [name for name, command in commands().items() if not command.help] == []


@pytest.mark.parametrize("name", [name for name, command in commands().items() if "Example: " in (command.epilog or "")])
def test_the_example_of_a_help_text_is_taken(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trained/model").mkdir(parents=True)
    words = shlex.split(commands()[name].epilog.partition("Example: python -m ")[2])
    assert " ".join(words[:2]) == name
    commands()[name].make_context(words[1], words[2:])
