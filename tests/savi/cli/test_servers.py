"""Servers on the command line: `savi pairs` and `savi align`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.savi.cli.test_cli import failed, run
from tests.savi.scripted import write_clips
from tests.savi.server.stub import serve
from tests.savi.server.test_server import scripted
from tests.savi.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_clips(folder, 3)
    return folder


def test_pairs_of_a_server(videos: Path, tmp_path: Path) -> None:
    with serve(scripted) as (url, seen):
        arguments = ("pairs", videos, "--model", f"openai:{url}#stub", "--out", tmp_path / "pairs.jsonl", "--prompts", "micro")
        more = ("--num-frames", 4, "--server", "output_price=1000", "--server", "frames=png")
        said = run(*arguments, *more)
        assert said.exit_code == 0, said.output
        assert "asked of the model's server: " in said.stdout and ", cost 0." in said.stdout
        count = len(seen.bodies)
        found = json.loads(run(*arguments, *more, "--json").stdout)
        assert found["usage"]["model"]["requests"] == count == len(seen.bodies), "run again, it asks nothing"
        assert found["usage"]["model"]["cost"] > 0
        assert "--server speed: " in failed(run(*arguments, "--server", "speed=9"), 2)
        assert "serves stub, not other" in failed(run("pairs", videos, "--model", f"openai:{url}#other", "--out", tmp_path / "x.jsonl"), 2)
    assert "no server answers" in failed(run(*arguments[:-4], "--out", tmp_path / "y.jsonl"), 5)


def test_align_takes_a_server_as_critic_only(videos: Path, tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "tiny")
    with serve(scripted) as (url, _):
        server = f"openai:{url}#stub"
        said = failed(run("align", videos, "--model", server, "--out", tmp_path / "run"), 2)
        assert "a server's cannot be trained" in said and "`savi pairs`" in said
        assert not (tmp_path / "run").exists()
        settings = ("--num-frames", 4, "--learning-rate", 1e-3, "--iterations", 1, "--prompts", "micro", "--json")
        run("align", videos, "--model", model, "--critic", server, "--out", tmp_path / "run", *settings)
        header = json.loads((tmp_path / "run/iter-1/pairs.journal.jsonl").read_text().splitlines()[0])
        assert "critic" in header
        other = run("align", videos, "--model", model, "--out", tmp_path / "run", *settings)
        assert "another critic" in failed(other, 2)
