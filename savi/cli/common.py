"""What all of `python -m savi`'s commands share: options, and loading a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from savi.base.cli import stop, tell
from savi.base.errors import ExitCode

if TYPE_CHECKING:
    from savi.engine.video_lm import VideoLM

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        envvar="SAVI_MODEL",
        metavar="FOLDER|OWNER/NAME",
        help="A checkpoint folder, or a Hugging Face id; InternVL2.5 as published is converted once, into a cache. "
        "The small model shipped with the project: benchmarks/micro/base.",
        show_default=False,
    ),
]
FramesOption = Annotated[int, typer.Option("--num-frames", "-n", min=1, help="Frames per video, each from the middle of an equal segment.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def open_model(model: str, device: str, **settings: Any) -> VideoLM:
    """Load a model; `settings` as in `VideoLM.from_pretrained`."""
    from savi.conversion.native import native_folder

    folder = native_folder(model, tell=tell)  # before torch is imported: a wrong name is told at once
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
