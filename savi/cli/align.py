"""`python -m savi align` and `train`: the loop, or a part of it, on one's own videos and model."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from savi.base.cli import KEPT, bar, errors, print_json, stop, tell, usage
from savi.base.errors import ExitCode
from savi.base.former import former_options
from savi.base.limit_flags import decode_limits
from savi.base.processes import joined
from savi.cli.common import (
    CriticOption,
    DeviceOption,
    FramesOption,
    JsonOption,
    ModelOption,
    PromptsOption,
    ServerOption,
    TrackersOption,
    chunked_for,
    fitting_prompts,
    open_asker,
    open_model,
    usage_lines,
)
from savi.cli.share import InFormatOption, PairsArgument, VideosOption, read
from savi.server.settings import is_server, read_settings
from savi.training.losses import LOSSES
from savi.training.trackers import read_trackers, report

if TYPE_CHECKING:
    from savi.iterate import IterationResult
    from savi.training.settings import DPOSettings

BetaOption = Annotated[float, typer.Option(min=0.0, help="Strength of the pull to the reference model.")]
LossOption = Annotated[str, typer.Option(metavar="|".join(LOSSES), help="The preference loss (savi.training.losses has the formulas).")]
ParameterOption = Annotated[
    list[str],
    typer.Option("--loss-parameter", metavar="NAME=VALUE", help="What the loss takes besides beta (gamma=0.5); may be repeated."),
]
AlphaOption = Annotated[float, typer.Option(min=0.0, help="Weight of the likelihood of the chosen answer beside the preference loss.")]
RateOption = Annotated[float, typer.Option(min=0.0, help="Peak learning rate (LoRA likes about ten times that of full fine-tuning).")]
EpochsOption = Annotated[int, typer.Option(min=1, help="Passes over the pairs.")]
StepOption = Annotated[int, typer.Option(min=1, help="Pairs of an optimiser step.")]
LoraOption = Annotated[int, typer.Option(min=0, help="Rank of the adapters, merged at the end; 0 trains the whole language model.")]
CheckpointingOption = Annotated[bool, typer.Option(help="Keep less in memory, compute more.")]
SeedOption = Annotated[int, typer.Option(help="Of everything that is drawn.")]


def register(app: typer.Typer) -> None:
    """Put the commands into `python -m savi`."""
    app.command(epilog="Example: python -m savi train pairs.jsonl --model micro --out trained --learning-rate 1e-4")(train)
    app.command(epilog="Example: python -m savi align clips/ --model micro --out aligned")(align)


@former_options(from_format="--format")
@decode_limits
def train(
    pairs: PairsArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for train/ (log) and model/ (checkpoint).", show_default=False)],
    model: ModelOption,
    method: Annotated[Literal["dpo", "sft"], typer.Option(help="dpo, or sft on the chosen answers alone.")] = "dpo",
    beta: BetaOption = 0.1,
    loss_type: LossOption = "sigmoid",
    loss_parameter: ParameterOption = [],  # noqa: B006  # typer copies it
    rpo_alpha: AlphaOption = 0.0,
    learning_rate: RateOption = 1e-6,
    epochs: EpochsOption = 1,
    pairs_per_step: StepOption = 16,
    lora_r: LoraOption = 0,
    gradient_checkpointing: CheckpointingOption = False,
    num_frames: Annotated[
        int | None, typer.Option("--num-frames", "-n", min=1, help="Frames per video.", show_default="as the pairs were made")
    ] = None,
    sharding: Annotated[
        Literal["none", "fsdp2", "deepspeed"],
        typer.Option(help="Under torchrun: the whole model on each process (none), or its weights and optimiser spread over them."),
    ] = "none",
    from_format: InFormatOption = None,
    videos: VideosOption = None,
    save_steps: Annotated[int, typer.Option(min=0, help="Keep a checkpoint to go on from every so many steps; 0: none.")] = 0,
    seed: SeedOption = 0,
    report_to: TrackersOption = ["none"],  # noqa: B006  # typer copies it
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train a model on preference pairs by DPO, each video encoded once for all its pairs.

    OUT/model is a plain checkpoint (LoRA merged). With --save-steps the same command goes on where it was killed. On several GPUs:
    torchrun --nproc-per-node 8 -m savi train ... (with --sharding fsdp2 where one GPU cannot hold the training).
    """
    kept = "the last checkpoint is kept; run the same command to go on"
    with errors(kept=kept if save_steps else "nothing is kept (checkpoints on the way: --save-steps)"):
        with usage():
            settings = _settings(
                loss_parameter, method=method, beta=beta, loss_type=loss_type, rpo_alpha=rpo_alpha, learning_rate=learning_rate,
                epochs=epochs, pairs_per_step=pairs_per_step, lora_r=lora_r, num_frames=num_frames, save_steps=save_steps,
                gradient_checkpointing=gradient_checkpointing, seed=seed, sharding=sharding,
            )  # fmt: skip
        trackers = read_trackers(",".join(report_to))
        found = read(pairs, from_format, videos)
        with joined(out / "train") as processes:
            lm = open_model(model, device)
            from savi.training import trainer

            with usage(), bar("train") as told:
                result = trainer.train(lm, found, settings, out, progress=told, report_to=trackers)
    if processes.rank:
        return  # the first process tells
    dropped = {pair.pair_id: pair.reason for pair in result.pairs_dropped}
    if as_json:
        last = result.log[-1] if result.log else {}
        print_json(
            {"checkpoint": str(result.checkpoint), "steps": result.steps, "pairs": result.pairs_used, "dropped": dropped, "last": last}
        )
        return
    for name, reason in dropped.items():
        typer.echo(f"dropped {name}: {reason}", err=True)
    typer.echo(f"{result.steps} steps on {result.pairs_used} pairs ({len(dropped)} dropped) -> {result.checkpoint}")


@decode_limits
def align(
    videos: Annotated[list[Path], typer.Argument(help="Video files, and folders searched for them.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for iter-1/, iter-2/, ... Run again to go on.", show_default=False)],
    model: ModelOption,
    critic: CriticOption = None,
    server: ServerOption = [],  # noqa: B006  # typer copies it
    iterations: Annotated[int, typer.Option(min=1, help="Rounds of proposing and training (the paper: 4).")] = 4,
    num_frames: FramesOption = 8,
    questions_per_kind: Annotated[int, typer.Option(min=1, help="Questions of each kind a video (3 by the paper's counts).")] = 3,
    prompts: PromptsOption = None,
    beta: BetaOption = 0.1,
    loss_type: LossOption = "sigmoid",
    loss_parameter: ParameterOption = [],  # noqa: B006  # typer copies it
    rpo_alpha: AlphaOption = 0.0,
    learning_rate: RateOption = 1e-6,
    epochs: EpochsOption = 1,
    pairs_per_step: StepOption = 16,
    lora_r: LoraOption = 0,
    gradient_checkpointing: CheckpointingOption = False,
    seed: SeedOption = 0,
    report_to: TrackersOption = ["none"],  # noqa: B006  # typer copies it
    as_json: JsonOption = False,
) -> None:
    """Align a model with its own critiques: propose pairs, train on them, and again with the model that comes out.

    Each video goes to one iteration, drawn at random. OUT/iter-N/model is a plain checkpoint. Nothing is measured here: see
    `python -m harness evaluate`, or `python -m reproduce paper` for all of it. On several GPUs: torchrun --nproc-per-node 8 -m savi align.
    """
    with errors(kept=KEPT):
        from savi.conversion.native import native_folder
        from savi.curves import iteration_curves
        from savi.engine.model_folder import load_tokenizer
        from savi.iterate import run_iteration
        from savi.loop.propose import AlignSettings

        with usage():
            dpo = _settings(
                loss_parameter, beta=beta, loss_type=loss_type, rpo_alpha=rpo_alpha, learning_rate=learning_rate, epochs=epochs,
                pairs_per_step=pairs_per_step, lora_r=lora_r, gradient_checkpointing=gradient_checkpointing, seed=seed,
            )  # fmt: skip
            settings = AlignSettings(
                num_frames=num_frames, questions_per_kind=questions_per_kind, prompts=prompts or "videosavi", seed=seed
            )
        if is_server(model):
            stop(
                f"--model {model}: align trains its model, and a server's cannot be trained: give a checkpoint (a server can be the "
                "--critic), or make pairs with `savi pairs` and train on them with `savi train`",
                ExitCode.USAGE,
            )
        asked, trackers = read_settings(server)[1], read_trackers(",".join(report_to))
        if critic and is_server(critic):
            settings = chunked_for([asked], settings)
        paths = video_files(videos)
        if len(paths) < iterations:
            stop(f"{len(paths)} videos for {iterations} iterations: give more videos, or fewer --iterations", ExitCode.USAGE)
        random.Random(f"deal/{seed}").shuffle(paths)
        rows = []
        with joined(out) as processes:
            now = processes.by_first(lambda: native_folder(model, tell=tell))
            if prompts is None:
                settings = replace(settings, prompts=fitting_prompts(model, load_tokenizer(now)))
            judge = None if critic is None else open_asker(critic, "auto", asked)
            for t in range(1, iterations + 1):
                with bar(f"iteration {t}") as told:
                    clips, folder = sorted(paths[t - 1 :: iterations]), out / f"iter-{t}"
                    done = run_iteration(now, clips, folder, settings, dpo, critic=judge, report_to=trackers, progress=_staged(told))
                if trackers and done.seconds and processes.rank == 0:
                    report(trackers, out, t, iteration_curves(folder, dpo))
                rows.append(_row(t, done))
                if not as_json and processes.rank == 0:
                    typer.echo(_line(t, done))
                    for line in usage_lines(done.pairs_file):
                        typer.echo(line)
                now = done.training.checkpoint
    if processes.rank:
        return  # the first process tells
    if as_json:
        print_json({"iterations": rows})
    if not any(row["trained_on"] for row in rows):
        stop("no iteration had a pair to train on: see dropped.jsonl and failures.jsonl in each iteration's folder", ExitCode.FAIL)


def _row(iteration: int, done: IterationResult) -> dict[str, Any]:
    from savi.loop.journal import read_usage

    made = done.training
    used = {who: asdict(usage) for who, usage in read_usage(done.pairs_file).items()}
    row = {"iteration": iteration, **asdict(done.counts), "trained_on": made.pairs_used, "steps": made.steps, "model": str(made.checkpoint)}
    return row | ({"usage": used} if used else {})


def _line(iteration: int, done: IterationResult) -> str:
    made = done.training
    trained = f"{made.steps} steps on {made.pairs_used} pairs" if made.trained else "no pair to train on, model unchanged"
    return f"iteration {iteration}: {done.counts.line()}; {trained} -> {made.checkpoint}"


def video_files(given: list[Path]) -> list[Path]:
    """The files among `given`, and the videos in its folders."""
    from savi.video.frames import find_videos

    paths = [path for one in given for path in (find_videos(one) if one.is_dir() else [one])]
    if absent := next((path for path in paths if not path.exists()), None):
        stop(f"{absent}: no such file", ExitCode.USAGE)
    return paths


def _settings(loss_parameter: list[str], *, lora_r: int, **values: object) -> DPOSettings:
    """The settings of a command's options; LoRA's alpha is twice its rank.

    Raises:
        ValueError: one of them cannot be.
    """
    from savi.training.settings import DPOSettings

    values |= {"loss_parameters": dict(_number(text) for text in loss_parameter), "lora_r": lora_r, "lora_alpha": 2 * max(lora_r, 1)}
    return DPOSettings.model_validate({key: value for key, value in values.items() if value is not None})


def _number(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise ValueError(f"--loss-parameter {text!r}: write NAME=VALUE, as gamma=0.5") from None


def _staged(told: Callable[[int, int], None]) -> Callable[[str, int, int], None]:
    """One bar for both stages: it starts over with the second."""
    return lambda _stage, done, total: told(done, total)
