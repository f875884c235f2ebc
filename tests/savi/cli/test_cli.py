"""`python -m savi` as its users meet it: answers, JSON, and for every mistake one clear line and its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import savi.__main__ as cli
from savi.base.files import read_jsonl
from savi.video.frames import segment_indices
from tests.savi.clips import grey_frames, write_clip
from tests.savi.tiny import tiny_checkpoint

ROOT = Path(__file__).parents[3]


def run(*arguments: object, **environment: str) -> Result:
    return CliRunner(env={"SAVI_MODEL": "", "COLUMNS": "200", **environment}).invoke(cli.app, [str(argument) for argument in arguments])


def failed(result: Result, code: int) -> str:
    """The one line of an error that was foreseen."""
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return result.stderr


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", grey_frames(12, width=64, height=64))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


def test_ask_prints_the_answer(clip: Path, model: Path) -> None:
    import savi

    result = run("ask", clip, "what is red", "--model", model, "--num-frames", 4, "--max-new-tokens", 6)
    assert result.exit_code == 0, result.output
    expected = savi.VideoLM.from_pretrained(model).watch(clip, num_frames=4).ask(["what is red"], max_new_tokens=6)[0]
    assert result.stdout == expected.text + "\n"
    assert ("--max-new-tokens" in result.stderr) == (not expected.finished)


def test_ask_several_as_json(clip: Path, model: Path) -> None:
    questions = ["what is red", "where is the circle", "what is red"]
    result = run("ask", clip, *questions, "-m", model, "-n", 4, "--max-new-tokens", 6, "--json")
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert [answer["question"] for answer in value["answers"]] == questions
    assert value["answers"][0] == value["answers"][2]
    assert value["frames"]["indices"] == segment_indices(12, 4)
    assert value["frames"]["total"] == 12
    assert value["settings"]["max_new_tokens"] == 6
    assert set(value["seconds"]) == {"decode", "load", "encode", "answer"}
    assert len(value["fingerprint"]) == 64
    single = run("ask", clip, questions[1], "-m", model, "-n", 4, "--max-new-tokens", 6, "--json")
    assert json.loads(single.stdout)["answers"][0] == value["answers"][1]


def test_draws_do_not_depend_on_the_other_questions(clip: Path, model: Path) -> None:
    settings = ("-m", model, "-n", 4, "--max-new-tokens", 12, "--temperature", 3, "--json")

    def texts(*questions: str, seed: int = 0) -> list[str]:
        return [answer["text"] for answer in json.loads(run("ask", clip, *questions, *settings, "--seed", seed).stdout)["answers"]]

    alone = texts("what is red")
    assert texts("where is the circle", "what is red")[1:] == alone
    first, second = texts("what is red", "what is red")
    assert first == alone[0]
    assert first != second
    assert texts("what is red", seed=1) != alone


def test_follow_up_questions_are_asked_in_the_conversation(clip: Path, model: Path, tmp_path: Path) -> None:
    import savi

    out = tmp_path / "answers.json"
    settings = ("-m", model, "-n", 4, "--max-new-tokens", 6)
    asked = ("ask", clip, "what is red", "yes", "--follow-up", "where is it", "--follow-up", "no", *settings)
    result = run(*asked, "--json", "--out", out)
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert json.loads(out.read_text()) == value
    video = savi.VideoLM.from_pretrained(model).watch(clip, num_frames=4)
    for answer in value["answers"]:
        history: list[tuple[str, str]] = []
        for said in (answer, *answer["follow_ups"]):
            assert said["text"] == video.ask(said["question"], history=history, max_new_tokens=6).text
            history.append((said["question"], said["text"]))
        assert [question for question, _ in history[1:]] == ["where is it", "no"]
    shown = [line[2:] for line in run(*asked).stdout.splitlines() if line.startswith("> ")]
    assert shown == ["what is red", "where is it", "no", "yes", "where is it", "no"]
    kept = out.read_bytes()
    assert "is there already" in failed(run(*asked, "--out", out), 2)
    assert out.read_bytes() == kept


def test_answers_are_not_lost_when_a_follow_up_does_not_fit(clip: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.json"
    long = " ".join(["red"] * 2000)
    result = run("ask", clip, "what is red", "--follow-up", long, "-m", model, "-n", 4, "--max-new-tokens", 6, "--out", out)
    assert "context" in failed(result, 2)
    (answer,) = json.loads(out.read_text())["answers"]
    assert answer["follow_ups"] == []
    assert result.stdout == answer["text"] + "\n"


def test_answers_are_printed_where_the_file_cannot_be_written(clip: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("ask", clip, "what is red", "-m", model, "-n", 4, "--max-new-tokens", 6, "--out", tmp_path / "file" / "answers.json")
    assert str(tmp_path / "file") in failed(result, 5)
    assert result.stdout.strip()


def test_frames_may_be_cut_into_tiles(model: Path, tmp_path: Path) -> None:
    import savi

    wide = write_clip(tmp_path / "wide.mp4", grey_frames(6, width=160, height=64))
    base = ("ask", wide, "what is red", "-m", model, "-n", 2, "--max-new-tokens", 6, "--json")
    whole, tiled = (json.loads(run(*base, *more).stdout) for more in ((), ("--max-tiles", 12, "--dtype", "float32")))
    assert (whole["max_tiles"], tiled["max_tiles"]) == (1, 12)
    assert whole["fingerprint"] != tiled["fingerprint"]
    watched = savi.VideoLM.from_pretrained(model, max_tiles=12).watch(wide, num_frames=2)
    assert watched.features.tokens == 2 * 11 * 4, "5 x 2 tiles and a thumbnail, 4 tokens each"
    assert tiled["answers"][0]["text"] == watched.ask("what is red", max_new_tokens=6).text
    assert "multiple of 32" in failed(run(*base, "--input-size", 40), 2)
    assert json.loads(run(*base, "--input-size", 32).stdout)["input_size"] == 32


def test_the_model_may_come_from_the_environment(clip: Path, model: Path) -> None:
    assert run("ask", clip, "what", "--max-new-tokens", 1, SAVI_MODEL=str(model)).exit_code == 0
    assert "SAVI_MODEL" in run("ask", "--help").stdout
    assert "--model" in failed(CliRunner(env={"SAVI_MODEL": None}).invoke(cli.app, ["ask", str(clip), "what"]), 2)


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [(None, 2, "no such file"), (b"", 4, "empty"), (b"text " * 99, 4, "not a video"), ("half", 4, "truncated at")],
)
def test_ask_about_a_video_that_is_none(clip: Path, model: Path, tmp_path: Path, content: Any, code: int, message: str) -> None:
    video = tmp_path / "video.mp4"
    if content is not None:
        video.write_bytes(clip.read_bytes()[:1000] if content == "half" else content)
    error = failed(run("ask", video, "what", "--model", model), code)
    assert error.startswith(f"error: {video}: ")
    assert message in error
    assert error.count("\n") == 1


def test_models_that_are_none(clip: Path, tmp_path: Path) -> None:
    assert "not a shipped model (micro)" in failed(run("ask", clip, "what", "--model", "mikro"), 2)
    assert "no such checkpoint folder" in failed(run("ask", clip, "what", "--model", tmp_path / "absent"), 2)
    assert "no config.json" in failed(run("ask", clip, "what", "--model", tmp_path), 2)
    (tmp_path / "config.json").write_text('{"model_type": "internvl_chat"}')
    assert "llm_config: Field required" in failed(run("ask", clip, "what", "--model", tmp_path), 4)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "'bert' is not supported" in failed(run("ask", clip, "what", "--model", tmp_path), 2)
    (tmp_path / "config.json").write_text("{")
    failed(run("ask", clip, "what", "--model", tmp_path), 4)


def test_a_hub_id_without_a_network(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    error = failed(run("ask", clip, "what", "--model", "nobody/nothing", HF_HUB_OFFLINE="1"), 5)
    assert "not in the hub's cache" in error
    assert "HF_HUB_OFFLINE is set" in error


def test_wrong_use(clip: Path, model: Path, tmp_path: Path) -> None:
    base = ("ask", clip, "what", "--model", model)
    assert "empty" in failed(run("ask", clip, " ", "--model", model), 2)
    assert "QUESTION" in failed(run("ask", clip, "--model", model), 2)
    assert "num-frames" in failed(run(*base, "--num-frames", 0), 2)
    assert "top_p" in failed(run(*base, "--top-p", 0), 2)
    assert "no such device" in failed(run(*base, "--device", "tpu9"), 2)
    assert "context" in failed(run(*base, "--max-new-tokens", 100_000), 2)
    assert "prompts 'other'" in failed(run("pairs", clip, "--out", tmp_path / "p.jsonl", "--model", model, "--prompts", "other"), 2)


def test_a_device_that_is_not_there(clip: Path, model: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    assert "no CUDA device" in failed(run("ask", clip, "what", "--model", model, "--device", "cuda"), 5)


def test_a_model_with_a_missing_tensor(clip: Path, model: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    tensors = load_file(broken / "model.safetensors")
    del tensors[next(key for key in tensors if key.endswith("mlp.up_proj.weight"))]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    assert "missing keys" in failed(run("ask", clip, "what", "--model", broken), 4)


# pairs


def test_pairs_without_any_pair_says_why(clip: Path, model: Path, tmp_path: Path) -> None:
    """A random model writes nothing readable: every question is accounted for, the broken video listed, the exit code 1."""
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(clip.read_bytes())
    (folder / "broken.mp4").write_text("no video")
    out = tmp_path / "out" / "pairs.jsonl"
    result = run("pairs", folder, clip, "--out", out, "--model", model, "--prompts", "micro", "--questions-per-kind", 1, "--json")
    counts = json.loads(result.stdout)
    assert (counts["videos"], counts["broken"], counts["questions"]) == (3, 1, 4)
    assert counts["pairs"] + sum(counts["dropped"].values()) == 4
    assert counts["pairs"] == len(list(read_jsonl(out)))
    assert result.exit_code == (0 if counts["pairs"] else 1)
    assert [row["where"] for row in read_jsonl(out.with_name("failures.jsonl"))] == ["broken.mp4"]
    assert len(list(read_jsonl(out.with_name("dropped.jsonl")))) == sum(counts["dropped"].values())
    again = ("pairs", folder, clip, "--out", out, "--model", model, "--prompts", "micro", "--questions-per-kind", 1)
    assert "1 of 3 videos failed, more than --fail-over 30%" in failed(run(*again, "--fail-over", "30%"), 5)


def test_pairs_that_are_made_and_gone_on_with(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.savi.scripted import ScriptedLM, micro_reply

    monkeypatch.setattr(cli, "open_asker", lambda *_: ScriptedLM(micro_reply))
    out = tmp_path / "pairs.jsonl"
    first = run("pairs", clip, "--out", out, "--model", "unused", "--prompts", "micro")
    assert first.exit_code == 0, first.output
    rows = list(read_jsonl(out))
    assert rows
    assert f"{len(rows)} pairs" in first.stdout
    assert str(out) in first.stdout
    before = out.read_bytes()
    assert run("pairs", clip, "--out", out, "--model", "unused", "--prompts", "micro").stdout == first.stdout
    assert out.read_bytes() == before
    failed(run("pairs", clip, "--out", out, "--model", "unused", "--prompts", "micro", "--seed", 1), 2)


def test_pairs_of_nothing(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl"
    assert "no video in this folder" in failed(run("pairs", tmp_path, "--out", out, "--model", model), 4)
    assert "no such file" in failed(run("pairs", tmp_path / "absent.mp4", "--out", out, "--model", model), 2)
    assert not out.exists()


# convert


def test_convert_and_what_can_be_wrong(tmp_path: Path) -> None:
    from tests.savi.internvl_chat import qwen2_config, write_checkpoint

    source, target = tmp_path / "source", tmp_path / "native"
    write_checkpoint(source, qwen2_config())
    result = run("convert", source, target, "--json")
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["fingerprint"]) == 64
    assert "python -m savi ask" in run("convert", source, target).stdout  # again: there already
    assert "holds something else" in failed(run("convert", source, source), 2)
    assert "no such checkpoint folder" in failed(run("convert", tmp_path / "absent", target), 2)
    (source / "model.safetensors").write_bytes(b"x" * 100)
    assert "download it again" in failed(run("convert", source, tmp_path / "other"), 4)


def test_convert_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    from tests.savi.internvl_chat import qwen2_config, write_checkpoint

    write_checkpoint(tmp_path / "source", qwen2_config())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    assert "GB needed" in failed(run("convert", tmp_path / "source", tmp_path / "native"), 5)


# the package


def test_help_is_quick_and_a_real_process_keeps_the_exit_code(tmp_path: Path) -> None:
    code = "import sys, savi.__main__ as m\ntry: m.app(['--help'])\nfinally: assert not {'torch', 'transformers', 'av'} & set(sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for command in ("ask", "pairs", "convert", "Exit codes"):
        assert command in shown.stdout
    command = [sys.executable, "-m", "savi", "ask", str(tmp_path / "absent.mp4"), "what", "--model", "x"]
    wrong = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert wrong.returncode == 2
    assert wrong.stderr == f"error: {tmp_path / 'absent.mp4'}: no such file\n"


def test_public_names() -> None:
    import savi

    assert sorted(savi.__all__) == sorted(savi._EXPORTS)
    for name in savi.__all__:
        assert callable(getattr(savi, name)), name
    assert set(savi.__all__) <= set(dir(savi))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = savi.nothing


def test_the_loop_and_the_training_are_plain_functions_with_signatures() -> None:
    import inspect
    import pydoc

    import savi

    for function, parameters in ((savi.propose, ["lm", "videos", "settings"]), (savi.train, ["lm", "pairs", "settings", "out_dir"])):
        assert inspect.isfunction(function)
        assert list(inspect.signature(function).parameters)[: len(parameters)] == parameters
        shown = pydoc.render_doc(function, renderer=pydoc.plaintext).split("\n\n")[1]
        assert "".join(shown.split()).startswith(f"{function.__name__}(lm:")  # Python 3.13 puts each parameter on a line of its own
    assert not {"self_align", "train_dpo"} & set(dir(savi))


def test_the_torchvision_workaround_is_safe_to_repeat() -> None:
    code = (
        "from savi.base.torchvision import fix_torchvision as fix\n"
        "import sys\nassert 'torch' not in sys.modules\n"
        "first = fix()\nassert not fix()\nimport torchvision\nassert not fix()\n"
        "import torchvision.transforms.v2\nprint(first)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() in {"True", "False"}
