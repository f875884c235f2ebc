"""What every benchmark must say about itself: one file a benchmark, one subclass of `Benchmark`, one object named `BENCHMARK`.

Comes in: documents and samples as lmms-eval's own task makes them. Goes out: the same in one form for all. No torch, no lmms-eval, no
network, no file is read here.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.micro.twins.drawing import Twin

LETTERS = "ABCDE"
Form = Literal["letter", "yes_no", "caption"]
"""How a reply is read: an option's letter, yes or no, or a caption or its letter."""
TwinSize = Literal["smoke", "micro", "ci"]
"""How many questions the twins have: enough to see that all works, for an experiment of minutes, for a verdict."""
CI_TIMES = 4
"""So many times micro's questions are the size `ci`: an effect of 1.5 points on the mean can be seen, measured in docs/gate.md."""


@dataclass(frozen=True)
class Margin:
    """An equivalence / non-inferiority margin in points (0-100), with why it is that."""

    points: float
    reason: str


SMALL_MARGIN = Margin(2.5, "ours: 500 questions; the harness alone moves an 8B model by 1.5-3 points between evaluators")
MEDIUM_MARGIN = Margin(2.0, "ours: over 1,300 questions, and evaluators differ by 1.5-3 points")
LARGE_MARGIN = Margin(
    1.5, "ours: over 4,000 questions, so the sampling error is under 0.8 points; 1.5 is the least gap seen between evaluators"
)


@dataclass(frozen=True)
class Document:
    """A document in one form for all benchmarks. `target`: an option's letter, or "yes" / "no"."""

    question: str
    options: tuple[str, ...]
    target: str


@dataclass(frozen=True)
class Credit:
    """What lmms-eval's task left in one sample: right (1) or wrong (0), the video where the sample says it (empty: it does not), and
    whether the task counts the answer at all."""

    right: float
    video: str = ""
    counted: bool = True


@dataclass(frozen=True)
class Judge:
    """A function of the task's module that asks an outside judge about replies no rule reads, and what it returns when none answers."""

    function: str
    unanswered: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Benchmark(ABC):
    """One benchmark as lmms-eval 0.7.3 defines it. Margins are frozen before any comparison.

    `tasks` are lmms-eval task names whose unweighted mean is the benchmark's score, `configs` and `sizes` the data set's configuration and
    the number of questions of each; `metric` is the headline key in lmms-eval's results and `unit` what its full mark is.
    """

    name: str
    title: str
    group: str
    """What `lmms_eval --tasks` takes for the whole benchmark."""
    tasks: tuple[str, ...]
    configs: tuple[str, ...]
    sizes: tuple[int, ...]
    metric: str
    unit: Literal[1, 100]
    repo: str
    split: str
    fields: tuple[str, ...]
    """What the task reads of a document."""
    videos: int
    data_dir: str
    """Where the task looks for the data set's files, below HF_HOME."""
    video_dir: str
    """Where the videos lie, below `data_dir` ("": at once below it)."""
    task_folder: str
    """Folder below lmms_eval/tasks that defines the tasks."""
    max_options: int
    download_gb: float
    margin: Margin
    twin_questions: Mapping[Literal["smoke", "micro"], int]
    """Questions of the twin in each task; see `twin_task`."""
    twin_per_video: float
    """The twin's questions a video: as in the real set unless the file says why not."""
    other_suffixes: tuple[str, ...] = ()
    """Suffixes that the task tries where there is no video under the first name."""
    revision: str | None = None
    """Branch of the repository that holds the data (None: the default branch)."""
    gated: bool = False
    """The hub asks for an accepted licence and a login before it gives the files out."""
    judge: Judge | None = None
    shared_videos: str = ""
    """What is known of its videos in other data sets that models of the paper train on, as a sentence for tables."""
    optional: bool = False
    """Not among the paper's: evaluated when asked for, never part of a mean over benchmarks."""

    @property
    def n(self) -> int:
        """Questions of the real set."""
        return sum(self.sizes)

    @property
    def dataset_name(self) -> str:
        """What the `datasets` library makes of the repository's name (`datasets.naming.camelcase_to_snakecase`)."""
        name = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", self.repo.split("/")[1])
        return re.sub(r"([a-z\d])([A-Z])", r"\1_\2", name).lower()

    @property
    def video_folder(self) -> str:
        """Folder of the videos relative to HF_HOME (POSIX)."""
        return f"{self.data_dir}/{self.video_dir}".rstrip("/")

    def twin_task(self, size: TwinSize) -> int:
        """Questions of the twin in each task at a size."""
        return CI_TIMES * self.twin_questions["micro"] if size == "ci" else self.twin_questions[size]

    def video_file(self, task: str, doc: Mapping[str, Any]) -> str:
        """Path of a document's video relative to HF_HOME (POSIX), by the rule of the task that reads it.

        Raises:
            KeyError: the document lacks the field that names its video.
        """
        return f"{self.video_folder}/{self.video_name(task, doc)}"

    def video_id(self, relative: str) -> str:
        """A video's name within its benchmark, the cluster of paired tests: its path without the common folder and the suffix."""
        return relative.removeprefix(f"{self.video_folder}/").rsplit(".", 1)[0]

    @property
    def task_folders(self) -> Mapping[str, str]:
        """Folder of each task's videos, where the task's own code has a table `DATA_LIST` of them."""
        return {}

    def elsewhere(self, video: str) -> tuple[str, ...]:
        """Where a video may lie by mistake: paths relative to HF_HOME that other versions read, or that archives unpack to."""
        return ()

    def seconds(self, doc: Mapping[str, Any]) -> float | None:
        """How long the document's video has to be, where it says so."""
        return None

    def form(self, task: str) -> Form:
        """How a task's replies are read."""
        return "letter"

    @abstractmethod
    def video_name(self, task: str, doc: Mapping[str, Any]) -> str:
        """Path of a document's video below `video_folder`."""

    @abstractmethod
    def document(self, task: str, doc: Mapping[str, Any]) -> Document:
        """A document in the common form.

        Raises:
            KeyError, IndexError, ValueError, TypeError: it is none of this task's documents.
        """

    @abstractmethod
    def credit(self, sample: Mapping[str, Any]) -> Credit:
        """Read the task's result for one sample.

        Raises:
            KeyError, ValueError, TypeError: the sample has no such result.
        """

    @abstractmethod
    def twin(self, seed: int, size: int) -> Twin:
        """Make `size` questions a task on micro scenes, in this benchmark's documents."""


def without_letter(option: str) -> str:
    """An option's text without a leading "A. "."""
    return re.sub(r"^[A-E]\.\s*", "", option)


def lettered(options: tuple[str, ...] | list[str]) -> list[str]:
    """Options as "A. text"."""
    return [f"{LETTERS[i]}. {option}" for i, option in enumerate(options)]
