"""What the experiment's stages do: the one place that calls savi, the harness and the benchmarks for the main job.

Heavy modules are imported inside the functions, so that a run that is already finished costs none of them.
"""

from __future__ import annotations

import gc
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.records import Evaluation, read_evaluations
from reproduce.overlap import OVERLAP_FILE, find_overlap, notes, overlapping
from reproduce.run_dir import RunDir, base_identity
from reproduce.scale import Scale
from reproduce.stages import Progress
from savi.base.digests import sha256_json
from savi.base.errors import SaviError
from savi.base.files import write_text_atomic
from savi.base.hub import find_checkpoint, is_internvl_chat

if TYPE_CHECKING:
    from savi.engine.video_lm import VideoLM
    from savi.loop.propose import AlignSettings
    from savi.training.settings import DPOSettings

SHIPPED = "shipped"
TABLES = "tables"


class MissingInputError(SaviError):
    """Something the run needs is not there; the message says what, where it was looked for and how to fix it."""


class OtherSettingsNeededError(SaviError):
    """With these settings the run can only fail in the same way again; the message names the one to change."""


@dataclass(frozen=True)
class Experiment:
    """One resolved run: its scale (settings and sources), its folder, and where its inputs are."""

    scale: Scale
    run: RunDir
    hf_home: Path
    videos: Path | None = None
    """Folder of the user's unlabelled videos (scales of real data)."""
    exclude: bool = False
    """Leave out training videos that are benchmark videos."""
    offline: bool = False

    @property
    def iterations(self) -> int:
        return self.scale.loop.iterations.value

    @property
    def benchmarks(self) -> list[str] | None:
        return self.scale.evaluation.benchmarks.value or None

    def model(self, iteration: int) -> Path:
        """The checkpoint of iteration t; 0 is the base model."""
        return base_path(self) if iteration == 0 else self.run.iteration(iteration) / "model"

    @property
    def overlap_file(self) -> Path:
        """Training videos that are benchmark videos."""
        return self.run.path / OVERLAP_FILE

    def video_folder(self, iteration: int) -> Path:
        """Where the micro world's videos of iteration t are made."""
        return self.run.path / "data" / "videos" / f"iter-{iteration}"

    def video_list(self, iteration: int) -> Path:
        """The names of the user's videos that iteration t was dealt."""
        return self.run.path / "data" / "videos" / f"iter-{iteration}.txt"


def shipped_base() -> Path:
    """The micro base that comes with the package."""
    from benchmarks.micro.pretrain.recipe import BASE_DIR

    return BASE_DIR


def base_path(experiment: Experiment) -> Path:
    """Where the native base checkpoint is, or will be once prepared."""
    name = experiment.scale.model.base.value
    if name == SHIPPED:
        return shipped_base()
    local = Path(name)
    if local.is_dir() and not is_internvl_chat(local):
        return local
    return experiment.run.path / "data" / "base-model"


class Work(Protocol):
    """What the stages call. Each returns a line for people, without times."""

    def prepare(self, experiment: Experiment, progress: Progress) -> str: ...
    def overlap(self, experiment: Experiment, progress: Progress) -> str: ...
    def base(self, experiment: Experiment, progress: Progress) -> str: ...
    def videos(self, experiment: Experiment, iteration: int, progress: Progress) -> str: ...
    def propose(self, experiment: Experiment, iteration: int, progress: Progress, failures: Path) -> str: ...
    def train(self, experiment: Experiment, iteration: int, progress: Progress, failures: Path) -> str: ...
    def evaluate(self, experiment: Experiment, iteration: int, progress: Progress, failures: Path) -> str: ...
    def gate(self, experiment: Experiment, iteration: int) -> str: ...
    def tables(self, experiment: Experiment) -> str: ...
    def report(self, experiment: Experiment) -> str: ...


@dataclass
class RealWork:
    """The stages as they are. Keeps the model it loaded last, since evaluation and the next proposals ask the same one."""

    _loaded: tuple[str, VideoLM] | None = field(default=None, repr=False)

    def prepare(self, experiment: Experiment, progress: Progress) -> str:
        """Make the twins, or check that the six data sets are on this machine (paper scales)."""
        from benchmarks.catalog import select

        size = experiment.scale.evaluation.twins.value
        out = experiment.run.path / "data" / "benchmarks.json"
        if size is not None:
            from benchmarks.micro.twins.twins import build_twins

            twins = build_twins(
                experiment.hf_home, seed=experiment.scale.evaluation.twins_seed.value, size=size, benchmarks=experiment.benchmarks
            )
            wanted = [b.name for b in select(experiment.benchmarks)]
            n = {name: twins.n[name] for name in wanted}
            write_text_atomic(
                out, json.dumps({"n": n, "videos": {k: twins.videos[k] for k in wanted}, "fingerprint": twins.fingerprint}, indent=1) + "\n"
            )
            return f"twins of {len(n)} data sets, {sum(n.values())} questions ({', '.join(f'{k} {v}' for k, v in n.items())})"
        from benchmarks.data.layout import check, fingerprint, fix_command

        chosen = select(experiment.benchmarks)
        found = []
        for i, b in enumerate(chosen):
            progress(i, len(chosen))
            found.append(check(experiment.hf_home, b))
        lacking = [s for s in found if not s.ready]
        if lacking:
            lines = [
                f"  {s.benchmark}: {s.n} of {s.n_expected} questions, {len(s.missing)} files missing (about {s.download_gb:.0f} GB"
                f"{', gated' if s.gated else ''}); {fix_command(experiment.hf_home, s.benchmark)}"
                for s in lacking
            ]
            raise MissingInputError(f"data sets below {experiment.hf_home} are not complete:\n" + "\n".join(lines))
        prints = {b.name: fingerprint(experiment.hf_home, b) for b in chosen}
        write_text_atomic(out, json.dumps({"n": {s.benchmark: s.n for s in found}, "fingerprint": sha256_json(prints)}, indent=1) + "\n")
        return f"{len(found)} data sets, {sum(s.n for s in found)} questions"

    def overlap(self, experiment: Experiment, progress: Progress) -> str:
        """Compare the user's videos with the benchmarks'."""
        from savi.video.frames import find_videos

        assert experiment.videos is not None
        return find_overlap(
            find_videos(experiment.videos),
            experiment.videos,
            experiment.hf_home,
            experiment.benchmarks,
            experiment.overlap_file,
            progress,
            exclude=experiment.exclude,
        )

    def base(self, experiment: Experiment, progress: Progress) -> str:
        """Have the base model as a native checkpoint: the shipped one, a folder, or the hub's, converted."""
        name = experiment.scale.model.base.value
        target = base_path(experiment)
        source = Path(name)
        if name != SHIPPED and target != source:
            from savi.conversion.checkpoint import convert

            if not source.is_dir():
                source = find_checkpoint(name, tell=lambda text: print(f"    {text}", flush=True), offline=experiment.offline)
            if is_internvl_chat(source):
                target = convert(source, target)
            else:
                raise MissingInputError(f"{source}: neither a native checkpoint nor InternVL2.5 as published")
        identity = base_identity(target)
        write_text_atomic(experiment.run.path / "data" / "base.json", json.dumps({"model": name, "fingerprint": identity}, indent=1) + "\n")
        return f"{'the shipped micro base' if name == SHIPPED else name}, {identity[:12]}"

    def videos(self, experiment: Experiment, iteration: int, progress: Progress) -> str:
        """Make, or deal out, the unlabelled videos of iteration t. Nothing but videos comes from here."""
        n = experiment.scale.loop.videos_per_iteration.value
        seed = experiment.scale.loop.seed.value
        if experiment.videos is None:
            from benchmarks.micro.world.videos import build_videos

            build_videos(experiment.video_folder(iteration), n, seed=1000 * seed + iteration)
            return f"{n} unlabelled videos made"
        from savi.video.frames import find_videos

        left_out = set().union(*overlapping(experiment.overlap_file).values()) if experiment.exclude else set()
        every = [v for v in find_videos(experiment.videos) if v.relative_to(experiment.videos).as_posix() not in left_out]
        order = list(range(len(every)))
        random.Random(f"deal/{seed}").shuffle(order)
        dealt = sorted(order[(iteration - 1) * n : iteration * n])
        if not dealt:
            raise MissingInputError(
                f"{experiment.videos}: {len(every)} videos are used up before iteration {iteration} ({n} an iteration); "
                "give more, or fewer --iterations"
            )
        write_text_atomic(
            experiment.video_list(iteration), "".join(f"{every[i].relative_to(experiment.videos).as_posix()}\n" for i in dealt)
        )
        return f"{len(dealt)} of {len(every)} videos" + ("" if len(dealt) == n else f" ({n} were asked for)")

    def _videos(self, experiment: Experiment, iteration: int) -> list[Path]:
        if experiment.videos is None:
            from savi.video.frames import find_videos

            return find_videos(experiment.video_folder(iteration))
        return [experiment.videos / line for line in experiment.video_list(iteration).read_text(encoding="utf-8").splitlines()]

    def propose(self, experiment: Experiment, iteration: int, progress: Progress, failures: Path) -> str:
        """Ask, answer, criticise, revise: preference pairs of iteration t by the model of t - 1."""
        from savi.base.files import FailureLog
        from savi.loop.journal import read_counts
        from savi.loop.propose import propose

        out = experiment.run.iteration(iteration) / "pairs.jsonl"
        lm = self._model(experiment.model(iteration - 1))
        for _ in propose(
            lm,
            self._videos(experiment, iteration),
            align_settings(experiment.scale, iteration),
            out=out,
            dropped=out.with_name("dropped.jsonl"),
            failures=FailureLog(failures),
            progress=progress,
        ):
            pass
        return read_counts(out).line()

    def train(self, experiment: Experiment, iteration: int, progress: Progress, failures: Path) -> str:
        """Train on the pairs (or on what the control makes of them); the result is the plain checkpoint iter-t/model."""
        from savi.base.files import FailureLog
        from savi.iterate import Base, train_stage
        from savi.training.callbacks import DivergedError

        self._loaded = None
        gc.collect()
        try:
            result, _ = train_stage(
                Base(experiment.model(iteration - 1)),
                experiment.run.iteration(iteration),
                dpo_settings(experiment.scale, iteration),
                experiment.scale.training.control.value,
                seed=align_settings(experiment.scale, iteration).seed,
                failures=FailureLog(failures),
                progress=progress,
            )
        except DivergedError as error:
            rate = experiment.scale.training.learning_rate.value
            raise OtherSettingsNeededError(
                f"iteration {iteration}, {error}; the same settings would diverge again: take a --set training.learning_rate=... below "
                f"{rate:g}, and another --out"
            ) from error
        if not result.trained:
            return "no pair to train on: the model stays as it is"
        left = f", {len(result.pairs_dropped)} left out" if result.pairs_dropped else ""
        return f"{result.steps} steps on {result.pairs_used} pairs{left}"

    def evaluate(self, experiment: Experiment, iteration: int, progress: Progress, failures: Path) -> str:
        """All benchmarks by lmms-eval's own tasks."""
        from benchmarks.catalog import select
        from benchmarks.data.layout import expected_n
        from harness.run.evaluate import evaluate

        e = experiment.scale.evaluation
        counts = {b.name: expected_n(experiment.hf_home, b, e.limit.value) for b in select(experiment.benchmarks)}
        names = list(counts)

        def tell(name: str, done: int, total: int) -> None:
            progress(sum(counts[n] for n in names[: names.index(name)]) + done, sum(counts.values()))

        found = evaluate(
            self._model(experiment.model(iteration)),
            benchmarks=experiment.benchmarks,
            hf_home=experiment.hf_home,
            out=experiment.run.iteration(iteration) / "eval",
            num_frames=e.num_frames.value,
            scale=experiment.scale.name,
            limit=e.limit.value,
            seed=e.seed.value,
            progress=tell,
            replace=True,  # the stage is run again only where its inputs changed
        )
        list_failed(found, experiment.run.iteration(iteration).name, failures)
        return score_line(found, read_evaluations(experiment.run.iteration(0)) if iteration else None)

    def gate(self, experiment: Experiment, iteration: int) -> str:
        return write_gate(experiment, iteration)

    def tables(self, experiment: Experiment) -> str:
        said = notes(
            experiment.overlap_file, experiment.benchmarks, paper=experiment.scale.published is not None, exclude=experiment.exclude
        )
        written = write_tables(
            experiment.run.path,
            experiment.scale.name,
            all_evaluations(experiment.run.path, experiment.iterations),
            experiment.benchmarks,
            said,
        )
        written += write_leaderboard(experiment.run.path, experiment.iterations, experiment.benchmarks)
        return ", ".join(p.relative_to(experiment.run.path).as_posix() for p in written)

    def report(self, experiment: Experiment) -> str:
        from harness.report.page import write_report

        out = write_report(experiment.run.path)
        return f"{out.name}, {out.stat().st_size / 1e6:.1f} MB"

    def _model(self, path: Path) -> VideoLM:
        from savi.engine.video_lm import VideoLM

        if self._loaded is None or self._loaded[0] != str(path):
            self._loaded = None  # let go of the old one before the new one takes memory
            gc.collect()
            self._loaded = (str(path), VideoLM.from_pretrained(path))
        return self._loaded[1]


def align_settings(scale: Scale, iteration: int) -> AlignSettings:
    """How iteration t makes its pairs; each iteration has its own random streams."""
    from savi.engine.video_lm import GenerationSettings
    from savi.loop.propose import AlignSettings

    s = scale.loop
    return AlignSettings(
        num_frames=s.num_frames.value,
        questions_per_kind=s.questions_per_kind.value,
        prompts=s.prompts.value,
        ask=GenerationSettings(max_new_tokens=s.ask_tokens.value, temperature=s.ask_temperature.value, top_p=s.top_p.value),
        answer=GenerationSettings(max_new_tokens=s.answer_tokens.value, temperature=s.answer_temperature.value, top_p=s.top_p.value),
        critique=GenerationSettings(max_new_tokens=s.critique_tokens.value),
        revise=GenerationSettings(max_new_tokens=s.revise_tokens.value),
        chunk_videos=s.chunk_videos.value,
        seed=1000 * s.seed.value + iteration,
        keep_equal=s.keep_equal.value,
    )


def dpo_settings(scale: Scale, iteration: int) -> DPOSettings:
    """How iteration t is trained."""
    from savi.training.settings import DPOSettings

    values: dict[str, Any] = scale.section("training")
    control = values.pop("control")
    if control == "sft":
        values |= {"method": "sft", "rpo_alpha": 0.0}
    return DPOSettings(**values, seed=1000 * scale.loop.seed.value + iteration)


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
    if experiment.scale.published and iteration == experiment.iterations and experiment.scale.evaluation.limit.value is None:
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
