"""The way back to the published layout: bit for bit, its code copied and never run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from savi.base.errors import SaviError
from savi.cards.model_card import lineage
from savi.conversion.checkpoint import convert
from savi.conversion.to_chat import convert_back
from savi.engine.video_lm import VideoLM
from tests.savi.cli.test_cli import failed, run
from tests.savi.internvl_chat import internlm2_config, qwen2_config, write_checkpoint


def with_code(source: Path) -> Path:
    """Remote code that must not be run, as the configs name it, and a card besides."""
    for file in ("config.json", "tokenizer_config.json"):
        for value in json.loads((source / file).read_text()).get("auto_map", {}).values():
            for name in value if isinstance(value, list) else [value]:
                if name:
                    (source / f"{name.partition('.')[0]}.py").write_text("raise SystemExit('remote code was run')\n")
    (source / "README.md").write_text("---\nlicense: mit\n---\n# Theirs\n")
    return source


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"}


def test_there_and_back_is_bit_identical(converted: tuple[dict, dict, Path, Path], tmp_path: Path) -> None:
    """Every file of every language model, but for the card."""
    _, _, source, native = converted
    back = convert_back(native, with_code(source), tmp_path / "back")
    assert contents(back) == contents(source)
    assert any(name.endswith(".py") for name in contents(back))
    modes = {path.stat().st_mode & 0o777 for path in back.iterdir()}
    (new := tmp_path / "new").touch()
    assert modes == {new.stat().st_mode & 0o777}


@pytest.mark.parametrize("config", [internlm2_config, qwen2_config])
def test_an_aligned_model_goes_there_and_back(config: object, tmp_path: Path) -> None:
    """Other weights than the base's, saved by our own trainer's way: the same again after both ways, and the base's other files."""
    write_checkpoint(tmp_path / "source", config(), shards=3, dtype=torch.bfloat16)  # type: ignore[operator]
    source = with_code(tmp_path / "source")
    lm = VideoLM.from_pretrained(convert(source, tmp_path / "native"), device="cpu")
    with torch.no_grad():
        for weight in lm.model.parameters():
            weight.add_(torch.randn_like(weight) * 0.01)
    lm.save_pretrained(tmp_path / "aligned")
    back = convert_back(tmp_path / "aligned", source, tmp_path / "back")
    again = convert(back, tmp_path / "again")
    ours, theirs = (
        {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}
        for folder in (tmp_path / "aligned", again)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in ours)
    assert {name: data for name, data in contents(back).items() if not name.endswith(".safetensors")} == {
        name: data for name, data in contents(source).items() if not name.endswith(".safetensors")
    }
    assert lineage(tmp_path / "native").licence == {"license": "mit"}


def test_weights_of_bin_files_are_written_as_safetensors(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path / "source", qwen2_config())
    source = with_code(tmp_path / "source")
    (source / "model.safetensors").unlink()
    halves = [dict(list(weights.items())[:20]), dict(list(weights.items())[20:])]
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    for name, half in zip(names, halves, strict=True):
        torch.save(half, source / name)
    index = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    back = convert_back(convert(source, tmp_path / "native"), source, tmp_path / "back")
    assert sorted(path.name for path in back.glob("model[-.]*")) == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
    ]  # fmt: skip
    made = {key: value for path in back.glob("*.safetensors") for key, value in load_file(path).items()}
    assert all(torch.equal(made[key], weights[key]) for key in weights)
    assert convert(back, tmp_path / "again").is_dir()


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source", qwen2_config())
    write_checkpoint(tmp_path / "wider", qwen2_config(intermediate_size=64))
    write_checkpoint(tmp_path / "llama", internlm2_config())
    native = convert(tmp_path / "source", tmp_path / "native")
    for base, said in (("wider", "of another shape"), ("llama", "tensors are missing|another shape")):
        with_code(tmp_path / base)
        with pytest.raises(SaviError, match=f"was not made from .*{said}"):
            convert_back(native, tmp_path / base, tmp_path / "back")
    with pytest.raises(SaviError, match="is no native InternVL checkpoint"):
        convert_back(tmp_path / "source", tmp_path / "source", tmp_path / "back")
    with pytest.raises(SaviError, match=r"config.json names .*\.py, which is not there"):
        convert_back(native, tmp_path / "source", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_the_command(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source", qwen2_config())
    source = with_code(tmp_path / "source")
    native, back = convert(source, tmp_path / "native"), tmp_path / "back"
    assert "go together" in failed(run("convert", native, back, "--to", "internvl-chat"), 2)
    assert "go together" in failed(run("convert", native, back, "--original", source), 2)
    result = run("convert", native, back, "--to", "internvl-chat", "--original", source)
    assert result.exit_code == 0, result.output
    assert contents(back) == contents(source)
    assert "holds something already" in failed(run("convert", native, back, "--to", "internvl-chat", "--original", source), 2)
