"""`savi pairs` against a real server, `transformers serve`: the shipped micro model sees the frames over HTTP as on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.micro.pretrain.recipe import BASE_DIR
from benchmarks.micro.world.videos import build_videos
from savi.conversion.checkpoint import convert
from savi.engine.sampling import GenerationSettings
from savi.engine.video_lm import VideoLM
from savi.loop.journal import read_counts, read_usage
from savi.loop.preferences import read_pairs
from savi.server.client import RefusedError, ServerError
from savi.server.server_lm import ServerLM
from savi.server.settings import ServerSettings
from savi.video.read import read_frames
from tests.savi.cli.test_cli import run
from tests.savi.internvl_chat import qwen2_config, write_checkpoint
from tests.savi.server.real import micro_folder, needs_transformers_serve, transformers_serve
from tests.savi.server.stub import FAULTS, faulty

FRAMES = 8
pytestmark = [pytest.mark.slow, needs_transformers_serve]

PNG = ServerSettings(frames="png", backoff_s=0.05, concurrency=1)
SAMPLING = 'extra_body={"generation_config": "{\\"do_sample\\": true}"}'
"""As docs/servers.md says it for a model whose own settings do not sample."""

ONE_TILE = {"chat_template_kwargs": {"processor_kwargs": {"crop_to_patches": False}}}
"""The same for InternVL, whose processor would cut each frame into up to twelve."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return build_videos(tmp_path_factory.mktemp("clips"), 6, seed=3)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """(URL, folder): the server names its model by the folder."""
    place = tmp_path_factory.mktemp("served")
    folder = micro_folder(place / "micro")
    with transformers_serve(folder, place / "server.log", "--dtype", "float32") as url:
        yield url, folder


def test_the_server_says_what_the_model_says_here(served: tuple[str, Path], clips: list[Path]) -> None:
    """Greedily, token for token, with its counts: the frames arrive, in their order."""
    url, folder = served
    lm, remote = VideoLM.from_pretrained(BASE_DIR, device="cpu"), ServerLM(f"openai:{url}#{folder}", PNG)
    videos = [read_frames(clip, num_frames=FRAMES) for clip in clips]
    prompts = ["ask spatial", "ask temporal", "what shape is the red object ? A circle B square C cross"]
    settings = GenerationSettings(max_new_tokens=24)
    got = remote.ask([(shown, prompt) for shown in remote.watch_batch(videos) for prompt in prompts], settings)
    expected = lm.ask([(watched, prompt) for watched in lm.watch_batch(videos) for prompt in prompts], settings)
    assert [(reply.text, reply.finished) for reply in got] == [(reply.text, reply.finished) for reply in expected]
    assert len({reply.text for reply in got}) > 2
    ids = [lm.prefix_ids(video.pixels).tolist() + lm.prompt_ids(prompt) for video in videos for prompt in prompts]
    assert [reply.usage.input_tokens for reply in got] == [len(row) for row in ids]


def arguments(model: str, clips: list[Path], out: Path, *server: str) -> list[object]:
    settings = [text for setting in ("frames=png", "backoff_s=0.05", *server) for text in ("--server", setting)]
    where = ["--out", out / "pairs.jsonl", "--prompts", "micro", "--num-frames", FRAMES, "--questions-per-kind", 3, "--json"]
    return ["pairs", *clips, "--model", model, *where, *settings]


def test_the_same_pairs_with_faults_in_the_way(served: tuple[str, Path], clips: list[Path], tmp_path: Path) -> None:
    """Sampled, one request at a time (it keeps one random stream for all): nine kinds of faults, and the pairs of a way without any."""
    url, folder = served
    broken: list[str] = []
    count = iter(range(10**6))

    def fault_in(body: dict[str, Any]) -> str | None:
        if body["max_tokens"] == 1 or (n := next(count)) % 4 != 2:  # of the requests for replies, each fourth
            return None
        fault = FAULTS[n // 4 % len(FAULTS)]
        broken.append("closed" if fault in broken and fault == "time-out" else fault)  # once: it is waited for
        return broken[-1]

    with faulty(url, fault_in=fault_in, retry_after="0.05", late_s=11) as way:
        for name, place, timeout_s in (("plain", url, 60), ("broken", way, 10), ("again", url, 60)):
            (tmp_path / name).mkdir()
            told = run(*arguments(f"openai:{place}#{folder}", clips, tmp_path / name, "concurrency=1", f"timeout_s={timeout_s}", SAMPLING))
            assert told.exit_code == 0, told.output
    pairs = read_pairs(tmp_path / "plain" / "pairs.jsonl")
    assert len(pairs) > 2 and len({pair.question for pair in pairs}) > 2
    for name in ("broken", "again"):
        for file in ("pairs.jsonl", "dropped.jsonl"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "plain" / file).read_bytes(), (name, file)
    assert set(broken) == set(FAULTS)
    assert read_usage(tmp_path / "broken" / "pairs.jsonl")["model"].retries == len(broken)


@pytest.mark.filterwarnings("ignore:.*the same reply to each seed")
def test_a_server_that_goes_away_is_gone_on_with(served: tuple[str, Path], clips: list[Path], tmp_path: Path) -> None:
    """Eight requests at a time, greedily; the way ends in the midst, and the same command asks only what is missing."""
    url, folder = served
    for name in ("plain", "ended"):
        (tmp_path / name).mkdir()
    with pytest.warns(UserWarning, match="the same reply to each seed"):  # the model's own settings do not sample
        plain = run(*arguments(f"openai:{url}#{folder}", clips, tmp_path / "plain"))
    assert plain.exit_code == 0, plain.output
    whole = read_usage(tmp_path / "plain" / "pairs.jsonl")["model"].requests
    sent: list[str] = []

    def pass_on(body: dict[str, Any], most: int = 10**9) -> str | None:
        if body["max_tokens"] == 1:  # a look at what it serves and sees, at the start of each command
            return None
        if len(sent) >= most:
            return "closed"
        sent.append(json.dumps(body))
        return None

    with faulty(url, fault_in=partial(pass_on, most=whole // 2)) as way:
        ended = run(*arguments(f"openai:{way}#{folder}", clips, tmp_path / "ended", "retries=1"))
    assert ended.exit_code == 5 and "run the same command to go on" in ended.stderr
    assert len(sent) == whole // 2
    with faulty(url, fault_in=pass_on) as way:
        assert run(*arguments(f"openai:{way}#{folder}", clips, tmp_path / "ended")).exit_code == 0
    assert len(set(sent)) == len(sent) == whole, "nothing twice"
    for file in ("pairs.jsonl", "dropped.jsonl"):
        assert (tmp_path / "ended" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()
    assert read_counts(tmp_path / "plain" / "pairs.jsonl").dropped["duplicate"]


def test_what_it_refuses_and_breaks_on(served: tuple[str, Path], clips: list[Path], tmp_path: Path) -> None:
    url, folder = served
    lm = ServerLM(f"openai:{url}#{folder}", PNG.model_copy(update={"extra_body": {"best_of_all": 1}}))
    shown = lm.watch_batch([read_frames(clip, num_frames=FRAMES) for clip in clips])
    with pytest.raises(RefusedError, match=r"status 422: Unexpected fields in the request"):
        lm.ask([(shown[0], "ask spatial")], GenerationSettings(max_new_tokens=4))
    other = run(*arguments(f"openai:{url}#other/model", clips, tmp_path))
    assert other.exit_code == 2 and "serves org/cached, not other/model (status 400: Server is pinned to" in other.stderr
    lm = ServerLM(f"openai:{url}#{folder}", PNG.model_copy(update={"retries": 1}))
    breaking = "what is <img> ?"  # taken for a frame that is not there
    with pytest.raises(ServerError):  # nothing was answered before, so the server itself may be broken
        lm.ask([(shown[0], breaking)], GenerationSettings(max_new_tokens=4))
    lm.ask([(shown[0], "ask spatial")], GenerationSettings(max_new_tokens=4))
    good, bad = lm.ask([(shown[0], "ask temporal"), (shown[1], breaking)], GenerationSettings(max_new_tokens=4))
    assert good.text and "broke on this request in 2 tries" in bad.refused


def test_a_converted_internvl_is_served(clips: list[Path], tmp_path: Path) -> None:
    """A folder of `savi convert` as it is, by its own processor. That one cuts images into tiles; told not to, it takes as many tokens a
    frame as we do: those of one tile, its two marks and a line's end."""
    write_checkpoint(tmp_path / "source", qwen2_config(max_position_embeddings=4096))
    folder = convert(tmp_path / "source", tmp_path / "native")
    videos = [read_frames(clips[0], num_frames=count) for count in (FRAMES, FRAMES // 2)]
    a_frame = {}
    with transformers_serve(folder, tmp_path / "server.log", "--dtype", "float32") as url:
        for name, fields in (("as it is", {}), ("one tile", ONE_TILE)):
            lm = ServerLM(f"openai:{url}#{folder}", PNG.model_copy(update={"extra_body": fields}))
            full, half = lm.ask([(shown, "what is left") for shown in lm.watch_batch(videos)], GenerationSettings(max_new_tokens=4))
            a_frame[name] = (full.usage.input_tokens - half.usage.input_tokens) / (FRAMES - FRAMES // 2)
    local = VideoLM.from_pretrained(folder, device="cpu")
    tokens = local.features(videos[0].pixels).tokens // FRAMES
    assert a_frame["one tile"] == tokens + 3 < a_frame["as it is"] - 4 * tokens


def test_a_model_of_text_alone_is_refused(clips: list[Path], tmp_path: Path) -> None:
    """The server leaves the images out of the requests and answers; the token counts give it away."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from tests.savi.tiny import sharpen, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        eos_token_id=2, pad_token_id=0, max_position_embeddings=256,
    )  # fmt: skip
    sharpen(Qwen2ForCausalLM(config)).save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    with transformers_serve(tmp_path / "text", tmp_path / "server.log") as url:
        said = run(*arguments(f"openai:{url}#{tmp_path / 'text'}", clips, tmp_path))
    assert said.exit_code == 5 and "there sees no frames (as many input tokens with them as without" in said.stderr
    assert (tmp_path / "pairs.replies.jsonl").read_bytes() == b"", "no blind reply is kept"
