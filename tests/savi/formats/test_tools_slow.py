"""24,000 pairs, as many as the paper's iteration has, exported and read by each tool's own loader; a tool that is not installed is skipped.

ms-swift 4.6 and LLaMA-Factory 0.9.5 pin older transformers than this project, so they are installed without their dependencies
(`pip install --no-deps`), beside what their loaders import (modelscope, json_repair, ...).
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from savi.base.torchvision import fix_torchvision
from savi.formats.table import read_any_pairs, write_any_pairs
from savi.loop.preferences import PreferencePair

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
COUNT = int(os.environ.get("PAIRS_OF_TOOLS", "24000"))
ASKED = ("user", "assistant", "user")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[PreferencePair]:
    """4,000 videos with six questions each; some with earlier turns, some with a system message, meta of several shapes."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(4):
        (folder / f"{i}.mp4").touch()
    metas: list[dict[str, Any]] = [{}, {"index": 1, "num_frames": 32}, {"columns": {"score": 1.5}}]
    return [
        PreferencePair(
            f"p{i}", str(folder / f"{i % 4}.mp4"), f"What happens {i}? “è”\nSay it.", ("spatial", "temporal")[i % 2], f"initial {i}",
            f"critique {i}", f"chosen {i}", f"rejected {i}", metas[i % 3], system="Be brief." if i % 5 == 0 else None,
            history=(("How many?", "Two."),) if i % 7 == 0 else (),
        )
        for i in range(COUNT)
    ]  # fmt: skip


def one_question(pairs: list[PreferencePair]) -> list[PreferencePair]:
    from dataclasses import replace

    return [replace(pair, system=None, history=()) for pair in pairs]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("name", ["trl", "trl-implicit", "trl-flat"])
def test_trl(name: str, suffix: str, pairs: list[PreferencePair], tmp_path: Path) -> None:
    """`datasets` reads each file, and TRL's own helpers see what the trainer would: the prompt, and both answers."""
    fix_torchvision()
    from datasets import load_dataset
    from trl.data_utils import is_conversational, maybe_extract_prompt

    if name == "trl-flat":
        pairs = one_question(pairs)
    path = write_any_pairs(tmp_path / f"out{suffix}", pairs, name)[0]
    kind = "parquet" if suffix == ".parquet" else "json"
    table = load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(table) == COUNT
    for pair, row in zip(pairs, table, strict=True):
        found = maybe_extract_prompt(row)
        assert is_conversational(found) == (name != "trl-flat")
        if name == "trl-flat":
            assert (found["prompt"], found["chosen"], found["rejected"]) == (pair.prompt, pair.chosen, pair.rejected)
            assert found["videos"] == [pair.video]
            continue
        said = [(message["role"], message["content"][-1]["text"]) for message in found["prompt"]]
        asked = [text for turn in pair.history for text in turn] + [pair.prompt]
        first = [("system", pair.system)] if pair.system else []
        assert said == first + list(zip(ASKED[-len(asked) :], asked, strict=True))
        assert [part.get("path") for message in found["prompt"] for part in message["content"] if part["type"] == "video"] == [pair.video]
        assert [found[side][0]["content"][0]["text"] for side in ("chosen", "rejected")] == [pair.chosen, pair.rejected]
    assert read_any_pairs(path) == pairs


def test_ms_swift(pairs: list[PreferencePair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own `load_dataset`, strict: a row that it would drop is an error."""
    fix_torchvision()
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    pytest.importorskip("swift")
    from swift.dataset import load_dataset

    path = write_any_pairs(tmp_path / "out.jsonl", pairs, "ms-swift")[0]
    table, _ = load_dataset(str(path), strict=True, load_from_cache_file=False)
    assert len(table) == COUNT
    for pair, row in zip(pairs, table, strict=True):
        assert row["rejected_response"] == pair.rejected
        assert row["messages"][-1]["content"] == pair.chosen
        assert [video if isinstance(video, str) else video["path"] for video in row["videos"]] == [pair.video]
        assert sum(message["content"].count("<video>") for message in row["messages"]) == 1
    assert read_any_pairs(path) == pairs


def test_llama_factory(pairs: list[PreferencePair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own parser of dataset_info.json, and its own converter of every row; it skips none."""
    fix_torchvision()
    monkeypatch.setenv("DISABLE_VERSION_CHECK", "1")
    pytest.importorskip("llamafactory.extras")
    if "torchaudio" not in sys.modules:
        (silent := ModuleType("torchaudio")).__spec__ = ModuleSpec("torchaudio", None)  # for sound, which is not in these rows
        monkeypatch.setitem(sys.modules, "torchaudio", silent)
    from datasets import load_dataset
    from llamafactory.data.converter import SharegptDatasetConverter
    from llamafactory.data.parser import get_dataset_list

    path, _ = write_any_pairs(tmp_path / "pairs.json", pairs, "llama-factory")
    (attributes,) = get_dataset_list(["pairs"], str(tmp_path))
    arguments = type("Arguments", (), {"media_dir": str(tmp_path), "dataset_dir": str(tmp_path)})()
    convert = SharegptDatasetConverter(attributes, arguments)
    table = load_dataset("json", data_files=str(tmp_path / attributes.dataset_name), split="train", cache_dir=str(tmp_path / "cache"))
    for pair, row in zip(pairs, table, strict=True):
        made = convert(row)
        assert [answer["content"] for answer in made["_response"]] == [pair.chosen, pair.rejected]
        asked = [text for turn in pair.history for text in turn] + [pair.prompt]
        assert [message["content"].removeprefix("<video>") for message in made["_prompt"]] == asked
        assert made["_system"] == (pair.system or "")
        assert [os.path.realpath(video) for video in made["_videos"]] == [os.path.realpath(pair.video)]
    assert read_any_pairs(path) == pairs


def test_llava_hound(pairs: list[PreferencePair], tmp_path: Path) -> None:
    """Its loader is a script that cannot be installed: what it does with a line (run_dpo.py, `DPODataset.__getitem__`) is done here."""
    import json

    pairs = one_question(pairs)
    path = write_any_pairs(tmp_path / "sft_dpo.jsonl", pairs, "llava-hound")[0]
    with path.open(encoding="utf-8") as file:
        for pair, line in zip(pairs, file, strict=True):
            row = json.loads(line)
            assert "<video>\n" + row["prompt"].replace("<video>", "").strip() == "<video>\n" + pair.prompt
            assert (row["chosen"], row["rejected"]) == (pair.chosen, pair.rejected)
            assert os.path.realpath(tmp_path / row["video"]) == os.path.realpath(pair.video)
    assert read_any_pairs(path) == pairs
