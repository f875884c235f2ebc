"""The lmms-eval model on a tiny checkpoint: grouping by video, order, failures, journal, settings."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.data.layout import MediaIndex
from benchmarks.micro.world.videos import build_videos
from harness.run.journal import Journal
from harness.run.lmms_model import SaviLmms, generation_settings, weights_of
from harness.run.made_from import made_by
from savi.base.errors import SaviError, UsageError
from savi.engine.sampling import GenerationSettings
from savi.video.read import read_frames
from tests.savi.tiny import tiny_checkpoint, tiny_video_lm

PROMPTS = ["what is red", "where is the blue circle", "is the square still", "yes", "count", "ask spatial"]


@pytest.fixture(scope="module")
def lm() -> Any:
    return tiny_video_lm()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return build_videos(tmp_path_factory.mktemp("videos"), 3, seed=1)


def model(lm: Any, home: Path, **more: Any) -> SaviLmms:
    m = SaviLmms(lm=lm, num_frames=8, max_new_tokens=6, **more)
    m.media = MediaIndex(home)
    return m


def request(m: SaviLmms, i: int, prompt: str, visuals: Any, *, task: str = "some_task", **kwargs: Any) -> Any:
    """One request as lmms-eval makes it."""
    m.task_dict.setdefault(task, {"test": {}})["test"][i] = {"n": i}

    def doc_to_visual(doc: dict[str, Any]) -> list[Any]:
        if isinstance(visuals, BaseException):
            raise visuals
        return visuals if isinstance(visuals, list) else [str(visuals)]

    settings = {"until": ["\n\n"], **kwargs}
    return SimpleNamespace(args=(prompt, settings, doc_to_visual, i, task, "test"), metadata={})


def mixed(m: SaviLmms, videos: list[Path]) -> list[Any]:
    """Twelve questions, those on one video far apart."""
    return [request(m, i, PROMPTS[i % 6], videos[i % 3], max_new_tokens=5 if i % 2 else 7) for i in range(12)]


def test_answers_come_in_the_order_of_the_requests(lm: Any, videos: list[Path], tmp_path: Path) -> None:
    m = model(lm, tmp_path)
    found = m.generate_until(mixed(m, videos))
    for i, text in enumerate(found):
        alone = lm.watch(videos[i % 3], num_frames=8).ask([PROMPTS[i % 6]], max_new_tokens=5 if i % 2 else 7)[0]
        assert text == alone.text, i
        note = m.answers[("some_task", i)]
        assert (note.frames, note.tokens, note.finished, note.error) == (8, alone.tokens, alone.finished, "")
    assert len(set(found)) > 3


@pytest.mark.parametrize("rows", [1, 5])
def test_batch_size_changes_nothing(lm: Any, videos: list[Path], tmp_path: Path, rows: int) -> None:
    whole, small = model(lm, tmp_path), model(lm, tmp_path, rows=rows)
    assert small.generate_until(mixed(small, videos)) == whole.generate_until(mixed(whole, videos))


def test_a_video_is_decoded_once(lm: Any, videos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def counted(path: Path, **kwargs: Any) -> Any:
        seen.append(str(path))
        return read_frames(path, **kwargs)

    import harness.run.lmms_model as module

    prefetcher = module.FramePrefetcher
    monkeypatch.setattr(module, "FramePrefetcher", lambda *a, **k: prefetcher(*a, **k, read=counted))
    m = model(lm, tmp_path, rows=2)
    m.generate_until(mixed(m, videos))
    assert sorted(seen) == sorted(map(str, videos))


def test_generation_kwargs_are_not_touched(lm: Any, videos: list[Path], tmp_path: Path) -> None:
    m = model(lm, tmp_path)
    r = request(m, 0, "yes", videos[0], temperature=0, do_sample=False, num_beams=1)
    before = dict(r.args[1])
    m.generate_until([r])
    assert r.args[1] == before
    assert m.generation["some_task"] == {"max_new_tokens": 6, "temperature": 0.0, "top_p": 1.0, "seed": 0}


def test_failures_are_told_and_do_not_stop_the_rest(lm: Any, videos: list[Path], tmp_path: Path) -> None:
    m = model(lm, tmp_path)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    requests = [
        request(m, 0, "yes", videos[0]),
        request(m, 1, "yes", broken),
        request(m, 2, "yes", tmp_path / "nowhere.mp4"),
        request(m, 3, "yes", SystemExit("video path:x does not exist")),
        request(m, 4, "yes", []),
        request(m, 5, "count", videos[0]),
    ]
    found = m.generate_until(requests)
    assert found[1:5] == [""] * 4
    errors = [m.answers[("some_task", i)].error for i in range(6)]
    assert errors[0] == errors[5] == ""
    assert [str(e).split(":")[0] for e in errors[1:5]] == ["not_a_video", "missing", "missing", "no video"]
    assert "broken.mp4" in str(errors[1])
    assert found[0] == lm.watch(videos[0], num_frames=8).ask(["yes"], max_new_tokens=6)[0].text


def test_a_video_that_failed_is_read_again_only_when_asked(
    lm: Any, videos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import harness.run.lmms_model as module

    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    seen: list[str] = []

    def counted(path: Path, **kwargs: Any) -> Any:
        seen.append(path.name)
        return read_frames(path, **kwargs)

    prefetcher = module.FramePrefetcher
    monkeypatch.setattr(module, "FramePrefetcher", lambda *a, **k: prefetcher(*a, **k, read=counted))
    notes = []
    for retry in (False, False, True):
        m = model(lm, tmp_path, journal=str(tmp_path / "journal"))
        m.retry_failed = retry
        m.generate_until([request(m, 0, "yes", videos[0]), request(m, 1, "yes", broken)])
        notes.append(dict(m.answers))
        m.journal.close()
    assert notes[0] == notes[1] == notes[2]
    assert notes[0]["some_task", 0].decoder == "pyav"
    assert str(notes[0]["some_task", 1].error).startswith("not_a_video")
    assert seen.count("broken.mp4") == 2  # the first time, and when asked


def test_too_long_a_prompt_fails_alone(lm: Any, videos: list[Path], tmp_path: Path) -> None:
    m = model(lm, tmp_path)
    long = "red " * 20_000
    found = m.generate_until([request(m, 0, "yes", videos[0]), request(m, 1, long, videos[0]), request(m, 2, "count", videos[1])])
    assert str(m.answers[("some_task", 1)].error).startswith("too long")
    assert m.answers[("some_task", 0)].error == m.answers[("some_task", 2)].error == ""
    assert found[1] == ""


def test_padding_documents_are_not_asked(lm: Any, videos: list[Path], tmp_path: Path) -> None:
    m = model(lm, tmp_path)
    pad = request(m, 1, "yes", videos[0])
    pad.metadata["__padding_only__"] = True
    found = m.generate_until([request(m, 0, "yes", videos[0]), pad])
    assert found[1] == ""
    assert list(m.answers) == [("some_task", 0)]


def test_pictures_instead_of_a_file(lm: Any, videos: list[Path], tmp_path: Path) -> None:
    from PIL import Image

    frames = read_frames(videos[0], num_frames=8)
    m = model(lm, tmp_path)
    pictures = [Image.fromarray(f) for f in frames.pixels]
    uneven = [pictures[0], Image.fromarray(np.zeros((8, 8, 3), np.uint8))]
    found = m.generate_until([request(m, 0, "yes", pictures), request(m, 1, "yes", uneven)])
    assert m.answers[("some_task", 0)].frames == 8
    assert "differ in size" in str(m.answers[("some_task", 1)].error)
    assert found[1] == ""


def test_journalled_answers_are_not_asked_again(lm: Any, videos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = model(lm, tmp_path, rows=4)
    first.journal = Journal(tmp_path / "j")
    found = first.generate_until(mixed(first, videos))
    path = tmp_path / "j/journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 12
    path.write_bytes(b"".join(lines[:7]))  # killed in the middle of the second batch

    asked: list[int] = []
    real = type(lm).ask
    monkeypatch.setattr(type(lm), "ask", lambda self, items, *a, **k: (asked.append(len(items)), real(self, items, *a, **k))[1])
    again = model(lm, tmp_path, rows=4)
    again.journal = Journal(tmp_path / "j")
    assert again.generate_until(mixed(again, videos)) == found
    assert sum(asked) == 8
    other = model(lm, tmp_path, rows=4, seed=1)  # other settings: nothing is taken over
    other.journal = Journal(tmp_path / "j")
    asked.clear()
    other.generate_until(mixed(other, videos))
    assert sum(asked) == 12


def test_progress_is_reported(lm: Any, videos: list[Path], tmp_path: Path) -> None:
    m = model(lm, tmp_path, rows=4)
    seen: list[tuple[int, int]] = []
    m.progress = lambda done, total: seen.append((done, total))
    m.generate_until(mixed(m, videos))
    assert seen == [(0, 12), (4, 12), (8, 12), (12, 12)]


def test_clean_keeps_the_model(lm: Any, tmp_path: Path) -> None:
    m = model(lm, tmp_path)
    m.clean()
    assert m.lm is lm
    assert m.lm.model is not None


def test_settings() -> None:
    greedy = generation_settings({"max_new_tokens": 16, "temperature": 0, "do_sample": False}, max_new_tokens=99, seed=3)
    assert greedy == GenerationSettings(max_new_tokens=16, temperature=0.0, top_p=1.0, seed=3)
    assert generation_settings({"until": ["x"], "do_sample": False}, max_new_tokens=99, seed=0).max_new_tokens == 99
    sampled = generation_settings({"temperature": 0.7, "top_p": 0.9, "do_sample": True}, max_new_tokens=9, seed=0)
    assert (sampled.temperature, sampled.top_p) == (0.7, 0.9)
    with pytest.raises(ValueError, match="num_beams=3"):
        generation_settings({"num_beams": 3}, max_new_tokens=9, seed=0)


def test_bad_arguments_are_named(lm: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pretrained=PATH"):
        SaviLmms()
    with pytest.raises(ValueError, match="num_frames is 0"):
        SaviLmms(lm=lm, num_frames=0)
    with pytest.raises(ValueError, match="pyav, decord, torchcodec"):
        SaviLmms(lm=lm, decoder="cv2")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="nowhere"):
        weights_of(tmp_path / "nowhere")
    with pytest.raises(SaviError, match=r"config\.json"):
        SaviLmms(str(tmp_path))


def test_from_an_argument_string_as_on_lmms_evals_command_line(tmp_path: Path, videos: list[Path]) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    m = SaviLmms.create_from_arg_string(
        f"pretrained={checkpoint},num_frames=4,max_new_tokens=3,journal={tmp_path / 'j'}", {"batch_size": 1, "device": None}
    )
    m.media = MediaIndex(tmp_path)
    m.generate_until([request(m, 0, "yes", videos[0])])
    assert m.frame_settings["num_frames"] == 4
    assert m.answers[("some_task", 0)].frames == 4
    assert len(Journal(tmp_path / "j", made_by=made_by())) == 1
    assert weights_of(checkpoint) == m.lm.fingerprint


def test_the_names_of_lmms_evals_internvl2_are_taken(lm: Any) -> None:
    assert SaviLmms(lm=lm).num_frames == 32
    assert SaviLmms(lm=lm, num_frame=16, modality="video").num_frames == 16
    assert SaviLmms(lm=lm, num_frame=16, num_frames=16).num_frames == 16
    with pytest.raises(ValueError, match="num_frames is 8 and 16"):
        SaviLmms(lm=lm, num_frame=16, num_frames=8)
    with pytest.raises(ValueError, match="modality is 'image'"):
        SaviLmms(lm=lm, modality="image")
