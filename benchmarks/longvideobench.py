"""LongVideoBench, validation split, video only (lmms-eval's `longvideobench_val_v`)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from benchmarks.benchmark import LETTERS, MEDIUM_MARGIN, Benchmark, Credit, Document
from benchmarks.micro.twins.drawing import FIVE, FOUR, Twin, dealer, shared_pool
from benchmarks.micro.world.world import FPS, FRAMES

_PAD = "N/A"


class LongVideoBench(Benchmark):
    """Up to five options in fields of their own, the missing ones padded; a sample does not say its video."""

    def video_name(self, task: str, doc: Mapping[str, Any]) -> str:
        return str(doc["video_path"])

    def document(self, task: str, doc: Mapping[str, Any]) -> Document:
        options = tuple(takewhile(lambda option: option != _PAD, (doc[f"option{k}"] for k in range(5))))
        return Document(doc["question"], options, LETTERS[int(doc["correct_choice"])])

    def seconds(self, doc: Mapping[str, Any]) -> float | None:
        return float(doc["duration"]) if doc.get("duration") else None

    def credit(self, sample: Mapping[str, Any]) -> Credit:
        result = sample[self.metric]
        return Credit(float(result["parsed_pred"] == result["answer"]))

    def twin(self, seed: int, size: int) -> Twin:
        pool = shared_pool(self.name, seed, size, self.twin_per_video)
        deal = dealer(pool, self.name, seed)
        rows = []
        for i in range(size):
            # As in the real set, about a third of the questions have four options and a pad.
            it = deal.choice(FOUR, 4) if i % 3 == 0 else deal.choice(FIVE, 5)
            video, spatial = f"clip{it.video:04d}", it.question.kind == "spatial"
            rows.append(
                {
                    "video_id": video,
                    "question": it.question.text,
                    "question_wo_referring_query": it.question.text,
                    "correct_choice": it.answer,
                    "position": [0, FRAMES],
                    "topic_category": "micro",
                    "question_category": "S2O" if spatial else "E3E",
                    "level": "L1-Perception" if spatial else "L2-Relation",
                    "id": f"{video}_{i}",
                    "video_path": f"{video}.mp4",
                    "subtitle_path": f"{video}_en.json",
                    "duration_group": 15,
                    "starting_timestamp_for_subtitles": 0.0,
                    "duration": FRAMES / FPS,
                    "view_count": 0,
                    **{f"option{k}": it.options[k] if k < len(it.options) else _PAD for k in range(5)},
                }
            )
        return Twin({self.configs[0]: rows}, {f"clip{i:04d}.mp4": s for i, s in enumerate(pool.scenes)})


BENCHMARK = LongVideoBench(
    name="longvideobench",
    title="LongVideoBench",
    group="longvideobench_val_v",
    tasks=("longvideobench_val_v",),
    configs=("default",),
    sizes=(1337,),
    metric="lvb_acc",
    unit=1,
    repo="longvideobench/LongVideoBench",
    split="validation",
    fields=("id", "video_path", "question", "correct_choice", "option0", "option1", "option2", "option3", "option4", "duration_group"),
    videos=753,
    data_dir="datasets/longvideobench",
    video_dir="videos",
    task_folder="longvideobench",
    max_options=5,
    download_gb=162.0,
    margin=MEDIUM_MARGIN,
    gated=True,
    twin_questions={"micro": 220, "smoke": 36},
    twin_per_video=1.8,
)
