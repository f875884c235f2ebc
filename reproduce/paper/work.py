"""What the experiment's stages do: the one place that calls savi, the harness and the benchmarks for the main job.

Heavy modules are imported inside the functions, so that a run that is already finished costs none of them.
"""

from __future__ import annotations

import gc
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from harness.records import read_evaluations
from reproduce.paper.cards import describe_model, describe_pairs
from reproduce.paper.experiment import (
    SHIPPED,
    Experiment,
    MissingInputError,
    OtherSettingsNeededError,
    align_settings,
    base_path,
    dpo_settings,
    read_names,
    write_names,
)
from reproduce.paper.overlap import find_overlap, notes, overlapping, readable
from reproduce.paper.results import all_evaluations, list_failed, mean_pct, score_line, write_gate, write_leaderboard, write_tables
from reproduce.run_dir import base_identity
from reproduce.stages import Progress
from savi.base.digests import sha256_json
from savi.base.files import write_text_atomic
from savi.base.hub import find_checkpoint, is_internvl_chat
from savi.base.processes import current, deal_by_weight

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.records import Evaluation
    from reproduce.paper.second import Second
    from savi.engine.video_lm import VideoLM


class Work(Protocol):
    """What the stages call. Each returns a line for people, without times. `second`: another process that takes a share."""

    second: Second | None

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
    _critic: tuple[str, VideoLM] | None = field(default=None, repr=False)
    second: Second | None = field(default=None, repr=False)

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
        from benchmarks.data.layout import check, fingerprint, fix_command, has_twins

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
        instead = "synthetic twins in the place of the data sets (no published number stands beside them)"
        what = instead if has_twins(experiment.hf_home) else "data sets"
        return f"{len(found)} {what}, {sum(s.n for s in found)} questions"

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
        every = [v for v in find_videos(experiment.videos) if readable(v.relative_to(experiment.videos).as_posix()) not in left_out]
        order = list(range(len(every)))
        random.Random(f"deal/{seed}").shuffle(order)
        dealt = sorted(order[(iteration - 1) * n : iteration * n])
        if not dealt:
            raise MissingInputError(
                f"{experiment.videos}: {len(every)} videos are used up before iteration {iteration} ({n} an iteration); "
                "give more, or fewer --iterations"
            )
        write_names(experiment.video_list(iteration), [every[i].relative_to(experiment.videos).as_posix() for i in dealt])
        return f"{len(dealt)} of {len(every)} videos" + ("" if len(dealt) == n else f" ({n} were asked for)")

    def _videos(self, experiment: Experiment, iteration: int) -> list[Path]:
        if experiment.videos is None:
            from savi.video.frames import find_videos

            return find_videos(experiment.video_folder(iteration))
        return [experiment.videos / name for name in read_names(experiment.video_list(iteration))]

    def propose(self, experiment: Experiment, iteration: int, progress: Progress, failures: Path) -> str:
        """Ask, answer, criticise, revise: preference pairs of iteration t by the model of t - 1."""
        from savi.base.files import FailureLog
        from savi.loop.journal import read_counts
        from savi.loop.propose import propose

        out = experiment.run.iteration(iteration) / "pairs.jsonl"
        lm = self.model(experiment.model(iteration - 1))
        for _ in propose(
            lm,
            self._videos(experiment, iteration),
            align_settings(experiment.scale, iteration),
            critic=self.critic(experiment, iteration),
            out=out,
            dropped=out.with_name("dropped.jsonl"),
            failures=FailureLog(failures),
            progress=progress,
            helper=None if self.second is None else self.second.helper(iteration),
        ):
            pass
        if current().rank == 0:
            describe_pairs(experiment, iteration, read_counts(out).line())
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
                report_to=experiment.report_to,
                replay_critiques=experiment.scale.training.replay_critiques.value,
                keep=_early_stop(experiment, iteration),
            )
        except DivergedError as error:
            rate = experiment.scale.training.learning_rate.value
            raise OtherSettingsNeededError(
                f"iteration {iteration}, {error}; the same settings would diverge again: take a --set training.learning_rate=... below "
                f"{rate:g}, and another --out"
            ) from error
        if current().rank == 0:
            describe_model(experiment, iteration)
        if not result.trained:
            if stopped := _early_stop(experiment, iteration):
                return f"{stopped}: the model stays as it is"
            return "no pair to train on: the model stays as it is"
        left = f", {len(result.pairs_dropped)} left out" if result.pairs_dropped else ""
        return f"{result.steps} steps on {result.pairs_used} pairs{left}"

    def evaluate(self, experiment: Experiment, iteration: int, progress: Progress, failures: Path) -> str:
        """All benchmarks by lmms-eval's own tasks."""
        from benchmarks.catalog import select
        from benchmarks.data.layout import expected_n

        counts = {b.name: expected_n(experiment.hf_home, b, experiment.scale.evaluation.limit.value) for b in select(experiment.benchmarks)}
        names = list(counts)

        def tell(name: str, done: int, total: int) -> None:
            progress(sum(counts[n] for n in names[: names.index(name)]) + done, sum(counts.values()))

        if self.second is not None and iteration == experiment.iterations:  # the last one: there is no training to measure it beside
            ours, theirs = ([names[i] for i in hand] for hand in deal_by_weight(list(counts.values()), 2))
            if theirs:
                self.second.begin(("benchmarks", (iteration, theirs)))
                self.measure(experiment, iteration, ours, progress=tell)
                self.second.wait(f"benchmarks {iteration}")
        found = self.measure(experiment, iteration, experiment.benchmarks, progress=tell)
        if current().rank:
            return ""  # the first process has the results
        list_failed(found, experiment.run.iteration(iteration).name, failures)
        if experiment.report_to:
            each = {f"score/{name}": e.score.strict_pct for name, e in found.items()}
            self._report(experiment, iteration, {"score": mean_pct(found), **each})
        if iteration:
            describe_model(experiment, iteration, found)
        return score_line(found, read_evaluations(experiment.run.iteration(0)) if iteration else None)

    def measure(
        self,
        experiment: Experiment,
        iteration: int,
        benchmarks: list[str] | None,
        *,
        held: bool = False,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> dict[str, Evaluation]:
        """Some benchmarks of an iteration; `held` as in `evaluate`."""
        from harness.run.evaluate import evaluate

        e = experiment.scale.evaluation
        return evaluate(
            self.model(experiment.model(iteration)),
            benchmarks=benchmarks,
            hf_home=experiment.hf_home,
            out=experiment.run.iteration(iteration) / "eval",
            num_frames=e.num_frames.value,
            scale=experiment.scale.name,
            limit=e.limit.value,
            seed=e.seed.value,
            progress=progress,
            replace=True,  # the stage is run again only where its inputs changed
            held=held,
        )

    def _report(self, experiment: Experiment, iteration: int, scores: dict[str, float]) -> None:
        """Tell trackers what an iteration came to, and its scores in percent; iteration 0 is the base."""
        from savi.curves import iteration_curves
        from savi.training.trackers import report

        folder, dpo = experiment.run.iteration(iteration), dpo_settings(experiment.scale, iteration)
        report(experiment.report_to, experiment.run.path, iteration, (iteration_curves(folder, dpo) if iteration else {}) | scores)

    def gate(self, experiment: Experiment, iteration: int) -> str:
        return write_gate(experiment, iteration)

    def tables(self, experiment: Experiment) -> str:
        said = notes(experiment.overlap_file, experiment.benchmarks, paper=experiment.published is not None, exclude=experiment.exclude)
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

    def critic(self, experiment: Experiment, iteration: int) -> VideoLM | None:
        """The other model that criticises in iteration t, in memory; None where there is none."""
        path = experiment.critic(iteration)
        if path is None:
            return None
        if self._critic is None or self._critic[0] != str(path):
            from savi.engine.video_lm import VideoLM

            self._critic = (str(path), VideoLM.from_pretrained(path))
        return self._critic[1]

    def model(self, path: Path) -> VideoLM:
        """A checkpoint in memory, loaded once."""
        from savi.engine.video_lm import VideoLM

        if self._loaded is None or self._loaded[0] != str(path):
            self._loaded = None  # let go of the old one before the new one takes memory
            gc.collect()
            self._loaded = (str(path), VideoLM.from_pretrained(path))
        return self._loaded[1]


def _early_stop(experiment: Experiment, iteration: int) -> str:
    """Why iteration t is not trained, by the pairs made so far; empty where it is."""
    from savi.loop.early_stop import stopped_at
    from savi.loop.journal import read_counts

    if not experiment.scale.loop.early_stop.value:
        return ""
    counts = [read_counts(experiment.run.iteration(t) / "pairs.jsonl") for t in range(1, iteration + 1)]
    at = stopped_at(counts)
    return "" if at is None else f"stopped early: the critiques of iteration {at} change more answers than those of an earlier one"
