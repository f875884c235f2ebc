"""Conversion of tiny `internvl_chat` checkpoints: the same logits as an independent forward; started again, killed, changed."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from savi.conversion.checkpoint import CheckpointError, convert, is_internvl_chat, weights_fingerprint
from tests.savi.converted import edit_config, has_sentencepiece, load_native, names_in, rewrite, tags
from tests.savi.internvl_chat import (
    internlm2_config,
    qwen2_config,
    reference_features,
    reference_logits,
    write_checkpoint,
)

SYSTEM = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
SYSTEM_2 = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"


def test_image_features_are_the_originals(converted: tuple) -> None:
    config, weights, _, native = converted
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        got = load_native(native).model.get_image_features(pixels, return_dict=True).pooler_output
    torch.testing.assert_close(got, reference_features(config, weights, pixels), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [12, 24, 40])
def test_logits_are_the_originals(converted: tuple, length: int) -> None:
    """Lengths below, at and above InternLM2's trained context of 24: above it, dynamic NTK changes the rotary base."""
    config, weights, _, native = converted
    model = load_native(native)
    generator = torch.Generator().manual_seed(length)
    image = model.config.image_token_id
    ids = torch.randint(5, 100, (length,), generator=generator)
    ids[1:9] = image
    pixels = torch.randn(2, 3, 16, 16, generator=generator)
    features = reference_features(config, weights, pixels).flatten(0, 1)
    with torch.no_grad():
        got = model(input_ids=ids[None], pixel_values=pixels).logits[0]
    expected = reference_logits(config, weights, ids, features, image)
    torch.testing.assert_close(got, expected, atol=5e-5, rtol=1e-4)
    if config["llm_config"]["rope_scaling"]:
        plain = config | {"llm_config": config["llm_config"] | {"rope_scaling": None}}
        distance = (reference_logits(plain, weights, ids, features, image) - got).abs().max()
        longrope = "long_factor" in config["llm_config"]["rope_scaling"]
        assert (distance > 1e-2) == (longrope or length > 24)  # the comparison sees rotary angles that are not scaled


def test_a_whole_question_on_real_pixels(converted: tuple) -> None:
    """Through VideoLM: resize, normalise, prompt and first token, against PIL, ImageNet's numbers, get_prompt and the reference forward."""
    from PIL import Image

    from savi.engine.video_lm import VideoLM

    config, weights, _, native = converted
    lm = VideoLM.from_pretrained(native, device="cpu")
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (2, 30, 40, 3), dtype=np.uint8)
    resized = np.stack([np.asarray(Image.fromarray(frame).resize((16, 16), Image.Resampling.BICUBIC)) for frame in frames])
    pixels = torch.from_numpy(resized / 255.0).float()
    pixels = ((pixels - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])).permute(0, 3, 1, 2)
    tokenizer = lm.tokenizer
    picture = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>"
    bos = "<s>" if has_sentencepiece(config) else ""
    system, user, assistant, end = tags(config)
    message = SYSTEM_2 if config["template"] == "phi3-chat" else SYSTEM
    sep = end if config["template"] == "phi3-chat" else end + "\n"
    text = f"{bos}{system}{message}{sep}{user}Frame1: {picture}\nFrame2: {picture}\nwhat is left{sep}{assistant}"
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    config = config | {"llm_config": config["llm_config"] | {"max_position_embeddings": 100_000}}
    features = reference_features(config, weights, pixels).flatten(0, 1)
    prefix = lm.prefix_ids(frames).tolist()
    assert prefix + lm.prompt_ids("what is left") == ids.tolist()
    torch.testing.assert_close(lm.features(frames).embeds, features, atol=1e-4, rtol=1e-4)
    if not config["llm_config"]["rope_scaling"]:  # the others' tiny contexts are far too short for the system message
        first = int(reference_logits(config, weights, ids, features, lm.model.config.image_token_id)[-1].argmax())
        reply = lm.watch(frames).ask(["what is left"], max_new_tokens=1)[0]
        assert reply.text == tokenizer.decode([first], skip_special_tokens=True).strip() or first == lm.chat.end_of_turn_id


def test_a_vision_tower_with_rms_norm_and_query_norm(tmp_path: Path) -> None:
    config = qwen2_config()
    config["vision_config"] |= {"qk_normalization": True, "norm_type": "rms_norm", "qkv_bias": False}
    weights = write_checkpoint(tmp_path / "source", config)
    model = load_native(convert(tmp_path / "source", tmp_path / "native"))
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        got = model.model.get_image_features(pixels, return_dict=True).pooler_output
    torch.testing.assert_close(got, reference_features(config, weights, pixels), atol=1e-5, rtol=1e-5)


def test_shards_keep_their_type_and_index(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source", internlm2_config(), shards=3, dtype=torch.bfloat16)
    told: list[tuple[str, int, int]] = []
    native = convert(tmp_path / "source", tmp_path / "native", progress=lambda *step: told.append(step))
    assert [(done, of) for _, done, of in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    index = json.loads((native / "model.safetensors.index.json").read_text())
    stored = {name: load_file(native / name) for name in sorted({*index["weight_map"].values()})}
    assert list(stored) == [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert {key: name for name, tensors in stored.items() for key in tensors} == index["weight_map"]
    assert {tensor.dtype for tensors in stored.values() for tensor in tensors.values()} == {torch.bfloat16}
    assert index["metadata"]["total_size"] == sum(t.numel() * 2 for tensors in stored.values() for t in tensors.values())
    assert load_native(native).dtype == torch.bfloat16
    assert names_in(tmp_path) == ["native", "source"]  # nothing half-made stays
    assert not is_internvl_chat(native)
    assert is_internvl_chat(tmp_path / "source")
    assert not is_internvl_chat(tmp_path)


def test_one_file_and_many_are_the_same_model(tmp_path: Path) -> None:
    first, second = internlm2_config(), internlm2_config()
    write_checkpoint(tmp_path / "one", first, shards=1)
    write_checkpoint(tmp_path / "many", second, shards=4)
    one, many = (load_native(convert(tmp_path / name, tmp_path / f"{name}-native")) for name in ("one", "many"))
    assert (tmp_path / "one-native" / "model.safetensors").is_file()
    for (key, tensor), (other_key, other) in zip(one.state_dict().items(), many.state_dict().items(), strict=True):
        assert key == other_key
        assert torch.equal(tensor, other)


def test_pytorch_bin_files(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path / "source", internlm2_config())
    expected = load_native(convert(tmp_path / "source", tmp_path / "a")).state_dict()
    (tmp_path / "source" / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "source" / "pytorch_model.bin")
    got = load_native(convert(tmp_path / "source", tmp_path / "b")).state_dict()
    assert all(torch.equal(got[key], expected[key]) for key in expected)
    (tmp_path / "source" / "pytorch_model.bin").write_bytes((tmp_path / "source" / "pytorch_model.bin").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: broken or cut off"):
        convert(tmp_path / "source", tmp_path / "c")


def test_a_pickle_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source", internlm2_config())
    (tmp_path / "source" / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"x": Evil()}, tmp_path / "source" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="broken"):
        convert(tmp_path / "source", tmp_path / "native")
    assert not (tmp_path / "ran").exists()


def test_tied_embeddings(tmp_path: Path) -> None:
    config = qwen2_config(tie_word_embeddings=True)
    weights = write_checkpoint(tmp_path / "source", config)
    model = load_native(convert(tmp_path / "source", tmp_path / "native"))
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    ids = torch.arange(20, 32)
    with torch.no_grad():
        got = model(input_ids=ids[None]).logits[0]
    torch.testing.assert_close(got, reference_logits(config, weights, ids, None, -1), atol=5e-5, rtol=1e-4)


# again, killed, changed


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_killed_at_each_step_and_started_again(source: Path, tmp_path: Path) -> None:
    straight = content(convert(source, tmp_path / "straight"))
    for step in (1, 2, 3):
        target = tmp_path / f"killed-{step}"

        def die(_what: str, done: int, _of: int, step: int = step) -> None:
            if done == step:
                os.kill(os.getpid(), signal.SIGKILL)

        child = os.fork()
        if child == 0:
            convert(source, target, progress=die)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        assert not target.exists()
        part = tmp_path / f".{target.name}.converting"
        made = {path.name: path.stat().st_mtime_ns for path in part.glob("*.safetensors")}
        assert len(made) == step
        assert content(convert(source, target)) == straight
        assert made.items() <= {path.name: path.stat().st_mtime_ns for path in target.iterdir()}.items()  # not made again


def test_what_a_kill_left_half_written_goes(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors writes to a temporary file of its own, of the shard's size: a signal takes it along, a new start the rest."""
    import safetensors.torch

    from savi.base.cli import Stopped

    straight = content(convert(source, tmp_path / "straight"))
    part, real = tmp_path / ".native.converting", safetensors.torch.save_file

    def half(tensors: Any, path: Path, **settings: Any) -> None:
        if "00002" in Path(path).name:
            (part / ".tmpX3f9Zq").write_bytes(b"half")
            raise Stopped(signal.SIGTERM)
        real(tensors, path, **settings)

    monkeypatch.setattr(safetensors.torch, "save_file", half)
    with pytest.raises(Stopped):
        convert(source, tmp_path / "native")
    assert sorted(path.name for path in part.iterdir()) == ["conversion.json", "model-00001-of-00003.safetensors"]
    monkeypatch.undo()
    (part / ".tmpX3f9Zq").write_bytes(b"left by SIGKILL")
    (part / ".model-00002-of-00003.safetensors.part").write_bytes(b"left by SIGKILL")
    assert content(convert(source, tmp_path / "native")) == straight


def test_a_source_that_changed_is_converted_from_the_start(source: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    with pytest.raises(Stop):
        convert(source, tmp_path / "native", progress=stop)
    rewrite(source, lambda w: w["mlp1.3.bias"].add_(1))
    native = convert(source, tmp_path / "native")
    assert torch.equal(
        load_file(native / "model.safetensors")["model.multi_modal_projector.linear_2.bias"],
        load_file(source / "model.safetensors")["mlp1.3.bias"],
    )
    assert names_in(tmp_path) == ["native", "source"]


def damage(path: Path) -> None:
    """Flip the last bit, or flip it back."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def test_an_existing_target(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "native"
    target.mkdir()
    convert(source, target)  # an empty folder is taken
    before = {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
    assert convert(source, target) == target
    assert {path.name: path.stat().st_mtime_ns for path in target.iterdir()} == before
    shard = source / "model-00001-of-00003.safetensors"
    os.utime(shard, ns=(1, 1))
    assert convert(source, target) == target  # a copy of the same files
    damage(shard)
    os.utime(shard, ns=(1, 1))
    with pytest.raises(CheckpointError, match="holds something else"):
        convert(source, target)
    damage(shard)
    damage(target / "model-00002-of-00003.safetensors")
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors: is missing or was changed"):
        convert(source, target)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(CheckpointError, match="holds something else"):
        convert(source, tmp_path / "other")
    with pytest.raises(CheckpointError, match="is a file"):
        convert(source, tmp_path / "other" / "thesis.tex")


def test_fingerprints(converted: tuple, tmp_path: Path) -> None:
    native = converted[3]
    print_ = weights_fingerprint(native)
    copy = tmp_path / "elsewhere"
    shutil.copytree(native, copy)
    (copy / "README.md").write_text("notes")
    edit_config(copy, transformers_version="4.0.0")
    assert weights_fingerprint(copy) == print_
    seen = {print_}
    for name, old, new in (
        ("chat_template.jinja", "system", "sister"),
        ("config.json", '"image_seq_length": 4', '"image_seq_length": 5'),
    ):
        text = (copy / name).read_text()
        assert old in text
        (copy / name).write_text(text.replace(old, new))
        seen.add(weights_fingerprint(copy))
    shard = copy / "model-00002-of-00003.safetensors"
    damage(shard)
    seen.add(weights_fingerprint(copy))
    assert len(seen) == 4
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        weights_fingerprint(tmp_path)
