"""The scientific result at micro scale: the experiment over several loop seeds, beside the controls that have to gain nothing.

Each run is `python -m reproduce paper` in a process of its own, so that a study is resumed by running it again. Afterwards every run's
scores,
and its pairs judged against the ground truth the loop never saw, are gathered into one JSON file, a table and a plot.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.integrity import reading_rule
from harness.records import read_evaluations
from harness.stats import t_quantile
from harness.tables.plots import Point, plot_iterations
from harness.tables.table import Cell, Row, Table
from reproduce.paper.results import mean_pct
from savi.base.errors import SaviError
from savi.base.files import write_text_atomic

CONTROLS = {
    "none": "the method: DPO on (revised, initial)",
    "reversed": "control: chosen and rejected exchanged",
    "blind": "control: revisions that ignore the critique",
    "sft": "control: supervised training on the revised answers alone",
}


class StudyError(SaviError, RuntimeError):
    """A run of the study ended badly; names the run, its exit code and its log."""


@dataclass(frozen=True)
class Plan:
    """What is run, in folders `out/seed0-none` and so on: the method with every seed, each control with the first `control_seeds`
    (None: all)."""

    out: Path
    seeds: tuple[int, ...]
    controls: tuple[str, ...]
    scale: str = "micro"
    iterations: int | None = None
    twins_seed: int | None = None
    base: str | None = None
    control_seeds: int | None = None
    settings: tuple[str, ...] = ()

    def runs(self) -> list[tuple[int, str]]:
        """Every (seed, control), the method first."""
        return [(s, c) for c in self.controls for s in (self.seeds if c == "none" else self.seeds[: self.control_seeds])]

    def folder(self, seed: int, control: str) -> Path:
        """The run's folder."""
        return self.out / f"seed{seed}-{control}"

    def command(self, seed: int, control: str) -> list[str]:
        """The run's command."""
        words = [sys.executable, "-m", "reproduce", "paper", "--scale", self.scale, "--seed", str(seed), "--control", control]
        words += ["--out", str(self.folder(seed, control))]
        for name in ("iterations", "twins_seed", "base"):
            if getattr(self, name) is not None:
                words += [f"--{name.replace('_', '-')}", str(getattr(self, name))]
        for text in self.settings:
            words += ["--set", text]
        return words


def run_all(plan: Plan, *, jobs: int = 1) -> None:
    """Run what is not finished, `jobs` at a time, each run's output in its log.

    Raises:
        StudyError: a run did not end with exit code 0; the others are finished first.
    """
    plan.out.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // jobs)  # runs side by side that each take every core wait for each other
    env = {"OMP_NUM_THREADS": str(threads), **os.environ} if jobs > 1 else None
    alone = ["--processes", "1"] if jobs > 1 else []

    def one(item: tuple[int, str]) -> tuple[Path, int]:
        log = plan.out / f"seed{item[0]}-{item[1]}.log"
        with log.open("w", encoding="utf-8") as f:
            done = subprocess.run(
                plan.command(*item) + alone, stdout=f, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env, check=False
            )
        print(f"{log.stem}: exit {done.returncode}", flush=True)
        return log, done.returncode

    with ThreadPoolExecutor(jobs) as pool:
        bad = [(log, code) for log, code in pool.map(one, plan.runs()) if code]
    if bad:
        raise StudyError("; ".join(f"{log} ended with exit code {code}" for log, code in bad) + "; fix it and run the study again")


def gather(plan: Plan) -> list[dict[str, Any]]:
    """One row a run: strict scores of base and every iteration on each benchmark, and each iteration's pairs judged."""
    return [_gather_run(plan.folder(s, c), s, c) for s, c in plan.runs()]


def _gather_run(run: Path, seed: int, control: str) -> dict[str, Any]:
    from benchmarks.micro.analysis import judge_pairs
    from savi.loop.journal import read_unchanged
    from savi.loop.preferences import read_pairs

    stages, pairs = [], []
    t = 0
    while (folder := run / ("base" if t == 0 else f"iter-{t}")).joinpath("eval").is_dir():
        found = read_evaluations(folder)
        stages.append(
            {"mean_pct": round(mean_pct(found), 4)}
            | {k: {"strict_pct": e.score.strict_pct, "upstream_pct": e.score.upstream_pct, "n": e.score.n} for k, e in found.items()}
        )
        if t:
            made = [asdict(p) for p in read_pairs(folder / "pairs.jsonl")]
            same = [asdict(p) for p in read_unchanged(folder / "dropped.jsonl")]
            pairs.append(asdict(judge_pairs(made, same, 1000 * seed + t)))
        t += 1
    return {"seed": seed, "control": control, "stages": stages, "pairs": pairs}


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % t interval over seeds; the interval is the mean itself for one seed (nothing to estimate a spread from)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, mean, mean
    half = t_quantile(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By control: change of the mean over the benchmarks from base to each iteration, in points, with its 95 % interval over seeds."""
    out: dict[str, dict[str, Any]] = {}
    for control in dict.fromkeys(r["control"] for r in rows):
        mine = [r["stages"] for r in rows if r["control"] == control]
        steps = min(len(s) for s in mine)
        change = [interval([s[t]["mean_pct"] - s[0]["mean_pct"] for s in mine]) for t in range(1, steps)]
        out[control] = {
            "seeds": len(mine),
            "base_pct": round(statistics.fmean(s[0]["mean_pct"] for s in mine), 2),
            "change": [dict(zip(("points", "low", "high"), (round(x, 2) for x in c), strict=True)) for c in change],
            "runs": [[round(s[t]["mean_pct"] - s[0]["mean_pct"], 2) for t in range(1, steps)] for s in mine],
        }
    return out


def study_table(rows: Sequence[Mapping[str, Any]], scale: str) -> Table:
    """The summary as a table: a row a control, a column an iteration."""
    found = summary(rows)
    steps = max(len(v["change"]) for v in found.values())
    made = []
    for control, v in found.items():
        cells = [Cell(v["base_pct"], f"{v['base_pct']:.1f}")]
        for c in v["change"]:
            text = f"{c['points']:+.1f} [{c['low']:+.1f}, {c['high']:+.1f}]"
            cells.append(Cell(c["points"], text, (c["low"], c["high"]), source="derived"))
        made.append(Row(f"{control} ({CONTROLS[control]}; {v['seeds']} seeds)", tuple(cells)))
    return Table(
        title="Change of the mean over six benchmarks against the base, points, 95 % interval over loop seeds",
        scale=scale,
        label_title="training",
        columns=("base", *(f"iteration {t}" for t in range(1, steps + 1))),
        rows=tuple(made),
        notes=("Strict scores (0-100). Micro numbers measure the method on synthetic data; they reproduce no number of the paper.",),
    )


def benchmark_table(rows: Sequence[Mapping[str, Any]], scale: str) -> Table:
    """Base and last iteration of the method on each benchmark, means over seeds, with the change's 95 % interval."""
    mine = [r["stages"] for r in rows if r["control"] == "none"]
    names = [k for k in mine[0][0] if k != "mean_pct"]
    made = []
    for name in names:
        base = statistics.fmean(s[0][name]["strict_pct"] for s in mine)
        last = statistics.fmean(s[-1][name]["strict_pct"] for s in mine)
        c = interval([s[-1][name]["strict_pct"] - s[0][name]["strict_pct"] for s in mine])
        cells = (
            Cell(mine[0][0][name]["n"], str(mine[0][0][name]["n"])),
            Cell(base, f"{base:.1f}"),
            Cell(last, f"{last:.1f}"),
            Cell(c[0], f"{c[0]:+.1f} [{c[1]:+.1f}, {c[2]:+.1f}]", c[1:], source="derived"),
        )
        made.append(Row(name, cells))
    return Table(
        title="Base and last iteration by benchmark",
        scale=scale,
        label_title="benchmark",
        columns=("n", "base", "last iteration", "change"),
        rows=tuple(made),
    )


def pair_table(rows: Sequence[Mapping[str, Any]], scale: str) -> Table:
    """What the loop's questions, critiques and pairs were worth, means over seeds of the method's runs."""
    mine = [r["pairs"] for r in rows if r["control"] == "none"]
    keys = (
        ("asked", "questions"), ("valid_pct", "valid %"), ("initial_pct", "initial right %"), ("revised_pct", "revised right %"),
        ("pairs", "pairs"), ("precision_pct", "precision %"), ("initial_yes_pct", "initial yes %"), ("revised_yes_pct", "revised yes %"),
    )  # fmt: skip
    made = []
    for t in range(min(len(p) for p in mine)):
        cells = []
        for key, _ in keys:
            values = [p[t][key] for p in mine if p[t].get(key) is not None]
            v = statistics.fmean(values) if values else None
            cells.append(Cell(v, "–" if v is None else f"{v:.1f}" if key.endswith("pct") else f"{v:.0f}"))
        made.append(Row(f"iteration {t + 1}", tuple(cells)))
    return Table(
        title="The loop's questions and pairs, judged afterwards against the truth it never saw",
        scale=scale,
        label_title="pairs of",
        columns=tuple(c for _, c in keys),
        rows=tuple(made),
        notes=(
            "Right %: of the valid questions. Precision: corrected mistakes among pairs that corrected or spoilt an answer. Yes %: of the "
            "replies to questions answered yes or no, at first and after revision.",
        ),
    )


def study_plot(rows: Sequence[Mapping[str, Any]], scale: str) -> str:
    """Mean over six by iteration for the method and each control, with intervals over seeds, as an SVG file's text."""
    steps = min(len(r["stages"]) for r in rows)
    series = {}
    for control in dict.fromkeys(r["control"] for r in rows):
        mine = [r["stages"] for r in rows if r["control"] == control]
        points = [interval([s[t]["mean_pct"] for s in mine]) for t in range(steps)]
        series[control] = [Point(mean, (low, high)) for mean, low, high in points]
    labels = ["base", *(f"iteration {t}" for t in range(1, steps))]
    return plot_iterations(series, labels, title="Mean over six benchmarks", scale=scale)


def write_study(plan: Plan, command: str, keep: Path) -> list[Path]:
    """study.json, README.md (tables with the command), study.csv and study.svg in `keep`."""
    rows = gather(plan)
    first = plan.folder(plan.seeds[0], plan.controls[0])
    facts = json.loads((first / "run.json").read_text(encoding="utf-8"))
    content = {
        "command": command,
        "scale": plan.scale,
        "versions": facts.get("versions"),
        "base": facts.get("base_fingerprint"),
        "reading": reading_rule(next(iter(read_evaluations(first / "base").values())).score),
        "twins_seed": (facts.get("settings", {}).get("evaluation.twins_seed") or {}).get("value"),
        "summary": summary(rows),
        "runs": rows,
    }
    tables = [study_table(rows, plan.scale)]
    if "none" in plan.controls:
        tables += [benchmark_table(rows, plan.scale), pair_table(rows, plan.scale)]
    text = f"# Study at scale {plan.scale}\n\nMade by `{command}`; study.json has every run.\n\n" + "\n\n".join(
        t.to_markdown() for t in tables
    )
    written = [keep / "study.json", keep / "README.md", keep / "study.csv", keep / "study.svg"]
    for path, body in zip(written, (json.dumps(content, indent=1), text, tables[0].to_csv(), study_plot(rows, plan.scale)), strict=True):
        write_text_atomic(path, body.rstrip("\n") + "\n")
    return written
