"""Fixtures of the tests of checkpoint conversion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from savi.conversion.checkpoint import convert
from tests.savi.internvl_chat import internlm2_config, llama_config, phi3_config, qwen2_config, qwen3_config, write_checkpoint

CONFIGS: dict[str, Callable[..., dict[str, Any]]] = {
    "internlm2": internlm2_config,
    "qwen2": qwen2_config,
    "llama": llama_config,
    "phi3": phi3_config,
    "qwen3": qwen3_config,
}


@pytest.fixture(scope="module", params=list(CONFIGS))
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict, Path, Path]:
    """(source config, source tensors, source folder, converted folder)"""
    folder = tmp_path_factory.mktemp(request.param)
    config = CONFIGS[request.param]()
    weights = write_checkpoint(folder / "source", config, shards=3)
    return config, weights, folder / "source", convert(folder / "source", folder / "native")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "source", internlm2_config(), shards=3)
    return tmp_path / "source"
