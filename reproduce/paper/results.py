"""What a run makes of its evaluations: score lines, gate decisions, tables and the leaderboard. Asks no model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.records import Evaluation, read_evaluations
from reproduce.paper.experiment import Experiment
from reproduce.run_dir import RunDir
from savi.base.files import write_text_atomic

TABLES = "tables"


def list_failed(found: Mapping[str, Evaluation], where: str, failures: Path) -> None:
    """Write a row for each question without an answer; the file is made anew, since scores are."""
    rows = [
        {"what": r.video_path or r.video_id, "where": f"{where}/{name}", "why": r.error or "no answer", "stage": "evaluate"}
        for name, e in found.items()
        for r in e.records
        if r.status == "failed"
    ]
    write_text_atomic(failures, "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows))


def mean_pct(found: Mapping[str, Evaluation]) -> float:
    """Unweighted mean of the benchmarks' strict percentages."""
    from benchmarks.catalog import in_mean

    averaged = in_mean(found)
    return sum(found[name].score.strict_pct for name in averaged) / len(averaged)


def score_line(found: Mapping[str, Evaluation], base: Mapping[str, Evaluation] | None) -> str:
    """Mean and each benchmark, percent."""
    each = ", ".join(f"{name} {e.score.strict_pct:.1f}" for name, e in found.items())
    change = f" (base {mean_pct(base):.1f}, {mean_pct(found) - mean_pct(base):+.1f})" if base else ""
    return f"mean {mean_pct(found):.1f} %{change}; {each}"


def all_evaluations(run: Path, iterations: int | None = None) -> dict[str, dict[str, Evaluation]]:
    """Evaluations by row label: base, iteration 1.. (those there are, where `iterations` is not given)."""
    out: dict[str, dict[str, Evaluation]] = {}
    folders = RunDir(run)
    t = 0
    while (iterations is None or t <= iterations) and any((folders.iteration(t) / "eval").glob("*/score.json")):
        out["base" if t == 0 else f"iteration {t}"] = read_evaluations(folders.iteration(t))
        t += 1
    return out


def write_gate(experiment: Experiment, iteration: int) -> str:
    """gate.json of iteration t: against the iteration before and against the base; the last one against the paper too where it has rows at
    this scale."""
    from harness.gate.decision import GateResult
    from harness.gate.gate import gate_published, gate_runs
    from harness.gate.settings import GateSettings

    settings = GateSettings(
        alpha=experiment.scale.evaluation.alpha.value, benchmarks=tuple(experiment.benchmarks) if experiment.benchmarks else None
    )
    candidate = read_evaluations(experiment.run.iteration(iteration))
    results: dict[str, GateResult] = {}
    for name, other in (("previous", iteration - 1), ("base", 0)):
        if name == "base" and iteration == 1:
            results[name] = results["previous"]
            continue
        label = "base" if other == 0 else f"iteration {other}"
        results[name] = gate_runs(
            candidate,
            read_evaluations(experiment.run.iteration(other)),
            settings,
            candidate_name=f"iteration {iteration}",
            reference_name=label,
        )
    if experiment.published and iteration == experiment.iterations and experiment.scale.evaluation.limit.value is None:
        from reproduce.published import published_pair

        base, aligned = published_pair(experiment.scale.name)
        if aligned is not None:
            results["paper"] = gate_published(
                candidate,
                read_evaluations(experiment.run.iteration(0)),
                aligned,
                settings,
                published_base=base,
                candidate_name=f"iteration {iteration}",
            )
    content = {name: json.loads(r.to_json()) for name, r in results.items()}
    write_text_atomic(experiment.run.iteration(iteration) / "gate.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return "; ".join(f"against {name}: {r.verdict}" for name, r in results.items())


def write_tables(
    run: Path,
    scale: str,
    rows: Mapping[str, Mapping[str, Evaluation]],
    benchmarks: Sequence[str] | None = None,
    notes: Sequence[str] = (),
) -> list[Path]:
    """tables/results.* (strict scores) and tables/upstream.* (exactly as lmms-eval reports), as Markdown, LaTeX and CSV."""
    from reproduce.published import experiment_table

    out = []
    for rule, name in (("strict", "results"), ("upstream", "upstream")):
        table = experiment_table(rows, scale=scale, rule=rule, benchmarks=benchmarks, notes=notes)  # type: ignore[arg-type]
        for suffix, text in (("md", table.to_markdown()), ("tex", table.to_latex()), ("csv", table.to_csv())):
            path = run / TABLES / f"{name}.{suffix}"
            write_text_atomic(path, text if text.endswith("\n") else text + "\n")
            out.append(path)
    return out


def write_leaderboard(run: Path, iterations: int, benchmarks: Sequence[str] | None = None) -> list[Path]:
    """tables/leaderboard.md and .html: base and iterations with the ranks that their answers leave possible. Records that are not
    comparable are named in place of a ranking."""
    from harness.tables.leaderboard.ranking import leaderboard, render
    from harness.tables.leaderboard.read import discover

    stages = [RunDir(run).iteration(t) for t in range(iterations + 1)]
    found = discover([s for s in stages if (s / "eval").is_dir()], rule="strict", all_stages=True, published=False)
    out = []
    for suffix in ("md", "html"):
        path = run / TABLES / f"leaderboard.{suffix}"
        if found.problems:
            text = "not ranked:\n\n" + "\n".join(f"- {p}" for p in found.problems) + "\n"
            path = path.with_suffix(".md")
        else:
            text = render(leaderboard(found.entries, rule="strict", benchmarks=benchmarks), suffix)  # type: ignore[arg-type]
        write_text_atomic(path, text)
        out.append(path)
    return list(dict.fromkeys(out))
