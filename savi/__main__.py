"""`python -m savi`: ask a video, make preference pairs from videos, convert a checkpoint.

Exit codes: 0 done, 1 done but nothing came of it, 2 wrong use or something named is missing, 4 a file is broken, 5 this machine cannot do
it (no network, no room on disk, a package or device is missing).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from savi.video_lm import VideoLM

NOTHING, USAGE, BROKEN, MACHINE = 1, 2, 4, 5

app = typer.Typer(
    name="savi",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Align a video language model with its own critiques: ask it, make preference pairs, convert checkpoints.",
    epilog="Exit codes: 0 done, 1 nothing came of it, 2 wrong use or missing, 4 a file is broken, 5 this machine cannot do it.",
)

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        envvar="SAVI_MODEL",
        metavar="FOLDER|OWNER/NAME",
        help="A native checkpoint folder, or a Hugging Face id. The small model shipped with the project: benchmarks/micro/base.",
        show_default=False,
    ),
]
FramesOption = Annotated[int, typer.Option("--num-frames", "-n", min=1, help="Frames per video, each from the middle of an equal segment.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@app.command(
    epilog="Example: python -m savi ask clip.mp4 'What is left of the cup?' 'What happens after it falls?' --model benchmarks/micro/base"
)
def ask(
    video: Annotated[Path, typer.Argument(help="A video file.", show_default=False)],
    questions: Annotated[
        list[str], typer.Argument(metavar="QUESTION...", help="Any number; the video is encoded once.", show_default=False)
    ],
    model: ModelOption,
    num_frames: FramesOption = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest reply.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest word each time; above 0 draws.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Draw among the likeliest words of this total probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draws; a question's draw does not depend on the others.")] = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Answer questions on one video."""
    if any(not question.strip() for question in questions):
        _stop("a question is empty", USAGE)
    with _errors():
        from savi.frames import read_frames
        from savi.sampling import GenerationSettings

        with _usage():
            settings = GenerationSettings(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
        clock = _Clock()
        frames = read_frames(video, num_frames=num_frames)
        clock.lap("decode")
        lm = _load(model, device)
        clock.lap("load")
        watched = lm.watch(frames)
        clock.lap("encode")
        repeats = [questions[:number].count(question) for number, question in enumerate(questions)]
        keys = [f"{question}/{repeat}" for question, repeat in zip(questions, repeats, strict=True)]  # a draw of its own for each
        replies = lm.ask([(watched, question) for question in questions], settings, keys=keys)
        clock.lap("answer")
    if as_json:
        answers = [{"question": question, **asdict(reply)} for question, reply in zip(questions, replies, strict=True)]
        shown = {"indices": list(frames.indices), "total": frames.total, "fps": frames.fps, "duration_s": frames.duration_s}
        what = {"model": lm.name, "fingerprint": lm.fingerprint, "video": str(video), "frames": shown, "settings": asdict(settings)}
        _print_json({**what, "answers": answers, "seconds": clock.laps})
        return
    for number, (question, reply) in enumerate(zip(questions, replies, strict=True)):
        if len(questions) > 1:
            typer.echo(("\n" if number else "") + f"> {question}")
        typer.echo(reply.text)
        if not reply.finished:
            typer.echo(f"(cut off after {reply.tokens} tokens; raise --max-new-tokens)", err=True)


@app.command(epilog="Example: python -m savi pairs clips/ --out pairs.jsonl --model benchmarks/micro/base --prompts micro")
def pairs(
    videos: Annotated[list[Path], typer.Argument(help="Video files, and folders searched for them.", show_default=False)],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The pairs, JSON Lines. Run again to go on where it stopped.", show_default=False)
    ],
    model: ModelOption,
    num_frames: FramesOption = 8,
    questions_per_kind: Annotated[int, typer.Option(min=1, help="Spatial, and as many temporal, questions a video (the paper: 3).")] = 3,
    prompts: Annotated[str, typer.Option(help="How the model is asked: videosavi, or micro for the shipped small model.")] = "videosavi",
    seed: Annotated[int, typer.Option(help="Of the sampled questions and answers.")] = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Make preference pairs from unlabelled videos, by the model's own critiques.

    Per question: an answer (rejected), the model's critique of it, its revision (chosen). A question without a pair leaves its reason in
    dropped.jsonl beside OUT, a video that cannot be read a row in failures.jsonl; neither stops the rest.
    """
    with _errors():
        from savi.files import FailureLog
        from savi.frames import find_videos
        from savi.self_align import AlignSettings, read_counts, self_align

        with _usage():
            settings = AlignSettings(num_frames=num_frames, questions_per_kind=questions_per_kind, prompts=prompts, seed=seed)
        paths = [path for given in videos for path in (find_videos(given) if given.is_dir() else [given])]
        if absent := next((path for path in paths if not path.exists()), None):
            _stop(f"{absent}: no such file", USAGE)
        lm = _load(model, device)
        failures = FailureLog(out.with_name("failures.jsonl"))
        with _bar("videos") as told:
            for _ in self_align(lm, paths, settings, out=out, failures=failures, progress=told):
                pass
        counts = read_counts(out)
    if as_json:
        _print_json({"out": str(out), "failures": str(failures.path), **asdict(counts)})
    else:
        typer.echo(f"{counts.line()} -> {out}" + (f"; broken videos are listed in {failures.path}" if counts.broken else ""))
    if not counts.pairs:
        _stop("no pair was made: see the reasons above", NOTHING)


@app.command(epilog="Example: python -m savi convert OpenGVLab/InternVL2_5-1B models/InternVL2_5-1B")
def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="An internvl_chat checkpoint: a folder, or a Hugging Face id.", show_default=False)
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder to make; it appears whole or not at all.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Turn InternVL 2.5 weights (VideoSAVi's too) into a native checkpoint.

    They are published with code of their own, which is not run here. Every tensor is renamed and checked, the tokenizer compared with the
    original's. DST appears whole or not at all; killed and started again, the work goes on with the shard it was at.
    """
    with _errors():
        from savi.checkpoint import convert as convert_folder
        from savi.checkpoint import weights_fingerprint
        from savi.hub import find_checkpoint

        folder = find_checkpoint(source, tell=_tell)
        with _bar("shards") as told:
            convert_folder(folder, target, progress=lambda _what, done, steps: told(done, steps))
        fingerprint = weights_fingerprint(target)
    if as_json:
        _print_json({"source": source, "target": str(target), "fingerprint": fingerprint})
    else:
        typer.echo(f"{target}: ready (weights {fingerprint[:12]}); try: python -m savi ask VIDEO 'What happens?' --model {target}")


def _load(model: str, device: str) -> VideoLM:
    from savi.hub import find_native

    folder = find_native(model, tell=_tell)  # before torch is imported: a wrong name is told at once
    import torch

    from savi.video_lm import VideoLM

    if device != "auto":
        try:
            kind = torch.device(device).type
        except RuntimeError:
            _stop(f"--device {device}: no such device; use auto, cpu, cuda or cuda:N", USAGE)
        if kind == "cuda" and not torch.cuda.is_available():
            _stop(f"--device {device}: torch finds no CUDA device here; use --device cpu", MACHINE)
    return VideoLM.from_pretrained(folder, device=device)


@contextmanager
def _usage() -> Iterator[None]:
    """Settings that refuse a value say so; that is the user's to mend."""
    try:
        yield
    except ValueError as error:
        _stop(error, USAGE)


class _Clock:
    """Seconds of each step, in order."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 4)
        self._last = now


@contextmanager
def _errors() -> Iterator[None]:
    """Known errors become one line on stderr and an exit code; an unknown one is a bug and keeps its traceback."""
    from savi.frames import VideoError

    try:
        yield
    except VideoError as error:
        _stop(error, USAGE if error.kind == "missing" else BROKEN)
    except ModuleNotFoundError as error:
        _stop(f"{error} (a package is missing: install the project with pip install -e .)", MACHINE)
    except OSError as error:
        _stop(error, MACHINE)
    except Exception as error:
        code = _code(error)
        if code is None:
            raise
        _stop(error, code)


def _code(error: Exception) -> int | None:
    """The exit code of an error of this project or of torch; the classes are only looked at where their module is loaded already."""
    codes = {
        ("savi.hub", "NoSuchModelError"): USAGE,
        ("savi.hub", "HubError"): MACHINE,
        ("savi.checkpoint_config", "TargetError"): USAGE,
        ("savi.checkpoint_config", "NoRoomError"): MACHINE,
        ("savi.checkpoint_config", "CheckpointError"): BROKEN,
        ("savi.video_lm", "ContextError"): USAGE,
        ("savi.video_lm", "ModelError"): BROKEN,
        ("savi.families.base", "FamilyError"): USAGE,
        ("savi.self_align", "ResumeError"): USAGE,
        ("savi.files", "FileFormatError"): BROKEN,
        ("torch", "OutOfMemoryError"): MACHINE,
        ("torch", "AcceleratorError"): MACHINE,
    }
    for (module, name), code in codes.items():
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type) and isinstance(error, kind):
            return code
    return None


def _stop(message: object, code: int) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)


def _tell(sentence: str) -> None:
    typer.echo(sentence, err=True)


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


@contextmanager
def _bar(what: str) -> Iterator[Any]:
    """A progress bar on stderr, on a terminal only; gives a function to call with (done, total)."""
    console = Console(stderr=True)
    columns = (TextColumn(escape(what)), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


if __name__ == "__main__":
    app()
