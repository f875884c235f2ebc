"""`python -m reproduce paper`: resolves the settings, says what will be done and why, and runs it in the right environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from reproduce.plan.console import calibrate_machine, print_plans
from reproduce.stages import START_OVER
from savi.base.cli import KEPT, Stopped, describe_error, describe_stop, stop
from savi.base.errors import ExitCode, SaviError
from savi.base.files import write_text_atomic
from savi.base.former import listed
from savi.base.limit_flags import decode_limits
from savi.base.lock import LockedError
from savi.base.processes import joined, launched
from savi.cli.common import TrackersOption

if TYPE_CHECKING:
    from reproduce.paper.experiment import Experiment
    from reproduce.paper.paper import Outcome
    from reproduce.paper.work import Work
    from reproduce.scale import Scale

LINE = "command line: --{}"


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command("paper")(paper_command)


def make_work() -> Work:
    """What the stages call; tests put another in its place."""
    from reproduce.paper.work import RealWork

    return RealWork()


def default_out(scale: str, seed: int, control: str) -> Path:
    """runs/micro, runs/micro-seed3-reversed."""
    return Path("runs") / (scale + (f"-seed{seed}" if seed else "") + ("" if control == "none" else f"-{control}"))


@decode_limits
def paper_command(
    scale: Annotated[
        str,
        typer.Option(help="smoke, micro, 8b, ... (the files of reproduce/scales), or auto: the largest the GPU holds, else micro."),
    ] = "auto",
    iterations: Annotated[int | None, typer.Option(help="Iterations of the loop (the paper: 4).", min=1)] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The run's folder; runs/SCALE by default. Run again to go on where a run stopped.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the loop: videos, samples, order of training.")] = 0,
    benchmarks: Annotated[
        list[str] | None, typer.Option("--benchmarks", help="Only these benchmarks (default: the paper's six); repeated or with commas.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most this many questions of each lmms-eval task.", min=1)] = None,
    videos: Annotated[Path | None, typer.Option(help="Folder of unlabelled videos (needed at scales of real data).")] = None,
    exclude: Annotated[bool, typer.Option("--exclude", help="Leave out those of --videos that are benchmark videos.")] = False,
    base: Annotated[str | None, typer.Option(help="Another base model: a folder or a hub id.")] = None,
    control: Annotated[str, typer.Option(help="none, or a control: reversed, blind, sft or sft-initial.")] = "none",
    twins_seed: Annotated[int | None, typer.Option(help="Seed of the small benchmarks (micro, smoke).")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any setting of the scale, as training.epochs=2; may be repeated. run.json names it as yours."),
    ] = None,
    report_to: TrackersOption = ["none"],  # noqa: B006  # typer copies it
    processes: Annotated[
        str | None, typer.Option(metavar="auto|1|2", help="Processes on this machine (micro: two where there are two cores).")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never fetch anything, not even the base model.")] = False,
    start_over: Annotated[
        bool, typer.Option(START_OVER, help="Make everything again; what is there is kept until its replacement is finished.")
    ] = False,
    take_from: Annotated[
        Path | None, typer.Option("--take-from", metavar="RUN", help="Take from another run what would come out the same in this one.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost for every scale; run nothing.")] = False,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="With --dry-run: first measure this machine (a minute; decoding on --videos), for this plan and later ones."
        ),
    ] = False,
    gpus_planned: Annotated[
        int | None,
        typer.Option("--gpus", help="With --dry-run: so many GPUs share the work (torchrun); time, and memory of each in training.", min=1),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: the plans as JSON.")] = False,
) -> None:
    """Run the experiment: measure the base, align it with its own critiques, measure again, decide, and print the tables.

    On several GPUs: torchrun --nproc-per-node 8 -m reproduce paper ...; the run's folder must be seen by all processes.

    Exit codes: 0 the experiment is complete; 2 usage, or a folder of another configuration; 4 scores that are not comparable; 5 something
    the run needs is missing or broke (run the same command again to go on).
    """
    from benchmarks.catalog import UnknownBenchmarkError
    from reproduce.paper.experiment import Experiment
    from reproduce.run_dir import RUN_FILE, RunDir
    from reproduce.scale import Control, ScaleError, choose_scale, find_gpus, load_scale

    if control not in get_args(Control):
        stop(f"unknown control {control!r}; choose from {', '.join(get_args(Control))}", ExitCode.USAGE)
    typed = {
        "loop.iterations": (iterations, "iterations"), "evaluation.limit": (limit, "limit"), "model.base": (base, "base"),
        "evaluation.twins_seed": (twins_seed, "twins-seed"), "loop.seed": (seed or None, "seed"),
        "training.control": (None if control == "none" else control, "control"),
        "machine.processes": (int(processes) if processes and processes.isdecimal() else processes, "processes"),
    }  # fmt: skip
    try:
        overrides = _read_overrides(typed, settings or [], benchmarks or [])
        gpus = find_gpus()
        choice = choose_scale(scale, gpus, videos=videos is not None)
        chosen = load_scale(choice.name, overrides)
    except (ScaleError, UnknownBenchmarkError) as e:
        stop(str(e), ExitCode.USAGE)
    if not dry_run and (calibrate or gpus_planned):
        what = "--calibrate measures this machine" if calibrate else "--gpus says how many GPUs share the work"
        stop(f"{what} for a plan: give --dry-run too{'' if calibrate else '; torchrun starts a run on several'}", ExitCode.USAGE)
    if dry_run:
        if calibrate:
            calibrate_machine(chosen.machine.device.value, videos)
        print_plans(choice.name, choice.why, overrides, gpus=gpus_planned or 1, as_json=as_json)
        return
    _check_inputs(chosen, videos, base, exclude=exclude)
    if take_from is not None and not (take_from / RUN_FILE).is_file():
        stop(f"--take-from {take_from}: no run (a folder with {RUN_FILE})", ExitCode.USAGE)
    folder = out or default_out(chosen.name, seed, control)
    _check_places(chosen, folder, gpus)
    trackers = _trackers(",".join(report_to))
    given = videos.resolve() if videos else None
    experiment = Experiment(chosen, RunDir(folder), _hf_home(chosen, folder), given, exclude, offline, trackers)
    sys.exit(execute(experiment, why=choice.why, asked=scale, gpus=gpus, start_over=start_over, take_from=take_from))


def _read_overrides(typed: Mapping[str, tuple[Any, str]], settings: list[str], benchmarks: list[str]) -> dict[str, tuple[Any, str]]:
    """Settings from the command line, each with the option it was given by. `typed`: by key of the scale, (value or None, option)."""
    from benchmarks.catalog import select
    from reproduce.scale import read_settings

    overrides = {key: (value, LINE.format(option)) for key, (value, option) in typed.items() if value is not None}
    overrides |= {key: (value, LINE.format("set")) for key, value in read_settings(settings).items()}
    if names := listed(benchmarks):
        overrides["evaluation.benchmarks"] = ([b.name for b in select(names)], LINE.format("benchmarks"))
    return overrides


def _check_inputs(scale: Scale, videos: Path | None, base: str | None, *, exclude: bool) -> None:
    """End with a message where the options do not fit the scale."""
    if scale.data == "real" and videos is None:
        given = "give --videos DIR (the paper: Star, Vidal, WebVid)"
        stop(f"scale {scale.name} aligns on unlabelled videos of your own: {given}", ExitCode.USAGE)
    if exclude and videos is None:
        stop("--exclude leaves out some of --videos DIR: give both", ExitCode.USAGE)
    if scale.data == "micro" and videos is not None:
        stop(f"--videos is for scales of real data; scale {scale.name} makes its own", ExitCode.USAGE)
    if videos is not None and not videos.is_dir():
        stop(f"--videos {videos}: no such folder", ExitCode.USAGE)
    from reproduce.paper.experiment import OWN_CRITICS, SHIPPED

    if (critic := scale.loop.critic.value) not in (*OWN_CRITICS, "base", SHIPPED) and not Path(critic).is_dir():
        stop(f"loop.critic {critic!r}: self, base, none, {SHIPPED}, or a folder with a model (there is no such folder)", ExitCode.USAGE)
    if base is not None and base != "shipped" and scale.data == "micro" and not Path(base).is_dir():
        stop(f"--base {base}: no such folder (scale {scale.name} takes the shipped base or a folder)", ExitCode.USAGE)


def _trackers(report_to: str) -> tuple[str, ...]:
    from savi.training.trackers import read_trackers

    try:
        return read_trackers(report_to)
    except SaviError as error:
        stop(error, error.exit_code)


def _check_places(scale: Scale, folder: Path, gpus: list[Any]) -> None:
    """End with a message where the run cannot be in this folder or on this machine."""
    if folder.exists() and not folder.is_dir():
        stop(f"--out {folder} is a file, not a folder", ExitCode.USAGE)
    if scale.data == "real" and scale.machine.device.value == "cuda" and not gpus:
        need = f"scale {scale.name} needs a CUDA GPU with {scale.machine.gpu_gb.value:.0f} GB, and this machine has none"
        stop(f"{need}: take --scale micro, or say --set machine.device=cpu to go without", ExitCode.MACHINE)


def _hf_home(scale: Scale, folder: Path) -> Path:
    """Where the data sets are: the run's own twins, or the user's."""
    if scale.data == "micro":
        return folder.resolve() / "data" / "hf_home"
    return Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")


def execute(
    experiment: Experiment,
    *,
    why: str,
    asked: str,
    gpus: list[Any],
    start_over: bool = False,
    take_from: Path | None = None,
) -> int:
    """Run an experiment in its folder; returns the exit code."""
    from reproduce.paper.experiment import base_path
    from reproduce.paper.launch import become_worker
    from reproduce.paper.paper import build_stages, follow
    from reproduce.run_dir import RunDirError, base_identity
    from reproduce.stages import StampsLostError

    s = experiment.scale
    try:
        identity = base_identity(base_path(experiment)) if s.data == "micro" else None

        def enter() -> None:
            become_worker(experiment.hf_home, device=s.machine.device.value, small=s.data == "micro")

        if launched() > 1:
            enter()
        with joined(experiment.run.path) as processes:
            if processes.rank:
                follow(experiment, build_stages(experiment, make_work(), base_fingerprint=identity))
                return ExitCode.DONE
            outcome = _lead(experiment, identity, enter, why=why, asked=asked, gpus=gpus, start_over=start_over, take_from=take_from)
            processes.from_first("")  # no more stages
    except (RunDirError, StampsLostError, LockedError) as e:
        return _problem(str(e), e.exit_code)
    except (Stopped, KeyboardInterrupt) as e:
        return _problem(*describe_stop(e, KEPT))
    except Exception as e:  # noqa: BLE001 - the edge of the program: named here, with its traceback in a file, and never exit 0
        return _crash(experiment, e)
    return ExitCode.BROKEN if outcome.integrity else 0


def _lead(
    experiment: Experiment,
    identity: str | None,
    enter: Callable[[], None],
    *,
    why: str,
    asked: str,
    gpus: list[Any],
    start_over: bool,
    take_from: Path | None,
) -> Outcome:
    """What one process does, or the first of several: see how far the run is, run the rest, say what came of it."""
    from reproduce.paper.console import RunConsole
    from reproduce.paper.jobs import second_process
    from reproduce.paper.paper import build_stages, run_paper, summarise
    from reproduce.run_dir import new_facts
    from reproduce.stages import drop_stamps, refuse_lost_stamps, statuses, take_stages

    s, console, work = experiment.scale, RunConsole(), make_work()
    found = experiment.run.read()
    stages = build_stages(experiment, work, base_fingerprint=identity)
    if found and not start_over:
        refuse_lost_stamps(experiment.run.path, stages)
    status = statuses(experiment.run.path, stages) if found and not start_over else {}
    finished = bool(status) and all(v.done for v in status.values())
    if not finished:
        enter()  # the lines below are said once, by the process that does the work
    console.say(f"scale {s.name}: {s.title}")
    console.say(f"  {'chosen' if asked == 'auto' else 'taken'} because: {why}")
    with nullcontext() if finished else second_process(experiment, identity, console.remark) as work.second, experiment.run.lock():
        facts = new_facts(
            scale=s.name,
            data=s.data,
            published=s.published,
            why=why,
            title=s.title,
            seed=s.loop.seed.value,
            gpus=gpus,
            base_fingerprint=identity,
            hf_home="data/hf_home" if s.data == "micro" else str(experiment.hf_home),
        )
        new = experiment.run.open(_all_settings(experiment), facts)
        experiment.run.sweep()
        if start_over:
            drop_stamps(experiment.run.path, stages)
        _say_plan(console, experiment, stages, status, new, facts)
        if finished:
            return summarise(experiment, stages, console)
        if take_from is not None and (taken := take_stages(take_from, experiment.run.path, stages)):
            console.say(f"  {len(taken)} stages taken from {take_from}")
        if work.second is not None:
            console.say("  2 processes of one thread share the work (--processes 1: one alone; the results are the same)")
        with console:
            return run_paper(experiment, stages, console, work.second)


def _all_settings(experiment: Experiment) -> dict[str, Any]:
    """The scale's settings, and those that are no scale's: the user's videos."""
    from reproduce.scale import Setting

    settings: dict[str, Any] = dict(experiment.scale.settings())
    if experiment.videos is not None:
        settings["loop.videos"] = Setting[Any](value=str(experiment.videos), source=LINE.format("videos"))
        if experiment.exclude:
            settings["loop.exclude"] = Setting[Any](value=True, source=LINE.format("exclude"))
    return settings


def _say_plan(console: Any, experiment: Experiment, stages: list[Any], status: dict[str, Any], new: bool, facts: dict[str, Any]) -> None:
    done = sum(v.done for v in status.values())
    s = experiment.scale
    console.say(
        f"  {s.loop.iterations.value} iterations, {s.loop.videos_per_iteration.value} videos each, seed {s.loop.seed.value}"
        + ("" if s.training.control.value == "none" else f", control {s.training.control.value}")
    )
    if new:
        console.say(f"  new run in {experiment.run.path}, {len(stages)} stages")
        return
    console.say(f"  run in {experiment.run.path}: {done} of {len(stages)} stages are done" + ("" if done == len(stages) else ", going on"))
    found = experiment.run.read() or {}
    for name in ("versions", "git"):
        if found.get(name) != facts[name]:
            changed = [k for k in facts[name] if (found.get(name) or {}).get(k) != facts[name][k]]
            console.say(f"  note: this run was begun with another {name} ({', '.join(changed)}); run.json keeps the first")


def _problem(text: str, code: int) -> int:
    typer.echo(f"error: {text}", err=True)
    return code


def _crash(experiment: Experiment, error: Exception) -> int:
    """A stage that broke: the message and where its traceback is; a missing data set and the like need no traceback."""
    import traceback

    from reproduce.paper.experiment import OtherSettingsNeededError

    name = type(error).__name__
    known = describe_error(error)
    if known is not None:
        text, code = known
        return _problem(text if isinstance(error, OtherSettingsNeededError) else f"{text}\n({KEPT})", code)
    path = experiment.run.path / "crash.txt"
    trace = "".join(traceback.format_exception(error))
    try:
        write_text_atomic(path, trace)
        where = f"traceback in {path}"
    except OSError:
        typer.echo(trace, err=True)
        where = "traceback above"
    return _problem(f"{name}: {error} ({where}); finished stages are kept, run the same command to go on", ExitCode.MACHINE)
