"""Early stopping with the real tasks and a real (random) model: the same records as a full evaluation, and nothing asked twice.

Runs in a process of its own, since the environment must be set before lmms-eval is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.micro.twins.twins import build_twins
from harness.run.offline import offline_environment
from tests.savi.tiny import tiny_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[3]

SCRIPT = """
import json, sys
from dataclasses import replace
from pathlib import Path
from harness.gate.early.check import check
from harness.gate.early.ask import VideoAsker
from harness.run.evaluate import evaluate
from harness.gate.settings import GateSettings

model, home, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
names = ["mvbench", "egoschema"]
full = evaluate(model, benchmarks=names, hf_home=home, out=out / "full", num_frames=8, scale="smoke", batch=16)
ask = VideoAsker(model, full, hf_home=home, out=out / "check", batch=16)
settings = GateSettings(require="each")
got = {n: [] for n in names}

def noted(benchmark, videos):
    records = ask(benchmark, videos)
    got[benchmark] += records
    return records

result = check(full, noted, settings, batch=5, nonce="0")
model_calls = []
answer = ask.adapter._answer
ask.adapter._answer = lambda *a: (model_calls.append(1), answer(*a))
again = check(full, ask, settings, batch=5, nonce="0")
def known(r):  # upstream's random guesses depend on what was asked before; strict credit ignores them
    return replace(r, upstream=0.0) if r.status != "ok" else r

wanted = {n: {r.question_id: r for r in full[n].records} for n in names}
print(json.dumps({
    "differ": [str(r) for n in names for r in got[n] if known(r) != known(wanted[n][r.question_id])],
    "asked": {n: len(got[n]) for n in names},
    "verdicts": [d.verdict for d in result.gate.decisions if d.question == "no_regression"],
    "estimates": [d.estimate for d in result.gate.decisions],
    "problems": [p.message for p in result.gate.integrity],
    "same_again": again == result,
    "model_calls": len(model_calls),
}))
"""


def test_asking_video_by_video_gives_the_full_evaluations_records(tmp_path: Path) -> None:
    home = tmp_path / "home"
    build_twins(home, seed=1, size="smoke")
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    env = {**os.environ, **offline_environment(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(checkpoint), str(home), str(tmp_path)],
        capture_output=True,
        text=True,
        env=env,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    out = json.loads(done.stdout.splitlines()[-1])
    assert out["differ"] == []
    assert out["problems"] == []
    assert all(n > 0 for n in out["asked"].values())
    assert out["estimates"] == [0.0] * 4
    assert out["verdicts"] == ["pass", "pass"], "the same model against itself, asked to the end at the latest"
    assert out["same_again"]
    assert out["model_calls"] == 0, "every answer of the second check is in the journal"
