"""`python -m harness view` as a user runs it."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.__main__ import app
from tests.harness.fake_run import write_fake_run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_its_address_and_ends_when_asked(tmp_path: Path, number: signal.Signals) -> None:
    write_fake_run(tmp_path / "runs" / "one", iterations=1, sizes={"egoschema": 24}, gates=False)
    command = [sys.executable, "-m", "harness", "view", str(tmp_path / "runs")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        address = process.stdout.readline().strip()
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert b"/run/one" in answer.read()
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "")
    assert "Traceback" not in err


def test_what_is_not_there_and_a_port_in_use(tmp_path: Path) -> None:
    import socket

    assert CliRunner().invoke(app, ["view", str(tmp_path / "nowhere")]).exit_code == 2
    assert CliRunner().invoke(app, ["view", str(tmp_path), "--data", str(tmp_path / "nowhere")]).exit_code == 2
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        found = CliRunner().invoke(app, ["view", str(tmp_path), "--port", str(taken.getsockname()[1])])
    assert found.exit_code == 5
    assert "port" in found.output
