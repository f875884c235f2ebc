"""Conversion of tiny `internvl_chat` checkpoints: the same logits as an independent forward, and every way a source can be wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from savi.checkpoint import CheckpointError, convert, is_internvl_chat, weights_fingerprint
from savi.checkpoint_tokenizer import PROBES, check_against_sentencepiece
from savi.compat import mend_torchvision
from tests.savi.internvl_chat import (
    internlm2_config,
    qwen2_config,
    reference_features,
    reference_logits,
    write_checkpoint,
    write_internlm2_tokenizer,
    write_shards,
)

mend_torchvision()

CONFIGS: dict[str, Callable[..., dict[str, Any]]] = {"internlm2": internlm2_config, "qwen2": qwen2_config}
LAYER = "language_model.model.layers.0"
SYSTEM = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"


def load_native(folder: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module", params=list(CONFIGS))
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict, Path, Path]:
    """(source config, source tensors, source folder, converted folder)"""
    folder = tmp_path_factory.mktemp(request.param)
    config = CONFIGS[request.param]()
    weights = write_checkpoint(folder / "source", config, shards=3)
    return config, weights, folder / "source", convert(folder / "source", folder / "native")


def is_internlm2(config: dict[str, Any]) -> bool:
    return config["llm_config"]["architectures"] == ["InternLM2ForCausalLM"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "source", internlm2_config(), shards=3)
    return tmp_path / "source"


def edit_config(folder: Path, **changes: Any) -> None:
    """Set fields by dotted name; None deletes."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name, value in changes.items():
        *outer, last = name.split("__")
        place = config
        for key in outer:
            place = place[key]
        if value is None:
            place.pop(last)
        else:
            place[last] = value
    path.write_text(json.dumps(config))


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
        assert (distance > 1e-2) == (length > 24)  # the comparison sees a rotary base that is not scaled


def test_a_whole_question_on_real_pixels(converted: tuple) -> None:
    """Through VideoLM: resize, normalise, prompt and first token, against PIL, ImageNet's numbers, get_prompt and the reference forward."""
    from PIL import Image

    from savi.video_lm import VideoLM

    config, weights, _, native = converted
    lm = VideoLM.from_pretrained(native, device="cpu")
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (2, 30, 40, 3), dtype=np.uint8)
    resized = np.stack([np.asarray(Image.fromarray(frame).resize((16, 16), Image.Resampling.BICUBIC)) for frame in frames])
    pixels = torch.from_numpy(resized / 255.0).float()
    pixels = ((pixels - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])).permute(0, 3, 1, 2)
    tokenizer = lm.tokenizer
    picture = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>"
    bos = "<s>" if is_internlm2(config) else ""
    text = (
        f"{bos}<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nFrame1: {picture}\nFrame2: {picture}\nwhat is left<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    config = config | {"llm_config": config["llm_config"] | {"max_position_embeddings": 100_000}}
    features = reference_features(config, weights, pixels).flatten(0, 1)
    prefix = lm.prefix_ids(frames).tolist()
    assert prefix + lm.prompt_ids("what is left") == ids.tolist()
    torch.testing.assert_close(lm.encode_frames(frames), features, atol=1e-4, rtol=1e-4)
    if not is_internlm2(config):  # the other one's tiny context is far too short for its system message
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
    assert not list(tmp_path.glob(".*"))  # nothing half-made stays
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


# tokenizer


def test_the_tokenizer_loads_natively_with_names_and_end_of_turn(converted: tuple) -> None:
    config, _, source, native = converted
    tokenizer = load_tokenizer(native)
    assert (tokenizer.start_image_token, tokenizer.end_image_token, tokenizer.context_image_token) == ("<img>", "</img>", "<IMG_CONTEXT>")
    assert tokenizer.eos_token == "<|im_end|>"
    added = json.loads((source / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    for index, entry in added.items():
        assert tokenizer.convert_tokens_to_ids(entry["content"]) == int(index)
        assert tokenizer(entry["content"], add_special_tokens=False)["input_ids"] == [int(index)]
    assert len(tokenizer) == config["llm_config"]["vocab_size"]
    assert json.loads((native / "config.json").read_text())["image_token_id"] == tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    assert json.loads((native / "generation_config.json").read_text())["eos_token_id"] == [tokenizer.eos_token_id]
    for text in PROBES:
        lossless = text.replace("▁", " ") if is_internlm2(config) else text  # sentencepiece writes a blank as that character
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == lossless


@pytest.mark.parametrize("dummy_prefix", [False, True])
def test_sentencepiece_ids_are_kept(tmp_path: Path, dummy_prefix: bool) -> None:
    """Ids of random texts against sentencepiece itself, also after a round trip through the files."""
    write_checkpoint(tmp_path / "fresh", internlm2_config())
    write_internlm2_tokenizer(tmp_path / "fresh", dummy_prefix=dummy_prefix)  # the same pieces, another setting
    tokenizer = load_tokenizer(convert(tmp_path / "fresh", tmp_path / "native"))
    added = {token: tokenizer.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>", "<img>")}
    rng = np.random.default_rng(0)
    alphabet = list("the red cup moves 123 了什么é🎬\n\t") + [" ", " ", " "]
    texts = ["".join(rng.choice(alphabet, rng.integers(1, 40))) for _ in range(200)]
    check_against_sentencepiece(tokenizer, tmp_path / "fresh" / "tokenizer.model", added, texts)
    plain = tokenizer("the red cup", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(plain)[0].startswith("▁") == dummy_prefix
    assert tokenizer.decode(plain) == "the red cup"


def test_the_check_against_sentencepiece_can_fail(source: Path, tmp_path: Path) -> None:
    from tokenizers import normalizers

    tokenizer = load_tokenizer(convert(source, tmp_path / "native"))
    added = {"<|im_end|>": 3, "<|im_start|>": 4}
    check_against_sentencepiece(tokenizer, source / "tokenizer.model", added)
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    with pytest.raises(CheckpointError, match="differs from sentencepiece"):
        check_against_sentencepiece(tokenizer, source / "tokenizer.model", added)


def test_broken_tokenizers(source: Path, tmp_path: Path) -> None:
    model = source / "tokenizer.model"
    whole, settings = model.read_bytes(), (source / "tokenizer_config.json").read_text()
    model.write_bytes(whole[:500])
    with pytest.raises(CheckpointError, match="sentencepiece model"):
        convert(source, tmp_path / "native")
    model.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="sentencepiece model"):
        convert(source, tmp_path / "native")
    model.unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: no such file"):
        convert(source, tmp_path / "native")
    write_internlm2_tokenizer(source, kind="unigram")
    with pytest.raises(CheckpointError, match="not a BPE model"):
        convert(source, tmp_path / "native")
    model.write_bytes(whole)
    config = json.loads(settings)
    config["added_tokens_decoder"]["5000"] = {"content": "<extra>"}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="'<extra>'"):
        convert(source, tmp_path / "native")
    config["added_tokens_decoder"] = {key: entry for key, entry in config["added_tokens_decoder"].items() if "IMG" not in entry["content"]}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="has no <IMG_CONTEXT>"):
        convert(source, tmp_path / "native")
    assert not (tmp_path / "native").exists()


CONVERSATION = """
raise SystemExit("this file must never be run")
register_conv_template(Conversation(name='other', sep_style=SeparatorStyle.CHATML, sep='x', roles=('a', 'b')))
register_conv_template(
    Conversation(
        name='internvl2_5',
        system_template='<|im_start|>system\\n{system_message}',
        # a comment
        system_message='You answer '
        'briefly. "Quoted" \\\\ and {braces}',
        roles=('<|im_start|>user\\n', '<|im_start|>assistant\\n'),
        sep_style=SeparatorStyle.MPT,
        sep='<|im_end|>\\n',
    )
)
"""


def test_the_system_message_is_read_from_the_checkpoints_own_file(source: Path, tmp_path: Path) -> None:
    (source / "conversation.py").write_text(CONVERSATION)
    tokenizer = load_tokenizer(convert(source, tmp_path / "native"))
    turns = [
        {"role": "user", "content": "one {{ x }}"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": [{"type": "text", "text": "three"}]},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == (
        '<s><|im_start|>system\nYou answer briefly. "Quoted" \\ and {braces}<|im_end|>\n<|im_start|>user\none {{ x }}<|im_end|>\n'
        "<|im_start|>assistant\ntwo<|im_end|>\n<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n"
    )
    own = [{"role": "system", "content": "mine"}, *turns[:1]]
    assert tokenizer.apply_chat_template(own, tokenize=False) == (
        "<s><|im_start|>system\nmine<|im_end|>\n<|im_start|>user\none {{ x }}<|im_end|>\n"
    )


@pytest.mark.parametrize(
    ("template", "code", "message"),
    [
        ("other", CONVERSATION, "another style than MPT"),
        ("phi3-chat", CONVERSATION, "template 'phi3-chat' is not known"),
        ("internvl2_5", "def broken(:", "cannot be parsed"),
    ],
)
def test_conversations_that_cannot_be_read(source: Path, tmp_path: Path, template: str, code: str, message: str) -> None:
    (source / "conversation.py").write_text(code)
    edit_config(source, template=template)
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "native")


# what can be wrong with a source


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ps_version": "v1"}, "pixel shuffle v2 only"),
        ({"select_layer": -2}, "select_layer -2"),
        ({"force_image_size": 448}, "force_image_size 448 differs"),
        ({"use_llm_lora": 8}, "merge them into the weights"),
        ({"llm_config__architectures": ["Phi3ForCausalLM"]}, "Phi3ForCausalLM is not supported.*InternLM2ForCausalLM, Qwen2ForCausalLM"),
        ({"llm_config__hidden_size": None}, "llm_config.hidden_size: Field required"),
        ({"llm_config__rope_scaling": {"type": "yarn", "factor": 4}}, "llm_config.rope_scaling.type"),
        ({"llm_config__num_key_value_heads": 3}, "do not divide"),
        ({"llm_config__intermediate_size": 64}, "of another shape.*config.json says"),
        ({"llm_config__num_hidden_layers": 3}, "9 missing .first: model.language_model.layers.2"),
        ({"llm_config__num_hidden_layers": 1}, "9 unexpected .first: model.language_model.layers.1"),
        ({"llm_config__vocab_size": 100}, "id 100|has id .* but the model has 100 embeddings"),
        ({"model_type": "internvl"}, "that is native already"),
        ({"model_type": "llava"}, "not 'internvl_chat'"),
        ({"template": None}, "template: Field required"),
    ],
)
def test_configs_that_do_not_fit_are_refused_before_anything_is_written(
    source: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    edit_config(source, **change)
    with pytest.raises(CheckpointError, match=message) as caught:
        convert(source, tmp_path / "native")
    assert str(source) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def rewrite(source: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = {key: tensor for path in sorted(source.glob("*.safetensors")) for key, tensor in load_file(path).items()}
    for path in source.glob("model*"):
        path.unlink()
    change(weights)
    write_shards(source, weights, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("mlp1.3.bias"), "1 missing .first: model.multi_modal_projector.linear_2.bias"),
        (lambda w: w.update({"mlp1.7.bias": torch.zeros(3)}), "no rule for tensor mlp1.7.bias"),
        (lambda w: w.update({"language_model.base_model.lora_A.weight": torch.zeros(3)}), "merge the LoRA"),
        (lambda w: w.update({"mlp1.3.bias": torch.zeros(5)}), r"another shape .*linear_2.bias is \(5,\), config.json says \(32,\)"),
        (
            lambda w: w.update({"language_model.model.layers.0.attention.wqkv.weight": torch.zeros(63, 32)}),
            "does not fit config.json's heads",
        ),
        (lambda w: w.update({"mlp1.3.bias": torch.zeros(32, dtype=torch.int8)}), "type I8 are not supported.*not quantized"),
        (lambda w: w.pop("language_model.output.weight"), "1 missing .first: lm_head.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused(source: Path, tmp_path: Path, change: Callable, message: str) -> None:
    rewrite(source, change)
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "native")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_derived_buffer_is_not_weights(source: Path, tmp_path: Path) -> None:
    rewrite(source, lambda w: w.update({f"{LAYER}.attention.rotary_emb.inv_freq": torch.zeros(4)}))
    load_native(convert(source, tmp_path / "native"))


def test_files_that_are_missing_or_broken(source: Path, tmp_path: Path) -> None:
    second = source / "model-00002-of-00003.safetensors"
    whole = second.read_bytes()
    second.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"00002.*broken or cut off at.*download it again"):
        convert(source, tmp_path / "native")
    second.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        convert(source, tmp_path / "native")
    second.unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors of 3 weight files missing"):
        convert(source, tmp_path / "native")
    for path in source.glob("model*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        convert(source, tmp_path / "native")
    (source / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        convert(source, tmp_path / "native")
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        convert(tmp_path, tmp_path / "native")
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        convert(tmp_path / "absent", tmp_path / "native")


def test_a_tensor_in_two_files(source: Path, tmp_path: Path) -> None:
    first = source / "model-00001-of-00003.safetensors"
    tensors = load_file(first)
    second = load_file(source / "model-00002-of-00003.safetensors")
    key = next(iter(second))
    save_file(tensors | {key: second[key]}, first)
    with pytest.raises(CheckpointError, match="is in two files"):
        convert(source, tmp_path / "native")


def test_a_full_disk_is_told_first(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match=r"GB needed and 0\.0 GB free"):
        convert(source, tmp_path / "native")
    assert not (tmp_path / "native").exists()


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
    assert not list(tmp_path.glob(".native*"))


def test_an_existing_target(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "native"
    target.mkdir()
    convert(source, target)  # an empty folder is taken
    before = {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
    assert convert(source, target) == target
    assert {path.name: path.stat().st_mtime_ns for path in target.iterdir()} == before
    os.utime(source / "model-00001-of-00003.safetensors", ns=(1, 1))
    with pytest.raises(CheckpointError, match="holds something else"):
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
        ("chat_template.jinja", "im_start", "im_begin"),
        ("config.json", '"image_seq_length": 4', '"image_seq_length": 5'),
    ):
        text = (copy / name).read_text()
        assert old in text
        (copy / name).write_text(text.replace(old, new))
        seen.add(weights_fingerprint(copy))
    shard = copy / "model-00002-of-00003.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(bytes(data))
    seen.add(weights_fingerprint(copy))
    assert len(seen) == 4
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        weights_fingerprint(tmp_path)
