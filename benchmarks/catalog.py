"""The six benchmarks: what lmms-eval calls them, where their data lies, how they are scored and what difference counts.

Data only: no torch, no lmms-eval, no network. Numbers of questions and videos are those of lmms-eval 0.7.3's data sets; margins are
frozen before any comparison, each with its reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

MVBENCH_SUBTASKS = (
    "action_sequence",
    "moving_count",
    "action_prediction",
    "episodic_reasoning",
    "action_antonym",
    "action_count",
    "scene_transition",
    "object_shuffle",
    "object_existence",
    "fine_grained_pose",
    "unexpected_action",
    "moving_direction",
    "state_change",
    "object_interaction",
    "character_order",
    "action_localization",
    "counterfactual_inference",
    "fine_grained_action",
    "moving_attribute",
    "egocentric_navigation",
)

ParseRule = Literal["letter", "yes_no", "caption"]


@dataclass(frozen=True)
class Margin:
    """An equivalence / non-inferiority margin in points (0-100), with why it is that."""

    points: float
    reason: str


@dataclass(frozen=True)
class Benchmark:
    """One benchmark as lmms-eval defines it.

    `tasks` are lmms-eval task names whose unweighted mean is the benchmark's score; `metric` is the headline key in lmms-eval's results and
    `unit` what its full mark is (1 or 100). `data_dir` is where the videos lie below HF_HOME.
    """

    name: str
    title: str
    group: str
    tasks: tuple[str, ...]
    metric: str
    unit: Literal[1, 100]
    repo: str
    configs: tuple[str, ...]
    split: str
    n: int
    videos: int
    data_dir: str
    task_folder: str
    """Folder below lmms_eval/tasks that defines the tasks."""
    paper_column: str
    """Column of results/paper/table1_main.csv."""
    max_options: int
    download_gb: float
    margin: Margin
    parse: ParseRule = "letter"


_MARGIN_SMALL = Margin(2.5, "ours: 500 questions; the harness alone moves an 8B model by 1.5-3 points between evaluators")
_MARGIN_MID = Margin(2.0, "ours: over 1,300 questions, and evaluators differ by 1.5-3 points")
_MARGIN_BIG = Margin(
    1.5, "ours: over 4,000 questions, so the sampling error is under 0.8 points; 1.5 is the least gap seen between evaluators"
)

CATALOG: dict[str, Benchmark] = {
    b.name: b
    for b in (
        Benchmark(
            "tempcompass",
            "TempCompass",
            "tempcompass",
            ("tempcompass_multi_choice", "tempcompass_yes_no", "tempcompass_caption_matching"),
            "avg_accuracy",
            100,
            "lmms-eval/TempCompass",
            ("multi-choice", "yes_no", "caption_matching"),
            "test",
            1580 + 2453 + 1503,
            410,
            "tempcompass",
            "tempcompass",
            "tempcompass",
            4,
            0.5,
            _MARGIN_BIG,
        ),
        Benchmark(
            "perceptiontest",
            "Perception Test",
            "perceptiontest_val_mc",
            ("perceptiontest_val_mc",),
            "accuracy",
            1,
            "lmms-eval/PerceptionTest_Val",
            ("mc_question_val",),
            "validation",
            19140,
            5900,
            "perceptiontest_val",
            "perceptiontest",
            "perceptiontest",
            3,
            70.0,
            _MARGIN_BIG,
        ),
        Benchmark(
            "nextqa",
            "NExT-QA",
            "nextqa_mc_test",
            ("nextqa_mc_test",),
            "exact_match",
            1,
            "lmms-eval/NExTQA",
            ("MC",),
            "test",
            8564,
            1000,
            "nextqa",
            "nextqa",
            "nextqa",
            5,
            12.0,
            _MARGIN_BIG,
        ),
        Benchmark(
            "mvbench",
            "MVBench",
            "mvbench",
            tuple(f"mvbench_{s}" for s in MVBENCH_SUBTASKS),
            "mvbench_accuracy",
            100,
            "OpenGVLab/MVBench",
            MVBENCH_SUBTASKS,
            "train",
            4000,
            3641,
            "mvbench_video",
            "mvbench",
            "mvbench",
            5,
            17.0,
            _MARGIN_BIG,
        ),
        Benchmark(
            "egoschema",
            "EgoSchema",
            "egoschema_subset",
            ("egoschema_subset",),
            "score",
            1,
            "lmms-eval/egoschema",
            ("Subset",),
            "test",
            500,
            500,
            "egoschema",
            "egoschema",
            "egoschema",
            5,
            106.0,
            _MARGIN_SMALL,
        ),
        Benchmark(
            "longvideobench",
            "LongVideoBench",
            "longvideobench_val_v",
            ("longvideobench_val_v",),
            "lvb_acc",
            1,
            "longvideobench/LongVideoBench",
            ("default",),
            "validation",
            1337,
            753,
            "datasets/longvideobench",
            "longvideobench",
            "longvideobench",
            5,
            162.0,
            _MARGIN_MID,
        ),
    )
}


class UnknownBenchmarkError(ValueError):
    """A benchmark name that is not in the catalog; the message lists those that are."""


def select(names: Sequence[str] | None) -> list[Benchmark]:
    """The named benchmarks in catalog order (all six for None or an empty list).

    Raises:
        UnknownBenchmarkError: a name is not in the catalog.
    """
    if not names:
        return list(CATALOG.values())
    unknown = [n for n in names if n not in CATALOG]
    if unknown:
        raise UnknownBenchmarkError(f"unknown benchmark {', '.join(map(repr, unknown))}; choose from {', '.join(CATALOG)}")
    return [b for b in CATALOG.values() if b.name in names]
