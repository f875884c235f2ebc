"""How long gate and report take over the six benchmarks at their real sizes, as commands: start-up, reading and writing included.

The evaluations are made up (seeded), at every benchmark's own number of questions, videos and tasks; 13 % of the answers differ between
base and iteration 1, as between two models that are much alike. Wall seconds are held to the targets; processor seconds stand beside them,
since on a busy machine only those say what the work was.
"""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.benchmark import LETTERS, Benchmark
from benchmarks.catalog import select
from harness.records import Provenance, QuestionRecord, prompts_fingerprint, write_evaluation
from harness.scoring import score
from savi.base.files import write_text_atomic

CASES = ("gate", "report")
"""What is timed, in this order."""
TARGET_S = {"gate": 10.0, "report": 30.0}
TARGET_MB = {"report": 15.0}
DISCORDANT = 0.13
SMALL_SHARE = 0.02
"""Share of every benchmark's questions where only the way through is to be seen (preset smoke)."""
_WORDS = (
    "person", "cup", "table", "door", "left", "right", "before", "after", "opens", "picks", "walks", "puts", "the", "on",
    "from", "red",
)  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Timed:
    """One command's figures: seconds a round."""

    name: str
    command: str
    questions: int
    seconds: list[float]
    cpu_seconds: list[float]
    target_s: float
    megabytes: float | None = None
    target_mb: float | None = None

    @property
    def met(self) -> bool:
        """Whether the median and the size are within their targets."""
        small = self.megabytes is None or self.target_mb is None or self.megabytes <= self.target_mb
        return statistics.median(self.seconds) <= self.target_s and small

    def to_json(self) -> dict[str, Any]:
        """As data."""
        return {**asdict(self), "met": self.met}


def _sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(_WORDS, k=words))


def made_records(benchmark: Benchmark, share: float, *, changed: bool) -> list[QuestionRecord]:
    """A benchmark's records, made up; `changed`: the other model's, who differs in `DISCORDANT` of the answers."""
    out = []
    videos = max(round(benchmark.videos * share), 1)
    for i in range(max(round(benchmark.n * share), len(benchmark.tasks))):
        rng = random.Random(f"{benchmark.name} {i}")
        task = benchmark.tasks[i % len(benchmark.tasks)]
        letters = ["yes", "no"] if benchmark.form(task) == "yes_no" else list(LETTERS[: benchmark.max_options])
        options = "".join(f"\n{x}. {_sentence(rng, 8)}." for x in letters if len(x) == 1)
        target = rng.choice(letters)
        wrong = rng.choice([x for x in letters if x != target])
        right = rng.random() < 0.65
        if rng.random() < DISCORDANT and changed:
            right = not right
        answer = target if right else wrong
        out.append(
            QuestionRecord(
                benchmark=benchmark.name, task=task, doc_id=i // len(benchmark.tasks), question_id=f"{benchmark.name}-{i:06d}",
                video_id=f"v{i % videos:05d}",
                prompt=f"{_sentence(rng, 14)}?{options}\nAnswer with the option's letter from the given choices directly.", target=target,
                answer=answer, parsed=answer, upstream=float(right), strict=float(right), status="ok", frames=32,
                video_path=f"{benchmark.data_dir}/v{i % videos:05d}.mp4",
            )
        )  # fmt: skip
    return out


def make_run(folder: Path, share: float = 1.0) -> int:
    """A run folder with base and iteration 1 over all six benchmarks; returns the number of questions of one model."""
    n = 0
    for stage in ("base", "iter-1"):
        for b in select(None):
            records = made_records(b, share, changed=stage != "base")
            by_task = {t: [r.upstream for r in records if r.task == t] for t in b.tasks}
            provenance = Provenance(
                f"made up/{stage}", stage, "media", prompts_fingerprint(records), {"temperature": 0.0}, {"num_frames": 32}, {"savi": "0"}
            )
            upstream = {t: 100 * sum(v) / len(v) for t, v in by_task.items()}
            chance = [1 / b.max_options] * len(records)
            e = score(b, records, chance, upstream, scale="8b", n_expected=len(records), provenance=provenance, wall_s=0.0)
            write_evaluation(folder / stage / "eval", e)
            n += len(records) if stage == "base" else 0
    write_text_atomic(folder / "run.json", json.dumps({"name": "made up", "scale": "8b"}))
    return n


def timed(args: Sequence[str], cwd: Path, *, allowed: Sequence[int]) -> tuple[float, float]:
    """Wall and processor seconds of `python -m harness ARGS`, from its start to its end.

    Raises:
        RuntimeError: it ended with another exit code than those allowed.
    """
    return timed_python(["-m", "harness", *args], cwd, allowed=allowed)


def timed_python(args: Sequence[str], cwd: Path, *, allowed: Sequence[int]) -> tuple[float, float]:
    """Wall and processor seconds of `python ARGS`, from its start to its end.

    Raises:
        RuntimeError: it ended with another exit code than those allowed.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))  # a checkout need not be installed
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, *args], capture_output=True, text=True, cwd=cwd, env=env, check=False)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in allowed:
        raise RuntimeError(f"python {' '.join(args)} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run_commands(names: Sequence[str], rounds: int, say: Callable[[str], None], *, share: float = 1.0) -> list[dict[str, Any]]:
    """Make the run in a temporary folder, time the commands and return their figures."""
    rows = []
    with tempfile.TemporaryDirectory() as tmp:
        here = Path(tmp)
        n = make_run(here / "run", share)
        gate = ["gate", "run", "--against", "run/base", "--junit", "gate.xml", "--summary", "gate.md", "--out", "run/iter-1/gate.json"]
        commands = {"gate": gate, "report": ["report", "run"]}
        timed(gate, here, allowed=(0, 1, 3))  # the report shows its verdicts; and the files are in the disk's cache for every round
        for name in (c for c in CASES if c in names):
            took = [timed(commands[name], here, allowed=(0, 1, 3) if name == "gate" else (0,)) for _ in range(rounds)]
            size = (here / "run/report.html").stat().st_size / 1e6 if name == "report" else None
            row = Timed(
                name, f"python -m harness {' '.join(commands[name])}", n, [w for w, _ in took], [c for _, c in took], TARGET_S[name], size,
                TARGET_MB.get(name),
            )  # fmt: skip
            say(line(row.to_json()))
            rows.append(row.to_json())
    return rows


def line(row: dict[str, Any]) -> str:
    """A command's figures in one line."""
    wall = row["seconds"]
    size = "" if row["megabytes"] is None else f", {row['megabytes']:.1f} MB (target {row['target_mb']:g})"
    return (
        f"{row['name']} over {row['questions']:,} questions of two models: {statistics.median(wall):.1f} s "
        f"[{min(wall):.1f}, {max(wall):.1f}] (target {row['target_s']:g}), processor {statistics.median(row['cpu_seconds']):.1f} s{size}: "
        f"{'met' if row['met'] else 'not met'}"
    )
