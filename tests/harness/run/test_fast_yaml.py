"""lmms-eval's task files by libyaml: the same values, and its own functions put back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.catalog import CATALOG
from harness.run.fast_yaml import fast_yaml
from savi.base.torchvision import fix_torchvision

fix_torchvision()

from lmms_eval import tasks  # noqa: E402
from lmms_eval.utils import load_yaml_config  # noqa: E402

TASKS = Path(tasks.__file__).parent
FILES = sorted(file for b in CATALOG.values() for file in (TASKS / b.task_folder).rglob("*.y*ml"))


def plain(value: Any) -> Any:
    """Without what differs from load to load: a function is its file and name."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return (value.__code__.co_filename, value.__name__) if callable(value) else value


def test_the_task_files_of_all_benchmarks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("nltk.download", lambda *_, **__: False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))  # their modules look for it
    ours = {task for b in CATALOG.values() for task in b.tasks}
    seen = set()
    for file in FILES:
        task = load_yaml_config(str(file), mode="simple").get("task")
        if not isinstance(task, str) or task not in ours:
            continue  # a part that others include, or another task of the folder
        slow = plain(load_yaml_config(str(file)))
        with fast_yaml():
            assert plain(load_yaml_config(str(file))) == slow, file
        assert "process_results" in slow
        seen.add(task)
    assert seen == ours


def test_texts_and_tags() -> None:
    text = "a: [1, 2.5, yes, ~, 2026-11-26]\nb: !!python/tuple [1, 2]\nc: 'é'\n"
    with fast_yaml():
        assert yaml.full_load(text) == {"a": [1, 2.5, True, None, yaml.safe_load("2026-11-26")], "b": (1, 2), "c": "é"}
        with pytest.raises(yaml.YAMLError):
            yaml.safe_load("b: !!python/tuple [1, 2]\n")
        with pytest.raises(yaml.YAMLError):
            yaml.full_load("a: [1, 2")


def test_it_is_put_back() -> None:
    before = yaml.full_load, yaml.safe_load
    with pytest.raises(KeyError), fast_yaml():  # noqa: PT012
        assert yaml.full_load is not before[0]
        raise KeyError
    assert (yaml.full_load, yaml.safe_load) == before
