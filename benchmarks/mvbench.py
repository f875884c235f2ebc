"""MVBench: twenty lmms-eval tasks of 200 questions, one number (the mean of the twenty)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.benchmark import LARGE_MARGIN, LETTERS, Benchmark, Credit, Document
from benchmarks.micro.twins.drawing import Pool, Twin, dealer
from benchmarks.micro.world.world import FPS, FRAMES


@dataclass(frozen=True)
class Subtask:
    """Folder of the videos below `data_dir` (lmms-eval 0.7.3, tasks/mvbench/utils.py, DATA_LIST), and the twin: family and number of
    options that stand for the subtask. `timed`: its documents name a piece of the video."""

    folder: str
    family: str
    options: int
    timed: bool = False


_STAR, _CLEVRER, _PERCEPTION = "star/Charades_segment", "clevrer/video_validation", "perception/videos"
SUBTASKS = {
    "action_sequence": Subtask(_STAR, "order", 4, timed=True),
    "moving_count": Subtask(_CLEVRER, "count", 4),
    "action_prediction": Subtask(_STAR, "ends", 4, timed=True),
    "episodic_reasoning": Subtask("tvqa/video_fps3_hq_segment", "becomes", 4, timed=True),
    "action_antonym": Subtask("ssv2_video_mp4", "direction", 3),
    "action_count": Subtask(_PERCEPTION, "count", 3),
    "scene_transition": Subtask("scene_qa/video", "becomes", 4),
    "object_shuffle": Subtask(_PERCEPTION, "ends", 3),
    "object_existence": Subtask(_CLEVRER, "color", 3),
    "fine_grained_pose": Subtask("nturgbd_convert", "shape", 4),
    "unexpected_action": Subtask("FunQA_test/test", "event", 4),
    "moving_direction": Subtask(_CLEVRER, "direction", 4),
    "state_change": Subtask(_PERCEPTION, "becomes", 3),
    "object_interaction": Subtask(_STAR, "place", 4, timed=True),
    "character_order": Subtask(_PERCEPTION, "order", 3),
    "action_localization": Subtask("sta/sta_video_segment", "event", 3, timed=True),
    "counterfactual_inference": Subtask(_CLEVRER, "place", 3),
    "fine_grained_action": Subtask("Moments_in_Time_Raw/videos", "speed", 3),
    "moving_attribute": Subtask(_CLEVRER, "color", 4),
    "egocentric_navigation": Subtask("vlnqa", "direction", 4),
}


_FOLDERS_BEFORE = {
    _STAR: "star/Charades_v1_480",
    "sta/sta_video_segment": "sta/sta_video",
    "tvqa/video_fps3_hq_segment": "tvqa/frames_fps3_hq",
    "nturgbd_convert": "nturgbd",
    "ssv2_video_mp4": "ssv2_video",
}
"""Folders that versions of lmms-eval before 0.7 read instead, for seven of the twenty tasks."""


class MVBench(Benchmark):
    """The right option stands in the document as text. The task leaves an empty answer out of the denominator."""

    def video_name(self, task: str, doc: Mapping[str, Any]) -> str:
        return f"{SUBTASKS[task.removeprefix('mvbench_')].folder}/{doc['video']}"

    def document(self, task: str, doc: Mapping[str, Any]) -> Document:
        options = tuple(doc["candidates"])
        return Document(doc["question"], options, LETTERS[options.index(doc["answer"])])

    @property
    def task_folders(self) -> Mapping[str, str]:
        return {name: subtask.folder for name, subtask in SUBTASKS.items()}

    def elsewhere(self, video: str) -> tuple[str, ...]:
        inside = video.removeprefix(f"{self.data_dir}/")
        folder, name = inside.rsplit("/", 1)
        old = _FOLDERS_BEFORE.get(folder)
        places = (f"data0613/{folder}", f"video/{folder}", *((old, f"data0613/{old}") if old else ()))
        return tuple(f"{self.data_dir}/{place}/{name}" for place in places)

    def credit(self, sample: Mapping[str, Any]) -> Credit:
        result = sample[self.metric]
        return Credit(float(result["score"]), counted=result.get("pred_answer") != "")

    def twin(self, seed: int, size: int) -> Twin:
        rows: dict[str, list[dict[str, Any]]] = {}
        pools: dict[str, Pool] = {}
        for name, subtask in SUBTASKS.items():
            pool = pools.setdefault(subtask.folder, Pool(f"twin/{self.name}/{subtask.folder}", seed, 2))
            pool.next = len(pool.scenes)
            pool.scene(pool.next + math.ceil(size / self.twin_per_video) - 1)
            deal = dealer(pool, self.name, seed, name)
            rows[name] = []
            for _ in range(size):
                it = deal.choice((subtask.family,), subtask.options)
                row: dict[str, Any] = {
                    "video": f"clip_{it.video:04d}.mp4",
                    "question": it.question.text,
                    "candidates": list(it.options),
                    "answer": it.question.value,
                }
                rows[name].append(row | ({"start": 0.0, "end": FRAMES / FPS} if subtask.timed else {}))
        return Twin(rows, {f"{folder}/clip_{i:04d}.mp4": s for folder, pool in pools.items() for i, s in enumerate(pool.scenes)})


BENCHMARK = MVBench(
    name="mvbench",
    title="MVBench",
    group="mvbench",
    tasks=tuple(f"mvbench_{name}" for name in SUBTASKS),
    configs=tuple(SUBTASKS),
    sizes=(200,) * len(SUBTASKS),
    metric="mvbench_accuracy",
    unit=100,
    repo="OpenGVLab/MVBench",
    revision="video",
    split="train",
    fields=("video", "question", "candidates", "answer"),
    videos=3641,
    data_dir="mvbench_video",
    video_dir="",
    task_folder="mvbench",
    max_options=5,
    download_gb=17.0,
    margin=LARGE_MARGIN,
    shared_videos=(
        "The paper trains on STAR, whose Charades videos are those of three of MVBench's twenty tasks (600 of 4,000 questions): "
        "up to 15 % of its MVBench score may be on videos it was trained on."
    ),
    twin_questions={"micro": 16, "smoke": 3},
    twin_per_video=1.1,
)
