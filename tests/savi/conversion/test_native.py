"""`VideoLM` takes published checkpoints as they are: converted once, into a cache, and refused before their weights are fetched."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from savi.base.hub import find_checkpoint
from savi.conversion import native
from savi.conversion.checkpoint import CheckpointError, convert
from savi.conversion.native import native_folder, refuse_unsupported
from savi.engine.video_lm import VideoLM
from savi.families import UnsupportedFamily
from tests.savi.internvl_chat import qwen2_config, write_checkpoint


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAVI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "converted"


def test_a_published_checkpoint_is_converted_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "InternVL2_5-0B"
    write_checkpoint(source, qwen2_config(), shards=2)
    told: list[str] = []
    folder = native_folder(source, tell=told.append)
    assert [path.name.startswith("InternVL2_5-0B-") for path in cache.iterdir() if not path.name.startswith(".")] == [True]
    assert told == [f"converting InternVL2_5-0B once, into {folder}"]
    lm = VideoLM.from_pretrained(source, device="cpu")
    by_hand = VideoLM.from_pretrained(convert(source, tmp_path / "by-hand"), device="cpu")
    assert lm.name == "InternVL2_5-0B"
    assert lm.fingerprint == by_hand.fingerprint
    for key, tensor in by_hand.model.state_dict().items():
        assert torch.equal(tensor, lm.model.state_dict()[key])
    monkeypatch.setattr("savi.conversion.checkpoint._convert_shard", lambda *_: pytest.fail("converted twice"))
    assert native_folder(source, tell=told.append) == folder
    assert len(told) == 1


def test_another_checkpoint_of_the_same_name_is_another_entry(cache: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a" / "model", qwen2_config())
    write_checkpoint(tmp_path / "b" / "model", qwen2_config(), seed=1)
    first, second = native_folder(tmp_path / "a" / "model"), native_folder(tmp_path / "b" / "model")
    assert first != second
    os.utime(tmp_path / "a" / "model" / "model.safetensors", ns=(1, 1))
    assert native_folder(tmp_path / "a" / "model") == first, "content counts, not times"


def test_a_native_folder_is_taken_as_it_is(cache: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source", qwen2_config())
    folder = convert(tmp_path / "source", tmp_path / "native")
    assert native_folder(folder) == folder
    assert not cache.exists()


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAVI_CACHE", str(tmp_path / "file"))
    write_checkpoint(tmp_path / "source", qwen2_config())
    with pytest.raises(native.CacheError, match="set SAVI_CACHE to a folder"):
        native_folder(tmp_path / "source")


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        ({"model_type": "gemma3"}, UnsupportedFamily, "bidirectional"),
        ({"model_type": "internvl_chat", "llm_config": {}}, CheckpointError, "vision_config: Field required|llm_config.architectures"),
        ({"model_type": "internvl"}, None, ""),
    ],
)
def test_what_cannot_be_used_is_refused_before_its_weights_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict, kind: type[Exception] | None, message: str
) -> None:
    """The hub is a function that hands out a folder; what is asked of it is what would be downloaded."""
    import huggingface_hub

    (tmp_path / "config.json").write_text(json.dumps(config))
    asked: list[list[str]] = []

    def snapshot_download(_name: str, *, repo_type: str, allow_patterns: list[str], local_files_only: bool) -> str:
        assert repo_type == "model"
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    if kind is None:
        assert find_checkpoint("owner/name", check=refuse_unsupported) == tmp_path
        assert asked[0] == ["config.json"]
        assert "*.safetensors" in asked[1]
    else:
        with pytest.raises(kind, match=message):
            native_folder("owner/name")
        assert asked == [["config.json"]]
