"""Options that commands of several packages share: where the data sets lie."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DataOption = Annotated[Path | None, typer.Option("--data", help="Where the data sets lie (default: HF_HOME, else ~/.cache/huggingface).")]
DataOfRun = Annotated[
    Path | None, typer.Option("--data", help="Where the data sets and their videos lie (default: as run.json says, else HF_HOME).")
]
