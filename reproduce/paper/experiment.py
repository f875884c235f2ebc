"""One resolved run: its settings, where its inputs and checkpoints are, and what each iteration is told. Runs nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.data.layout import has_twins
from reproduce.paper.overlap import OVERLAP_FILE
from reproduce.run_dir import RunDir
from reproduce.scale import Scale
from savi.base.errors import SaviError
from savi.base.files import write_text_atomic
from savi.base.hub import is_internvl_chat

if TYPE_CHECKING:
    from savi.loop.propose import AlignSettings
    from savi.training.settings import DPOSettings

SHIPPED = "shipped"
OWN_CRITICS = ("self", "none")
"""What `loop.critic` may say where no other model criticises."""


class MissingInputError(SaviError):
    """Something the run needs is not there; the message says what, where it was looked for and how to fix it."""


class OtherSettingsNeededError(SaviError):
    """With these settings the run can only fail in the same way again; the message names the one to change."""


@dataclass(frozen=True)
class Experiment:
    """One resolved run: its scale (settings and sources), its folder, and where its inputs are."""

    scale: Scale
    run: RunDir
    hf_home: Path
    videos: Path | None = None
    """Folder of the user's unlabelled videos (scales of real data)."""
    exclude: bool = False
    """Leave out training videos that are benchmark videos."""
    offline: bool = False
    report_to: tuple[str, ...] = ()
    """Trackers told of the training and of the loop's curves."""

    @property
    def iterations(self) -> int:
        return self.scale.loop.iterations.value

    @property
    def benchmarks(self) -> list[str] | None:
        return self.scale.evaluation.benchmarks.value or None

    @property
    def published(self) -> str | None:
        """The published row beside this run's; none where the data sets are synthetic twins."""
        return None if has_twins(self.hf_home) else self.scale.published

    def model(self, iteration: int) -> Path:
        """The checkpoint of iteration t; 0 is the base model."""
        return base_path(self) if iteration == 0 else self.run.iteration(iteration) / "model"

    def critic(self, iteration: int) -> Path | None:
        """The checkpoint that criticises in iteration t; None: the one that answers, or there is no critique."""
        name = self.scale.loop.critic.value
        if name in OWN_CRITICS or (name == "base" and iteration == 1):
            return None
        return base_path(self) if name == "base" else shipped_base() if name == SHIPPED else Path(name)

    @property
    def overlap_file(self) -> Path:
        """Training videos that are benchmark videos."""
        return self.run.path / OVERLAP_FILE

    def video_folder(self, iteration: int) -> Path:
        """Where the micro world's videos of iteration t are made."""
        return self.run.path / "data" / "videos" / f"iter-{iteration}"

    def video_list(self, iteration: int) -> Path:
        """The names of the user's videos that iteration t was dealt (`write_names`)."""
        return self.run.path / "data" / "videos" / f"iter-{iteration}.txt"


def write_names(path: Path, names: Sequence[str]) -> None:
    """Write names of files, one a line; those that a line of text cannot hold (line ends, bytes that are no UTF-8) as JSON texts."""
    plain = (name if name.isprintable() and not name.startswith('"') else json.dumps(name) for name in names)
    write_text_atomic(path, "".join(f"{line}\n" for line in plain))


def read_names(path: Path) -> list[str]:
    """The names that `write_names` wrote."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) if line.startswith('"') else line for line in lines]


def shipped_base() -> Path:
    """The micro base that comes with the package."""
    from benchmarks.micro.pretrain.recipe import BASE_DIR

    return BASE_DIR


def base_path(experiment: Experiment) -> Path:
    """Where the native base checkpoint is, or will be once prepared."""
    name = experiment.scale.model.base.value
    if name == SHIPPED:
        return shipped_base()
    local = Path(name)
    if local.is_dir() and not is_internvl_chat(local):
        return local
    return experiment.run.path / "data" / "base-model"


def align_settings(scale: Scale, iteration: int) -> AlignSettings:
    """How iteration t makes its pairs; each iteration has its own random streams."""
    from savi.engine.video_lm import GenerationSettings
    from savi.loop.propose import AlignSettings

    s = scale.loop
    return AlignSettings(
        num_frames=s.num_frames.value,
        questions_per_kind=s.questions_per_kind.value,
        kinds=tuple(s.kinds.value),
        criticise=s.critic.value != "none",
        prompts=s.prompts.value,
        ask=GenerationSettings(max_new_tokens=s.ask_tokens.value, temperature=s.ask_temperature.value, top_p=s.top_p.value),
        answer=GenerationSettings(max_new_tokens=s.answer_tokens.value, temperature=s.answer_temperature.value, top_p=s.top_p.value),
        critique=GenerationSettings(max_new_tokens=s.critique_tokens.value),
        revise=GenerationSettings(max_new_tokens=s.revise_tokens.value),
        chunk_videos=s.chunk_videos.value,
        seed=1000 * s.seed.value + iteration,
        keep_equal=s.keep_equal.value,
    )


def dpo_settings(scale: Scale, iteration: int) -> DPOSettings:
    """How iteration t is trained."""
    from savi.loop.controls import SUPERVISED
    from savi.training.settings import DPOSettings

    values: dict[str, Any] = scale.section("training")
    control = values.pop("control")
    del values["replay_critiques"]
    if control in SUPERVISED:
        values |= {"method": "sft", "rpo_alpha": 0.0}
    return DPOSettings(**values, seed=1000 * scale.loop.seed.value + iteration)
