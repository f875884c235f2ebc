"""The trackers themselves, where their packages are installed: what `savi align` told them, read back with their libraries."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.micro.world.videos import build_videos
from savi.curves import iteration_curves
from savi.training.settings import DPOSettings
from savi.training.trackers import TRACKERS
from tests.savi.training.test_trackers import scalars

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
INSTALLED = [name for name in TRACKERS if importlib.util.find_spec(TRACKERS[name][0])]
SECRETS = {name: f"secret-of-{name.lower()}" for name in ("OPENAI_API_KEY", "HF_TOKEN", "MY_SERVERS_KEY")}
TRAINING = {"loss": "train/loss", "rewards/chosen": "train/rewards/chosen", "learning_rate": "train/learning_rate"}
"""Names in train/log.jsonl and in trackers."""


def needs(name: str) -> Any:
    return pytest.mark.skipif(name not in INSTALLED, reason=f"pip install {TRACKERS[name][0]}")


@dataclass
class Told:
    """An `align` of two iterations, and the second one once more; what any of it asked of the network."""

    folder: Path
    stdout: list[str]
    stderr: str
    asked: list[bytes]

    def curves(self, t: int) -> dict[str, float]:
        return {f"loop/{name}": value for name, value in iteration_curves(self.folder / f"run/iter-{t}", DPOSettings()).items()}

    def log(self, t: int) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.folder / f"run/iter-{t}/train/log.jsonl").read_text().splitlines()]


def recording_proxy(asked: list[bytes]) -> socket.socket:
    """A proxy that passes nothing on and keeps the first bytes of what it was asked."""
    proxy = socket.create_server(("127.0.0.1", 0))

    def listen() -> None:
        while True:
            try:
                connection, _ = proxy.accept()
            except OSError:
                return
            connection.settimeout(2)
            try:
                asked.append(connection.recv(200))
            except OSError:
                asked.append(b"?")
            connection.close()

    threading.Thread(target=listen, daemon=True).start()
    return proxy


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    folder = tmp_path_factory.mktemp("told")
    build_videos(folder / "clips", 12, seed=3)
    asked: list[bytes] = []
    stdout, stderr = [], ""
    with recording_proxy(asked) as proxy:
        way = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        env = {**os.environ, **SECRETS, "HTTPS_PROXY": way, "HTTP_PROXY": way, "ALL_PROXY": way, "PYTHONPATH": _path()}
        env |= {"WANDB_MODE": "offline", "WANDB_DIR": str(folder), "TRACKIO_DIR": str(folder / "trackio"), "HOME": str(folder)}
        env = {name: value for name, value in env.items() if name not in ("WANDB_PROJECT", "PYTHONWARNINGS")}
        command = [
            sys.executable,
            "-m",
            "savi",
            "align",
            "clips",
            "--model",
            "micro",
            "--out",
            "run",
            "--iterations",
            "2",
            "--num-frames",
            "4",
        ]
        for _ in range(2):
            done = subprocess.run(
                [*command, "--learning-rate", "1e-4", "--report-to", ",".join(INSTALLED), "--json"],
                cwd=folder, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr[-3000:]
            stdout.append(done.stdout)
            stderr += done.stderr
            kept = Told(folder, stdout, stderr, list(asked))
            shutil.copytree(folder / "run", folder / "before", dirs_exist_ok=True)
            shutil.rmtree(folder / "run" / "iter-2")  # as if stopped after the first iteration
        shutil.copytree(folder / "before", folder / "run", dirs_exist_ok=True)
    return kept


def _path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def test_stdout_is_the_commands(told: Told) -> None:
    for text in told.stdout:
        assert [row["iteration"] for row in json.loads(text)["iterations"]] == [1, 2]
        assert all(row["trained_on"] for row in json.loads(text)["iterations"])
    assert "is told no more" not in told.stderr


def test_nothing_is_sent_and_no_secret_is_kept(told: Told) -> None:
    assert told.asked == []
    for path in told.folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [name for name, secret in SECRETS.items() if secret.encode() in data], path


def wandb_runs(folder: Path) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """(name, id, rows) of the offline runs below a folder, in the order they began, by wandb's own reader."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    runs = []
    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_ctime_ns):
        store, name, number, rows = DataStore(), "", "", []
        store.open_for_scan(str(file))
        while (data := store.scan_data()) is not None:
            (record := Record()).ParseFromString(data)
            if record.HasField("run"):
                name, number = record.run.display_name, record.run.run_id
            elif record.HasField("history"):
                rows.append({".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item})
        runs.append((name, number, rows))
    return runs


@needs("wandb")
def test_wandb(told: Told) -> None:
    """Offline, where wandb opens no run again: each further file of the loop's run has all iterations, so that the last one sent is whole,
    also of a command that was stopped. Every training is a run of its own."""
    runs = wandb_runs(told.folder)
    loops = [rows for name, _, rows in runs if name == "told0/run/loop"]
    assert [[row["iteration"] for row in rows] for rows in loops] == [[1], [1, 2], [1, 2]]
    for row in (row for rows in loops for row in rows):
        expected = told.curves(row["iteration"])
        assert {name: row[name] for name in expected} == pytest.approx(expected)
    assert len({number for name, number, _ in runs if name == "told0/run/loop"}) == 1
    assert len({number for name, number, _ in runs if name != "told0/run/loop"}) == 3
    for t, count in ((1, 1), (2, 2)):
        found = [rows for name, _, rows in runs if name == f"run/iter-{t}"]
        assert len(found) == count
        for rows in found:
            for ours, theirs in TRAINING.items():
                told_there = {int(row["train/global_step"]): row[theirs] for row in rows if theirs in row}
                assert told_there == pytest.approx({int(row["step"]): row[ours] for row in told.log(t)})


READ_TRACKIO = """
import json, sys
from trackio.sqlite_storage import SQLiteStorage
print(json.dumps({name: SQLiteStorage.get_logs("huggingface", name) for name in SQLiteStorage.get_runs("huggingface")}))
"""


@needs("trackio")
def test_trackio(told: Told) -> None:
    """One run of the loop over both commands; iterations by their names."""
    env = {**os.environ, "TRACKIO_DIR": str(told.folder / "trackio")}
    read = subprocess.run([sys.executable, "-c", READ_TRACKIO], env=env, capture_output=True, text=True, check=True)
    runs = json.loads(read.stdout.splitlines()[-1])
    assert set(runs) == {"told0/run/loop", "run/iter-1", "run/iter-2"}
    loop = [row for row in runs["told0/run/loop"] if "loop/pairs" in row]
    assert [row["step"] for row in loop] == [1, 2, 2]
    for row in loop:
        expected = told.curves(row["step"])
        assert {name: row[name] for name in expected} == pytest.approx(expected)
    for t in (1, 2):
        for ours, theirs in TRAINING.items():
            told_there = {int(row["train/global_step"]): row[theirs] for row in runs[f"run/iter-{t}"] if theirs in row}
            assert told_there == pytest.approx({int(row["step"]): row[ours] for row in told.log(t)})


@needs("tensorboard")
def test_tensorboard(told: Told) -> None:
    found = scalars(told.folder / "run" / "loop")
    for t in (1, 2):
        expected = told.curves(t)
        assert {name: found[name][t] for name in expected} == pytest.approx(expected, rel=1e-5)
