"""Checkpoints whose files are damaged or hostile are refused in one line: the file, what is wrong, the fix. (More: tox -e fuzz.)"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from savi.base.errors import ExitCode, SaviError, UsageError
from savi.engine import reading
from savi.engine.reading import ModelError, check_template
from savi.engine.video_lm import VideoLM
from tests.savi.tiny import tiny_checkpoint, tiny_frames, tiny_video_lm


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def edit(path: Path, change: Callable[[dict], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.safetensors", "half", r"model\.safetensors: [\d,]+ bytes of weights cannot be read .*download it again"),
        ("model.safetensors", b"", r"model\.safetensors: 0 bytes of weights cannot be read"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not the file itself"),
        ("model.safetensors", None, r"no \*\.safetensors files"),
        ("config.json", b"{", r"config\.json.*(JSON|not)"),
        ("tokenizer.json", b"[1]", r"tokenizer\.json: holds a JSON list, not an object"),
        ("tokenizer.json", b"{}", "the tokenizer cannot be read"),
        ("tokenizer_config.json", b"\xff\xfe", r"tokenizer_config\.json: JSON cannot be read"),
        ("tokenizer_config.json", b"[" * 100_000, r"tokenizer_config\.json: JSON cannot be read"),
        ("preprocessor_config.json", b'{"image_mean": "x", "image_std": [0]}', r"preprocessor_config\.json cannot be read"),
        ("generation_config.json", b"null", r"generation_config\.json: holds a JSON NoneType"),
        ("chat_template.jinja", b"{% if %}", "the chat template takes neither plain text nor text parts of user.*Expected an expression"),
    ],
)
def test_broken_files_are_named(folder: Path, name: str, content: bytes | str | None, said: str) -> None:
    path = folder / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content == "half" else content)  # type: ignore[arg-type]
    with pytest.raises(SaviError, match=said) as caught:
        VideoLM.from_pretrained(folder, device="cpu")
    assert caught.value.exit_code == ExitCode.BROKEN
    assert str(folder) in str(caught.value) or folder.name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["text_config"].update(num_hidden_layers=10**9), r"text_config.num_hidden_layers is 1000000000, but the weights"),
        (lambda c: c["text_config"].update(vocab_size=10**12), r"text_config.vocab_size is 1000000000000, but the weights"),
        (lambda c: c["vision_config"].update(hidden_size=-3), r"vision_config.hidden_size is -3, but the weights"),
        (lambda c: c["text_config"].update(rope_parameters="x"), "weights and config.json cannot be read"),
    ],
)
def test_configs_of_another_model_are_refused_before_it_is_built(folder: Path, change: Callable[[dict], object], said: str) -> None:
    edit(folder / "config.json", change)
    before = time.monotonic()
    with pytest.raises(ModelError, match=said):
        VideoLM.from_pretrained(folder, device="cpu")
    assert time.monotonic() - before < 30


def test_code_that_comes_with_a_checkpoint_is_neither_run_nor_asked_about(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "evil.py").write_text("raise SystemExit('run')")
    edit(folder / "tokenizer_config.json", lambda c: c.update(auto_map={"AutoTokenizer": ["evil.Evil", None]}))
    edit(folder / "config.json", lambda c: c.update(auto_map={"AutoModelForImageTextToText": "evil.Evil"}))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    assert VideoLM.from_pretrained(folder, device="cpu").model.__class__.__name__ == "InternVLForConditionalGeneration"


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set x = 7 ** (7 ** 12) %}",
        "{{ 'x' * 10**9 }}",
        "{{ 'x' * 10**11 }}",
        "{{ messages[0].content }}" + "{{ 'xx' * 1000000 }}",
    ],
)
def test_endless_templates_are_refused(monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    monkeypatch.setattr(reading, "TEMPLATE_SECONDS", 1.5)
    with pytest.raises(ModelError, match=r"some/model: the chat template (takes over|writes without end)"):
        check_template(template, "some/model")


def test_sound_templates_pass(folder: Path) -> None:
    from tests.savi.tiny import FAMILY_TEMPLATES, TEMPLATE, _family_tokenizer

    for template in (
        TEMPLATE,
        *(_family_tokenizer(family).chat_template for family in FAMILY_TEMPLATES),
        "{{ raise_exception('no') }}",
        "{%",
    ):
        check_template(template, "some/model")


def test_a_template_that_fails_says_why(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('roles must be kings') }}")
    with pytest.raises(SaviError, match=r"neither plain text nor text parts of user.*roles must be kings"):
        VideoLM.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda c: c["text_config"].update(rope_parameters={"rope_type": "default", "rope_theta": 0}),
            "text_config.rope_parameters.rope_theta",
        ),
        (lambda c: c["text_config"].update(rms_norm_eps=float("nan")), "text_config.rms_norm_eps is nan"),
        (lambda c: c["text_config"].update(rms_norm_eps=-1.0), "text_config.rms_norm_eps is -1.0"),
        (lambda c: c.update(quantization_config={"quant_method": "gptq", "bits": 4}), r"quantized \(gptq\), which is not supported"),
    ],
)
def test_numbers_that_no_model_can_be_computed_with(folder: Path, change: Callable[[dict], object], said: str) -> None:
    edit(folder / "config.json", change)
    with pytest.raises(ModelError, match=said):
        VideoLM.from_pretrained(folder)


def test_half_characters_are_refused_by_name() -> None:
    watched = tiny_video_lm().watch(tiny_frames(0, 2))
    for text in ("what is \udce9 red", "\ud800"):
        with pytest.raises(UsageError, match="is not text: half a character at place"):
            watched.ask(["red", text])
        with pytest.raises(UsageError, match="is not text"):
            watched.score([("red", text)])


def test_a_machine_without_memory_is_no_broken_file(tmp_path: Path) -> None:
    with pytest.raises(MemoryError), reading.reading(tmp_path, "weights"):
        raise MemoryError
    with pytest.raises(KeyboardInterrupt), reading.reading(tmp_path, "weights"):
        raise KeyboardInterrupt
