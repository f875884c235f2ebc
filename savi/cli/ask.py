"""`python -m savi ask`: questions on one video, and follow-up questions in the same conversation."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from savi.base.cli import Clock, errors, print_json, printable, stop, tell, usage
from savi.base.errors import ExitCode, SaviError
from savi.base.limit_flags import decode_limits
from savi.base.shipped import SHIPPED
from savi.cli.common import DeviceOption, FramesOption, JsonOption, ModelOption, open_model

TilesOption = Annotated[
    int, typer.Option("--max-tiles", min=1, help="Tiles a frame may be cut into, with a thumbnail (InternVL; it was trained on up to 12).")
]
SizeOption = Annotated[int | None, typer.Option("--input-size", min=1, help="Side of a tile in pixels (InternVL; the model's own).")]
DtypeOption = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"], typer.Option("--dtype", help="Of the computation (auto: the checkpoint's own).")
]

FEW_WORDS = 500
"""A vocabulary of at most so many is listed."""

if TYPE_CHECKING:
    from savi.engine.chat import ChatFormat
    from savi.engine.sampling import GenerationSettings
    from savi.engine.watched import Watched


def register(app: typer.Typer) -> None:
    """Put the command into `python -m savi`."""
    example = f"python -m savi ask clip.mp4 '{SHIPPED['micro'].question}' --model micro"
    app.command(epilog=f"Example: {example}")(ask)


@decode_limits
def ask(
    video: Annotated[Path, typer.Argument(help="A video file.", show_default=False)],
    questions: Annotated[
        list[str], typer.Argument(metavar="QUESTION...", help="Any number; the video is encoded once.", show_default=False)
    ],
    model: ModelOption,
    follow_up: Annotated[
        list[str], typer.Option(help="Asked after the answer, in the same conversation; may be repeated.", show_default=False)
    ] = [],  # noqa: B006  # typer copies it
    num_frames: FramesOption = 8,
    max_tiles: TilesOption = 1,
    input_size: SizeOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest reply.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest word each time; above 0 draws.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Draw among the likeliest words of this total probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draws; a question's draw does not depend on the others.")] = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write what --json prints to this new file too.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Answer questions on one video."""
    if any(not question.strip() for question in (*questions, *follow_up)):
        stop("a question is empty", ExitCode.USAGE)
    if out is not None and out.exists():
        stop(f"{out}: is there already; name a new file, or remove it", ExitCode.USAGE)
    with errors():
        from savi.base.files import write_json_atomic
        from savi.engine.sampling import GenerationSettings
        from savi.video.read import read_frames

        with usage():
            settings = GenerationSettings(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
        clock = Clock()
        frames = read_frames(video, num_frames=num_frames)
        clock.lap("decode")
        lm = open_model(model, device, dtype=dtype, max_tiles=max_tiles, input_size=input_size)
        clock.lap("load")
        _say_unknown(model, lm.chat, [*questions, *follow_up])
        watched = lm.watch(frames)
        clock.lap("encode")
        answers, failure = _converse(watched, questions, follow_up, settings)
        clock.lap("answer")
        shown = {"indices": list(frames.indices), "total": frames.total, "fps": frames.fps, "duration_s": frames.duration_s}
        what: dict[str, Any] = {"model": lm.name, "fingerprint": lm.fingerprint, "video": str(video), "frames": shown}
        what |= {"max_tiles": max_tiles, "input_size": input_size, "settings": asdict(settings), "answers": answers, "seconds": clock.laps}
        if as_json:
            print_json(what)
        else:
            _print(answers)
        if out is not None:
            write_json_atomic(out, what)
        if failure is not None:
            raise failure


def _say_unknown(model: str, chat: ChatFormat, questions: list[str]) -> None:
    """The words a model cannot read and, where it knows few, those that it can."""
    name = Path(model).name
    unknown = list(dict.fromkeys(word for question in questions for word in chat.unknown_words(question)))
    for word in unknown:
        tell(f"note: {name} does not know the word {word!r}")
    known = sorted(word for word in chat.tokenizer.get_vocab() if word.isalpha())
    if unknown and len(known) <= FEW_WORDS:
        tell(f"{name} understands these words: {' '.join(known)}")
        if model in SHIPPED:
            tell(f"for instance: {SHIPPED[model].question}")


def _converse(
    watched: Watched, questions: list[str], follow_up: list[str], settings: GenerationSettings
) -> tuple[list[dict[str, Any]], SaviError | None]:
    """The answer to each question, and in its conversation those to the follow-up questions; each step is one batch.

    What ends the conversations early (they outgrow the context) comes beside the answers so far.
    """
    repeats = [questions[:number].count(question) for number, question in enumerate(questions)]
    keys = [f"{question}/{repeat}" for question, repeat in zip(questions, repeats, strict=True)]  # a draw of its own for each
    conversations: list[list[str]] = [[] for _ in questions]
    answers: list[dict[str, Any]] = []
    for step, asked in enumerate([questions, *([question] * len(questions) for question in follow_up)]):
        for conversation, question in zip(conversations, asked, strict=True):
            conversation.append(question)
        names = [f"{key}/{step}" for key in keys] if step else keys
        try:
            replies = watched.lm.ask([(watched, conversation) for conversation in conversations], settings, keys=names)
        except SaviError as error:
            if not answers:
                raise
            return answers, error
        for number, (question, reply) in enumerate(zip(asked, replies, strict=True)):
            answer = {"question": question, **asdict(reply)}
            if step:
                answers[number]["follow_ups"].append(answer)
            else:
                answers.append(answer | {"follow_ups": []})
            conversations[number].append(reply.text)
    return answers, None


def _print(answers: list[dict[str, Any]]) -> None:
    """Replies alone, or each below its question where there are several."""
    said = [answer for first in answers for answer in (first, *first["follow_ups"])]
    for number, answer in enumerate(said):
        if len(said) > 1:
            typer.echo(("\n" if number else "") + f"> {answer['question']}")
        typer.echo(printable(answer["text"]) if sys.stdout.isatty() else answer["text"])  # a terminal would obey what a model writes
        if not answer["finished"]:
            typer.echo(f"(cut off after {answer['tokens']} tokens; raise --max-new-tokens)", err=True)
