"""A server in the place of a model: the same pairs as without faults, nothing asked twice, nothing secret written down."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from savi.base.errors import ExitCode, FileFormatError, ResumeError, UsageError
from savi.engine.sampling import GenerationSettings
from savi.loop.journal import read_counts, read_usage
from savi.loop.preferences import read_pairs
from savi.loop.propose import AlignSettings, propose
from savi.server.client import RefusedError, ServerError
from savi.server.server_lm import ServerLM
from savi.server.settings import ServerSettings, parse_server, read_key, read_settings
from savi.server.usage import Usage
from savi.video.frames import Frames
from savi.video.read import read_frames
from tests.savi.scripted import FRAMES, ScriptedLM, micro_reply, write_clips
from tests.savi.server.stub import FAULTS, FRAME_TOKENS, faulty, serve
from tests.savi.tiny import tiny_video_lm

SETTINGS = AlignSettings(num_frames=FRAMES, questions_per_kind=2, prompts="micro", chunk_videos=3, seed=5)
QUICK = ServerSettings(backoff_s=0.01, timeout_s=5, frames="png", input_price=1.0, output_price=10.0)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_clips(tmp_path_factory.mktemp("clips"), 4)


def scripted(frames: list[np.ndarray], prompt: str, body: dict[str, Any]) -> tuple[str, int, bool]:
    """What `micro_reply` says, drawn from the request's seed and the frames."""
    text = micro_reply("", prompt, f"{body['seed']}/{[frame.sum() for frame in frames]}")
    return text, len(text.split()) + 1, True


def served(url: str, settings: ServerSettings = QUICK) -> ServerLM:
    return ServerLM(f"openai:{url}#stub", settings)


def pairs_of(lm: Any, clips: list[Path], folder: Path, settings: AlignSettings = SETTINGS, critic: Any = None) -> dict[str, bytes]:
    list(propose(lm, clips, settings, out=folder / "pairs.jsonl", critic=critic))
    return {name: (folder / name).read_bytes() for name in ("pairs.jsonl", "dropped.jsonl")}


def test_a_server_of_a_model_gives_the_models_own_replies(clips: list[Path]) -> None:
    """PNG frames lose nothing: asked greedily, the server says token for token what the model says on this machine."""
    lm = tiny_video_lm(layers=2)
    one = threading.Lock()
    settings = GenerationSettings(max_new_tokens=8)

    def answer(frames: list[np.ndarray], prompt: str, body: dict[str, Any]) -> tuple[str, int, bool]:
        with one:
            reply = lm.watch(np.stack(frames)).ask(prompt, max_new_tokens=body["max_tokens"], temperature=body["temperature"])
        return reply.text, reply.tokens, reply.finished

    videos = [read_frames(clip, num_frames=FRAMES) for clip in clips[:2]]
    prompts = ["what is red", "where is the circle", "count"]
    with serve(answer) as (url, _):
        remote = served(url)
        got = remote.ask([(shown, prompt) for shown in remote.watch_batch(videos) for prompt in prompts], settings)
    expected = lm.ask([(watched, prompt) for watched in lm.watch_batch(videos) for prompt in prompts], settings)
    assert [(reply.text, reply.tokens, reply.finished) for reply in got] == [(r.text, r.tokens, r.finished) for r in expected]
    assert len({reply.text for reply in got}) > 2


@pytest.mark.parametrize("form", ["jpeg", "png", "video_url"])
def test_frames_arrive(clips: list[Path], form: str) -> None:
    frames = read_frames(clips[0], num_frames=FRAMES)
    found: list[np.ndarray] = []

    def answer(got: list[np.ndarray], prompt: str, body: dict[str, Any]) -> tuple[str, int, bool]:
        found.extend(got)
        return "yes", 1, True

    with serve(answer) as (url, _):
        lm = served(url, QUICK.model_copy(update={"frames": form}))
        lm.ask([(lm.watch_batch([frames])[0], "q")], GenerationSettings())
    assert len(found) == FRAMES
    off = max(float(np.abs(a.astype(int) - b.astype(int)).mean()) for a, b in zip(found, frames.pixels, strict=True))
    assert off == 0 if form == "png" else off < 12


def test_pairs_of_a_server_and_what_they_cost(clips: list[Path], tmp_path: Path) -> None:
    with serve(scripted) as (url, seen):
        pairs_of(served(url), clips, tmp_path)
    assert len(read_pairs(tmp_path / "pairs.jsonl")) > 3
    assert read_counts(tmp_path / "pairs.jsonl").questions == 4 * 4
    used = read_usage(tmp_path / "pairs.jsonl")["model"]
    assert used.requests == len(seen.bodies) > 40
    assert used.retries == 0
    rows = [json.loads(line) for line in (tmp_path / "pairs.replies.jsonl").read_text().splitlines()]
    assert used.output_tokens == sum(row["tokens"] for row in rows)
    assert used.cost == pytest.approx((used.input_tokens + 10 * used.output_tokens) / 1e6)
    assert f"{used.requests} requests" in used.line() and "cached" in used.line() and "cost" in used.line()


@pytest.mark.parametrize("fault", FAULTS)
def test_the_same_pairs_with_every_third_request_broken(clips: list[Path], fault: str, tmp_path: Path) -> None:
    settings = replace(SETTINGS, questions_per_kind=1)
    # an empty reply is believed when it comes three times: one request at a time, so that no request meets the fault three times running
    at_once = 1 if fault == "empty reply" else 16
    quick = QUICK.model_copy(update={"timeout_s": 0.5 if fault == "time-out" else 5.0, "concurrency": at_once})
    broken: list[int] = []

    def fault_of(n: int) -> str | None:
        if n % 3:
            return None
        broken.append(n)
        return fault

    with serve(scripted) as (url, _), faulty(url, fault_of, retry_after="0.05", late_s=0.8) as way:
        for name, place in (("plain", url), ("broken", way)):
            (tmp_path / name).mkdir()
            pairs_of(served(place, quick), clips, tmp_path / name, settings)
    assert len(broken) > 5
    for name in ("pairs.jsonl", "dropped.jsonl"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    used = {name: read_usage(tmp_path / name / "pairs.jsonl")["model"] for name in ("plain", "broken")}
    assert used["broken"].requests == used["plain"].requests
    assert used["broken"].retries == len(broken)


def test_a_run_that_was_ended_asks_nothing_twice(clips: list[Path], tmp_path: Path) -> None:
    """The server goes away within a chunk; what it had replied is not asked again."""
    with serve(scripted) as (url, whole):
        (tmp_path / "straight").mkdir()
        straight = pairs_of(served(url), clips, tmp_path / "straight")
    asked = Counter(json.dumps(body, sort_keys=True) for body in whole.bodies)
    for end in (3, 10, len(whole.bodies) - 2):
        folder = tmp_path / str(end)
        folder.mkdir()
        with serve(scripted) as (url, seen):
            with faulty(url, lambda n, end=end: "500" if n >= end else None) as way:
                with pytest.raises(ServerError, match=r"no whole reply in 2 tries \(last: status 500: fault 500\)"):
                    pairs_of(served(way, QUICK.model_copy(update={"retries": 1})), clips, folder)
            assert pairs_of(served(url), clips, folder) == straight
        assert Counter(json.dumps(body, sort_keys=True) for body in seen.bodies) == asked, "each once, over both runs"


def test_replies_under_way_when_the_server_fails_are_kept(clips: list[Path], tmp_path: Path) -> None:
    """A fault that does not pass (404) ends the run; what was sent before it is answered, kept and not asked for again."""
    with serve(scripted, delay_s=0.3) as (url, seen):
        with faulty(url, lambda n: "404" if n == 6 else None) as way, pytest.raises(ServerError, match="status 404"):
            pairs_of(served(way), clips, tmp_path)
        sent = len(seen.bodies)
        assert sent >= 4
        pairs_of(served(url), clips, tmp_path)
    asked = Counter(json.dumps(body, sort_keys=True) for body in seen.bodies)
    assert set(asked.values()) == {1}


def test_a_video_goes_first_with_one_request_and_its_frames_first(clips: list[Path], tmp_path: Path) -> None:
    with serve(scripted, delay_s=0.02) as (url, seen):
        pairs_of(served(url), clips, tmp_path, replace(SETTINGS, questions_per_kind=4))
    used = read_usage(tmp_path / "pairs.jsonl")["model"]
    assert used.cached_tokens == FRAME_TOKENS * FRAMES * (used.requests - len(clips)), "computed once a video, cached for all others"
    for body in seen.bodies:
        kinds = [part["type"] for part in body["messages"][0]["content"]]
        assert kinds == ["text", *["image_url"] * FRAMES, "text"]
    assert 1 < seen.most <= QUICK.concurrency


def test_several_urls_share_the_videos(clips: list[Path], tmp_path: Path) -> None:
    with serve(scripted) as (one, first), serve(scripted) as (two, second):
        pairs_of(served(f"{one},{two}"), clips, tmp_path)
        videos = [{json.dumps(body["messages"][0]["content"][:-1]) for body in seen.bodies} for seen in (first, second)]
        (tmp_path / "alone").mkdir()
        pairs_of(served(one), clips, tmp_path / "alone")
    assert len(read_pairs(tmp_path / "pairs.jsonl")) == len(read_pairs(tmp_path / "alone" / "pairs.jsonl")) > 3
    assert not videos[0] & videos[1], "a video stays with one server"
    assert len(videos[0] | videos[1]) == len(clips)


def test_a_critic_on_a_server(clips: list[Path], tmp_path: Path) -> None:
    policy = ScriptedLM(micro_reply)
    with serve(lambda frames, prompt, body: ("the object is a cross so C", 7, True)) as (url, seen):
        pairs_of(policy, clips, tmp_path, critic=served(url))
        assert {pair.critique for pair in read_pairs(tmp_path / "pairs.jsonl")} == {"the object is a cross so C"}
        assert all(prompt.endswith("critique") for prompt in seen.prompts) and seen.prompts
        assert not any(key.endswith("critique") for batch in policy.batches for key in batch)
        assert set(read_usage(tmp_path / "pairs.jsonl")) == {"critic"}
        with pytest.raises(ResumeError, match="another critic"):
            pairs_of(ScriptedLM(micro_reply), clips, tmp_path)


def test_one_refused_request_leaves_the_rest(clips: list[Path], tmp_path: Path) -> None:
    with serve(scripted) as (url, _), faulty(url, lambda n: "400" if n == 5 else None) as way:
        pairs_of(served(way), clips, tmp_path)
    counts = read_counts(tmp_path / "pairs.jsonl")
    assert counts.dropped["no reply"] == 1 and counts.questions == 16
    rows = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    assert "refused the request with status 400: fault 400" in next(row["detail"] for row in rows if row["reason"] == "no reply")
    with serve(scripted) as (url, _), faulty(url, lambda n: "400") as way, pytest.raises(RefusedError, match="fault 400"):
        list(propose(served(way), clips, SETTINGS))


def test_retry_after_is_waited_for() -> None:
    for told in ("0.4", formatdate(time.time() + 2, usegmt=True)):
        with serve(lambda *_: ("yes", 1, True)) as (url, _), faulty(url, lambda n: None if n else "429", retry_after=told) as way:
            lm = served(way)
            began = time.monotonic()
            lm.ask([(_blank(lm), "q")], GenerationSettings())
            assert 0.35 < time.monotonic() - began < 5


def _blank(lm: ServerLM) -> Any:
    return lm.watch_batch([Frames(np.zeros((2, 8, 8, 3), np.uint8), (0, 1), fps=1.0, duration_s=2.0, total=2, path="blank.mp4")])[0]


def test_the_rate_limit_holds() -> None:
    with serve(lambda *_: ("yes", 1, True)) as (url, seen):
        lm = served(url, QUICK.model_copy(update={"requests_per_minute": 600.0}))
        began = time.monotonic()
        lm.ask([(_blank(lm), str(i)) for i in range(6)], GenerationSettings())
        assert time.monotonic() - began > 0.45, "six requests, a tenth of a second apart"
    assert len(seen.bodies) == 6


def test_the_key_comes_from_the_environment_and_is_written_nowhere(
    clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "sk-very-secret-1234"
    with serve(scripted, key=secret) as (url, seen):
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        with pytest.raises(ServerError, match=r"refuses the key.*Incorrect API key") as error:
            served(url)
        assert secret not in str(error.value)
        monkeypatch.setenv("OPENAI_API_KEY", secret)
        with caplog.at_level("DEBUG"):
            pairs_of(served(url), clips, tmp_path)
        assert seen.headers[0]["authorization"] == f"Bearer {secret}"
        monkeypatch.setenv("MINE", secret)
        monkeypatch.delenv("OPENAI_API_KEY")
        served(url, QUICK.model_copy(update={"key": "MINE"}))
    out = capfd.readouterr()
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir()).decode()
    assert secret not in written + caplog.text + out.out + out.err


def test_a_key_is_not_sent_in_clear_to_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    sent = {url: read_key(url, ServerSettings()) for url in ("https://api.x.org/v1", "http://localhost:8000/v1", "http://10.0.0.2:8000/v1")}
    assert list(sent.values()) == ["k", "k", None]
    monkeypatch.setenv("INNER", "i")
    assert read_key("http://10.0.0.2:8000/v1", ServerSettings(key="INNER")) == "i"
    with pytest.raises(UsageError, match="no such variable"):
        read_key("https://api.x.org/v1", ServerSettings(key="ABSENT"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("openai:http://localhost:8000/v1", "openai:URL#NAME"),
        ("openai:#x", "openai:URL#NAME"),
        ("openai:localhost#x", "not an http"),
        ("openai:http://a:port/v1#x", "not an http"),
        ("openai:https://me:sk-1@host/v1#x", "environment"),
        ("openai:https://host/v1?key=sk-1#x", "environment"),
    ],
)
def test_names_that_are_no_servers(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as error:
        parse_server(text)
    assert "sk-1" not in str(error.value)


def test_names_and_settings() -> None:
    server = parse_server("openai:http://a:1/v1/,https://b/v1/chat/completions#org/name#2")
    assert server.urls == ("http://a:1/v1", "https://b/v1") and server.model == "org/name#2"
    both = read_settings(["concurrency=3", "critic.frames=png", "timeout_s=1.5"])
    assert [(of.concurrency, of.frames, of.timeout_s) for of in both] == [(3, "jpeg", 1.5), (3, "png", 1.5)]
    for wrong in ("speed=3", "concurrency=0", "concurrency", "critic.frames=gif"):
        with pytest.raises(UsageError, match="--server"):
            read_settings([wrong])


def test_a_server_that_is_not_there_or_serves_another_model() -> None:
    with serve(scripted, model="other") as (url, _), pytest.raises(UsageError, match="serves other, not stub") as wrong:
        served(url)
    assert wrong.value.exit_code == ExitCode.USAGE
    with pytest.raises(ServerError, match="no server answers"):
        served(url)


def test_a_damaged_log_of_replies_is_named(clips: list[Path], tmp_path: Path) -> None:
    (tmp_path / "pairs.replies.jsonl").write_text('{"request": "a", "text": 3}\n')
    with serve(scripted) as (url, _), pytest.raises(FileFormatError, match=r"pairs\.replies\.jsonl:1: not a reply"):
        pairs_of(served(url), clips, tmp_path)


def test_inside_a_running_event_loop(clips: list[Path]) -> None:
    async def notebook(url: str) -> int:
        return len(list(propose(served(url), clips, SETTINGS)))

    with serve(scripted) as (url, _):
        assert asyncio.run(notebook(url)) > 3


def test_usage_adds_up() -> None:
    assert Usage(1, 2, 3, 4, 5, 6.0) + Usage(1, 1, 1, 1, 1, 1.0) == Usage(2, 3, 4, 5, 6, 7.0)
