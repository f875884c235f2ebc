"""What all of `python -m savi`'s commands share: options, and loading a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from savi.base.cli import stop, tell
from savi.base.errors import ExitCode
from savi.base.processes import current, is_first
from savi.loop.prompts import PROMPTS, prompt_set

if TYPE_CHECKING:
    from savi.engine.video_lm import VideoLM
    from savi.loop.propose import AlignSettings, Asker
    from savi.server.settings import ServerSettings

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        envvar="SAVI_MODEL",
        metavar="FOLDER|OWNER/NAME|micro",
        help="A checkpoint folder, or a Hugging Face id; InternVL2.5 as published is converted once, into a cache. "
        "micro: the small model that comes with the project.",
        show_default=False,
    ),
]
AskedModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        envvar="SAVI_MODEL",
        metavar="FOLDER|OWNER/NAME|micro|openai:URL#NAME",
        help="A checkpoint as for `savi ask`, or a model on an OpenAI-compatible server (vLLM, SGLang, hosted ones): "
        "openai:http://localhost:8000/v1#NAME. Several URLs of one model: separated by commas.",
        show_default=False,
    ),
]
CriticOption = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|OWNER/NAME|micro|openai:URL#NAME", help="Another model that criticises the answers.", show_default="the model"
    ),
]
ServerOption = Annotated[
    list[str],
    typer.Option(
        "--server",
        metavar="NAME=VALUE",
        help="How servers are asked; may be repeated: concurrency=8, requests_per_minute, timeout_s, retries, frames=jpeg|png|video_url, "
        "input_price and output_price (of a million tokens), key (the variable with the key; OPENAI_API_KEY by default), "
        "limit_name, extra_body (JSON), check_frames; critic.NAME=VALUE: of the critic alone.",
        show_default=False,
    ),
]
TrackersOption = Annotated[
    list[str],
    typer.Option("--report-to", metavar="tensorboard|wandb|trackio|none", help="Trackers told of the curves; repeated or with commas."),
]
FramesOption = Annotated[int, typer.Option("--num-frames", "-n", min=1, help="Frames per video, each from the middle of an equal segment.")]
PromptsOption = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(PROMPTS), help="How the model is asked.", show_default="videosavi; micro for a model that knows only micro's words"
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def open_model(model: str, device: str, **settings: Any) -> VideoLM:
    """Load a model, found (fetched, converted) by the first of several processes; `settings` as in `VideoLM.from_pretrained`."""
    from savi.conversion.native import native_folder

    folder = current().by_first(lambda: native_folder(model, tell=tell))  # before torch is imported: a wrong name is told at once
    import torch

    from savi.engine.video_lm import VideoLM

    if device != "auto":
        try:
            kind = torch.device(device).type
        except RuntimeError:
            stop(f"--device {device}: no such device; use auto, cpu, cuda or cuda:N", ExitCode.USAGE)
        if kind == "cuda" and not torch.cuda.is_available():
            stop(f"--device {device}: torch finds no CUDA device here; use --device cpu", ExitCode.MACHINE)
    return VideoLM.from_pretrained(folder, device=device, **settings)


def open_asker(model: str, device: str, settings: ServerSettings) -> Asker:
    """A model that is only asked: a checkpoint, or one on a server."""
    from savi.server.settings import is_server

    if not is_server(model):
        return open_model(model, device)
    from savi.server.server_lm import ServerLM

    return ServerLM(model, settings)


def fitting_prompts(model: str, tokenizer: Any) -> str:
    """The first prompt set of which a model's tokenizer knows every word; the paper's where there is none.

    `tokenizer` None: a server's, which is not known here.
    """
    default, *others = PROMPTS
    if tokenizer is None or _reads(tokenizer, default):
        return default
    name = next((name for name in others if _reads(tokenizer, name)), default)
    if name != default and is_first():
        tell(f"prompts: {name}, as {model} does not know the words of {default} (--prompts says otherwise)")
    return name


def _reads(tokenizer: Any, name: str) -> bool:
    unknown = tokenizer.unk_token_id
    texts = [re.sub(r"\{\w+\}", "", text) for field, text in prompt_set(name).model_dump().items() if field not in ("name", "source")]
    return unknown is None or not any(unknown in tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)


def chunked_for(asked: Sequence[ServerSettings], settings: AlignSettings) -> AlignSettings:
    """The same settings with chunks of videos that keep servers busy."""
    requests = max((server.concurrency for server in asked), default=0)
    return replace(settings, chunk_videos=max(settings.chunk_videos, 2 * requests // settings.questions_per_kind))


def usage_lines(pairs: Path) -> list[str]:
    """What was asked of servers for a pairs file, for people."""
    from savi.loop.journal import read_usage

    return [f"asked of the {who}'s server: {used.line()}" for who, used in read_usage(pairs).items()]
