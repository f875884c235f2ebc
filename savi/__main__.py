"""`python -m savi`: ask a video, make preference pairs from videos, train on them, align a model, convert a checkpoint."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from savi.base.cli import KEPT, bar, errors, print_json, run_app, stop, tell, usage
from savi.base.errors import EXIT_CODES_TEXT, ExitCode
from savi.base.fail_over import FailOver, stop_over
from savi.base.former import former_options
from savi.base.limit_flags import decode_limits
from savi.base.processes import joined
from savi.cli import align as align_cli
from savi.cli import ask as ask_cli
from savi.cli import share as share_cli
from savi.cli.common import (
    AskedModelOption,
    CriticOption,
    DeviceOption,
    FramesOption,
    JsonOption,
    PromptsOption,
    ServerOption,
    chunked_for,
    fitting_prompts,
    open_asker,
    usage_lines,
)
from savi.server.settings import is_server, read_settings

app = typer.Typer(
    name="savi",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Align a video language model with its own critiques: ask it, make preference pairs, train on them.",
    epilog=EXIT_CODES_TEXT,
)


ask_cli.register(app)


@app.command(epilog="Example: python -m savi pairs clips/ --out pairs.jsonl --model micro")
@decode_limits
def pairs(
    videos: Annotated[list[Path], typer.Argument(help="Video files, and folders searched for them.", show_default=False)],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The pairs, JSON Lines. Run again to go on where it stopped.", show_default=False)
    ],
    model: AskedModelOption,
    critic: CriticOption = None,
    server: ServerOption = [],  # noqa: B006  # typer copies it
    num_frames: FramesOption = 8,
    questions_per_kind: Annotated[int, typer.Option(min=1, help="Questions of each kind a video (3 by the paper's counts).")] = 3,
    prompts: PromptsOption = None,
    seed: Annotated[int, typer.Option(help="Of the sampled questions and answers.")] = 0,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try the videos again that could not be read before.")] = False,
    fail_over: FailOver = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Make preference pairs from unlabelled videos, by the model's own critiques.

    Per question: an answer (rejected), the model's critique of it, its revision (chosen). A question without a pair leaves its reason in
    dropped.jsonl beside pairs.jsonl (X.dropped.jsonl beside X.jsonl), a video that cannot be read a row in failures.jsonl; neither stops
    the rest. What a server replied is kept beside OUT too, and not asked for again. On several GPUs: torchrun --nproc-per-node 8 -m savi
    pairs ... gives the same files.
    """
    with errors(kept=KEPT):
        from savi.base.files import FailureLog
        from savi.cards.model_card import sources
        from savi.loop.journal import read_counts, read_usage
        from savi.loop.propose import AlignSettings, propose
        from savi.publish.pairs_card import describe_pairs

        with usage():
            settings = AlignSettings(
                num_frames=num_frames, questions_per_kind=questions_per_kind, prompts=prompts or "videosavi", seed=seed
            )
        servers = read_settings(server)
        settings = chunked_for([of for name, of in zip((model, critic), servers, strict=True) if name and is_server(name)], settings)
        paths = align_cli.video_files(videos)
        with joined(out.parent) as processes, bar("videos") as told:
            lm = open_asker(model, device, servers[0])
            if prompts is None:
                chat = getattr(lm, "chat", None)
                settings = replace(settings, prompts=fitting_prompts(model, chat and chat.tokenizer))
            judge = None if critic is None else open_asker(critic, device, servers[1])
            failures = FailureLog(out.with_name("failures.jsonl"))
            for _ in propose(lm, paths, settings, critic=judge, out=out, failures=failures, progress=told, retry_failed=retry_failed):
                pass
        if processes.rank:
            return  # the first process tells
        describe_pairs(out, sources(settings, ["chunk_videos"]), getattr(lm, "source", None), read_counts(out).line())
        counts, asked = read_counts(out), {who: asdict(used) for who, used in read_usage(out).items()}
    if as_json:
        print_json({"out": str(out), "failures": str(failures.path), **asdict(counts), **({"usage": asked} if asked else {})})
    else:
        for line in usage_lines(out):
            typer.echo(line)
        typer.echo(f"{counts.line()} -> {out}" + (f"; broken videos are listed in {failures.path}" if counts.broken else ""))
    stop_over(fail_over, counts.broken, len(paths), "videos")
    if not counts.pairs:
        stop("no pair was made: see the reasons above", ExitCode.FAIL)


@app.command(epilog="Example: python -m savi convert OpenGVLab/InternVL2_5-1B models/InternVL2_5-1B")
@former_options(original="--base")
def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="An internvl_chat checkpoint: a folder, or a Hugging Face id.", show_default=False)
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder to make; it appears whole or not at all.", show_default=False)],
    to: Annotated[
        Literal["native", "internvl-chat"], typer.Option(help="The layout to write: transformers' own, or back into the original's.")
    ] = "native",
    original: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|OWNER/NAME", help="With --to internvl-chat: the original that SRC was made from.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn InternVL 2.5 weights (VideoSAVi's too) into a native checkpoint, or a native one back into the original's layout.

    They are published with code of their own, which is not run here. Every tensor is renamed and checked, the tokenizer compared with the
    original's. DST appears whole or not at all; killed and started again, the work goes on with the shard it was at. The way back takes the
    layout, the tokenizer and the code from --original, for tools that know the published form alone.
    """
    if (original is not None) != (to == "internvl-chat"):
        stop("--to internvl-chat and --original (whose layout, tokenizer and code are taken) go together", ExitCode.USAGE)
    with errors(kept="whole shards are kept; run the same command to go on" if original is None else ""):
        from savi.base.hub import find_checkpoint
        from savi.conversion.checkpoint import convert as convert_folder
        from savi.conversion.checkpoint import weights_fingerprint
        from savi.conversion.to_chat import convert_back

        folder = find_checkpoint(source, tell=tell)
        published = None if original is None else find_checkpoint(original, tell=tell, also=["*.py"])
        with bar("shards") as told:
            if published is None:
                convert_folder(folder, target, progress=lambda _what, done, steps: told(done, steps))
            else:
                convert_back(folder, published, target, progress=lambda _what, done, steps: told(done, steps))
        fingerprint = weights_fingerprint(target)
    if as_json:
        print_json({"source": source, "target": str(target), "fingerprint": fingerprint})
    elif original is None:
        typer.echo(f"{target}: ready (weights {fingerprint[:12]}); try: python -m savi ask VIDEO 'What happens?' --model {target}")
    else:
        typer.echo(f"{target}: ready (weights {fingerprint[:12]}), in the layout of {original}")


share_cli.register(app)


@app.command("families")
def list_families() -> None:
    """Print the models that savi works with, and those it refuses, with the reason: the table of the README."""
    from savi.families import families_table

    typer.echo(families_table())


align_cli.register(app)

SEVERAL = ("pairs", "train", "align")
"""Commands that share their work among the processes of a `torchrun`."""
JSON_ALONE = ("ask", "pairs", "train", "align", "convert")
"""Commands whose stdout is one JSON object where --json is given, whatever libraries print."""


def main(prog_name: str = "python -m savi") -> NoReturn:
    """Run the command line."""
    run_app(app, prog_name, several=SEVERAL, json_alone=JSON_ALONE)


if __name__ == "__main__":
    main()
