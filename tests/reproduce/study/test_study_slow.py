"""A whole study at smoke size: killed and gone on with, it keeps the records of one that was not; and every variant of the loop runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from reproduce.paper.experiment import shipped_base
from reproduce.study.records import Record, read_records
from reproduce.study.variants import VARIANTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[3]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
SMALL = ("--scale", "smoke", "--set", "evaluation.benchmarks=[egoschema,nextqa]", "--set", "loop.videos_per_iteration=16")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The shipped base, and a copy of it whose weights are a little off."""
    import torch

    other = tmp_path_factory.mktemp("bases") / "shaken"
    shutil.copytree(shipped_base(), other)
    generator = torch.Generator().manual_seed(1)
    weights = load_file(other / "model.safetensors")
    for name, value in weights.items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator) * value.float().std().nan_to_num(0.0) * 0.05
            weights[name] = (value.float() + noise).to(value.dtype)
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    return f"shipped,{other}"


def command(out: Path, *more: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "reproduce", "study", *SMALL, "--out", str(out), *more]


def kept(out: Path) -> dict[str, Record]:
    """Records without the time they took."""
    return {record.name: record.model_copy(update={"wall_s": 0.0}) for record in read_records(out)[1]}


def test_killed_and_gone_on_with(bases: str, tmp_path: Path) -> None:
    """SIGKILL of everything in the second run; the first one's record stands, and the rest comes out as if nothing had happened."""
    more = ("--bases", bases, "--controls", "reversed", "--iterations", "1")
    out = tmp_path / "killed"
    with subprocess.Popen(command(out, *more, "--jobs", "1"), env=ENV, cwd=tmp_path, start_new_session=True) as process:
        until = time.monotonic() + 900
        while not list(out.glob("runs/shaken-seed200-dpo/iter-1/pairs.jsonl")) and time.monotonic() < until:
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    (first,) = list((out / "records").glob("*.json"))
    before = first.read_bytes()
    done = subprocess.run(command(out, *more, "--jobs", "1"), env=ENV, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "3 runs of " in done.stderr
    assert first.read_bytes() == before

    straight = tmp_path / "straight"
    done = subprocess.run(command(straight, *more, "--jobs", "2", "--discard"), env=ENV, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert kept(straight) == kept(out)
    assert len(kept(out)) == 4
    assert not list((straight / "runs").iterdir())
    for name in ("README.md", "gains.csv", "claims.csv", "questions.json", "curves.svg", "gain_by_gap.svg", "pairs.svg"):
        assert (straight / name).is_file(), name
    assert max(path.stat().st_size for path in (straight / "records").iterdir()) < 4096
    text = (straight / "README.md").read_text()
    assert "NOT FROZEN" in text
    assert "reversed: chosen and rejected exchanged" in text


def test_every_variant_runs(bases: str, tmp_path: Path) -> None:
    names = [name for name, variant in VARIANTS.items() if variant.kind in ("rival", "keeper")]
    more = ("--bases", bases, "--controls", "none", "--rivals", ",".join(names), "--iterations", "2", "--json")
    done = subprocess.run(command(tmp_path / "out", *more), env=ENV, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(json.loads(done.stdout)["gains"]) == {"dpo", *names}
    records = kept(tmp_path / "out")
    assert len(records) == 2 * (1 + len(names))
    assert all(record.iterations == 2 for record in records.values())
    for base, seed in (("shipped", 100), ("shaken", 200)):
        mine = {name: records[f"{base}-seed{seed}-{name}"] for name in ("dpo", *names)}
        assert len({record.stages[0] for record in mine.values()}) == 1, "the base is the same"
        assert len({record.settings for record in mine.values()}) == len(mine)
        first = {name: record.stages[1] for name, record in mine.items()}
        assert first["base-critic"] == first["early-stop"] == first["dpo"], "they differ from the second iteration on"
    runs = tmp_path / "out" / "runs" / "shipped-seed100-"
    pairs = [json.loads(line) for line in Path(f"{runs}no-critique/iter-1/pairs.jsonl").read_text().splitlines()]
    assert {pair["critique"] for pair in pairs} == {""}
    kinds = {json.loads(line)["kind"] for line in Path(f"{runs}temporal/iter-1/pairs.jsonl").read_text().splitlines()}
    assert kinds == {"temporal"}
    journal = Path(f"{runs}other-critic/iter-1/pairs.journal.jsonl").read_text().splitlines()[0]
    assert json.loads(journal)["critic"]
    shutil.rmtree(tmp_path / "out" / "runs")  # nothing to take over from the method's runs
    for name in ("lora", "spatial"):
        (tmp_path / "out" / "records" / f"shaken-seed200-{name}.json").unlink()
    done = subprocess.run(command(tmp_path / "out", *more), env=ENV, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert kept(tmp_path / "out") == records, "a run is the same whether it shares the first stages or makes them"
