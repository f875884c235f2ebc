"""What real servers do beside the protocol: unlisted models, frames left out in silence, no sampling, breaking on one request."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from savi.base.errors import UsageError
from savi.engine.sampling import GenerationSettings
from savi.loop.journal import read_counts
from savi.server.client import ServerError
from savi.server.server_lm import ServerLM
from savi.server.settings import ServerSettings, read_settings
from savi.video.frames import Frames
from tests.savi.scripted import write_clips
from tests.savi.server.stub import faulty, serve
from tests.savi.server.test_server import QUICK, pairs_of, scripted, served

SAMPLED = GenerationSettings(max_new_tokens=8, temperature=1.0)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_clips(tmp_path_factory.mktemp("clips"), 2)


def blank(lm: ServerLM, frames: int = 2) -> Any:
    pixels = np.zeros((frames, 8, 8, 3), np.uint8)
    return lm.watch_batch([Frames(pixels, tuple(range(frames)), fps=1.0, duration_s=2.0, total=frames, path="blank.mp4")])[0]


def test_a_model_that_is_served_but_not_listed(clips: list[Path], tmp_path: Path) -> None:
    """`transformers serve` lists the hub's cache, whatever it serves."""
    with serve(scripted, listed="org/in-the-cache") as (url, _):
        pairs_of(served(url), clips, tmp_path)
        assert read_counts(tmp_path / "pairs.jsonl").pairs
        with pytest.raises(UsageError, match=r"serves org/in-the-cache, not other \(status 404: no model other\)"):
            ServerLM(f"openai:{url}#other", QUICK)


def test_a_server_that_leaves_out_the_frames_is_refused(clips: list[Path], tmp_path: Path) -> None:
    with serve(scripted, sees=False) as (url, seen):
        with pytest.raises(ServerError, match=r"stub there sees no frames \(as many input tokens with them as without, 2\)"):
            pairs_of(served(url), clips, tmp_path)
        assert len(seen.bodies) <= 1 + len(clips)
        (tmp_path / "trusted").mkdir()
        pairs_of(served(url, QUICK.model_copy(update={"check_frames": False})), clips, tmp_path / "trusted")
    assert not (tmp_path / "pairs.replies.jsonl").read_bytes(), "no blind reply is kept"
    with serve(scripted) as (url, _):
        pairs_of(served(url), clips, tmp_path)
    assert read_counts(tmp_path / "pairs.jsonl").pairs


def test_few_tokens_a_frame_are_frames_all_the_same() -> None:
    with serve(lambda *_: ("yes", 1, True)) as (url, seen):
        lm = served(url)
        long = " ".join(["word"] * 400)
        lm.ask([(blank(lm, 1), long), (blank(lm, 1), "short")], SAMPLED)
    assert len(seen.bodies) == 3, "counted once without its frame"
    assert [part["type"] for part in seen.bodies[1]["messages"][0]["content"]] == ["text", "text"]


def test_a_server_that_does_not_sample_is_told_of_once() -> None:
    with serve(lambda frames, prompt, body: (f"{prompt} yes", 1, True)) as (url, _):
        lm = served(url)
        items = [(blank(lm), prompt) for prompt in ("a", "a", "b", "b")]
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            lm.ask(items, GenerationSettings(max_new_tokens=8))  # greedily they have to be the same
            assert not told
            lm.ask(items, SAMPLED)
            lm.ask(items, SAMPLED)
        assert [str(one.message) for one in told] == [str(told[0].message)]
        assert "the same reply to each seed at temperature 1; it seems not to sample" in str(told[0].message)


def test_a_server_that_samples_is_not(clips: list[Path], tmp_path: Path) -> None:
    with serve(scripted) as (url, _), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pairs_of(served(url), clips, tmp_path)


def test_one_request_that_breaks_the_server_leaves_the_rest(clips: list[Path], tmp_path: Path) -> None:
    """Status 500 each time to one prompt: its question is dropped, with the server's words. Without other answers it ends the run."""
    settings = QUICK.model_copy(update={"retries": 2})
    bad: list[str] = []

    def breaks(body: dict[str, Any]) -> str | None:
        prompt = str(body["messages"][0]["content"][-1]["text"])
        if prompt.endswith("critique") and not bad:
            bad.append(prompt)
        return "500" if prompt in bad else None

    with serve(scripted) as (url, _), faulty(url, fault_in=breaks) as way:
        pairs_of(served(way, settings), clips, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    said = [row["detail"] for row in rows if row["reason"] == "no reply"]
    assert said and all(
        "broke on this request in 3 tries, and answered another in between (last: status 500: fault 500)" in one for one in said
    )
    assert read_counts(tmp_path / "pairs.jsonl").pairs
    with serve(scripted) as (url, _), faulty(url, fault_in=lambda body: "500") as way:
        lm = served(way, settings)
        with pytest.raises(ServerError, match="no whole reply"):
            lm.ask([(blank(lm), "a")], SAMPLED)


def test_further_fields_of_requests() -> None:
    given = 'extra_body={"chat_template_kwargs": {"enable_thinking": false}, "temperature": null}'
    settings = read_settings([given, "backoff_s=0.01"])[0]
    with serve(lambda *_: ("yes", 1, True)) as (url, seen):
        lm = ServerLM(f"openai:{url}#stub", settings)
        lm.ask([(blank(lm), "q")], SAMPLED)
        assert lm.fingerprint != ServerLM(f"openai:{url}#stub", QUICK).fingerprint, "another way of asking"
    (body,) = seen.bodies
    assert body["chat_template_kwargs"] == {"enable_thinking": False} and "temperature" not in body and body["top_p"] == 1.0
    for wrong in ("extra_body=no json", "extra_body=[1]", 'extra_body={"messages": []}', 'extra_body={"model": "x"}'):
        with pytest.raises(UsageError, match=r"--server extra_body: "):
            read_settings([wrong])
    assert ServerSettings(extra_body={"a": 1}).extra_body == {"a": 1}
