"""Perception Test, multiple choice, validation split (lmms-eval's `perceptiontest_val_mc`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.benchmark import LARGE_MARGIN, LETTERS, Benchmark, Credit, Document
from benchmarks.micro.twins.drawing import THREE, Twin, dealer, shared_pool


class PerceptionTest(Benchmark):
    """Three options and the number of the right one."""

    def video_name(self, task: str, doc: Mapping[str, Any]) -> str:
        return f"{doc['video_name']}.mp4"

    def document(self, task: str, doc: Mapping[str, Any]) -> Document:
        return Document(doc["question"], tuple(doc["options"]), LETTERS[int(doc["answer_id"])])

    def credit(self, sample: Mapping[str, Any]) -> Credit:
        result = sample[self.metric]
        return Credit(float(result["correct"]), video=str(result.get("video_name", "")))

    def twin(self, seed: int, size: int) -> Twin:
        pool = shared_pool(self.name, seed, size, self.twin_per_video)
        deal = dealer(pool, self.name, seed)
        rows = []
        for i in range(size):
            it = deal.choice(THREE, 3)
            rows.append(
                {
                    "video_name": f"video_{it.video}",
                    "question": it.question.text,
                    "question_id": str(i),
                    "options": list(it.options),
                    "answer_id": str(it.answer),
                    "area": "physics",
                    "reasoning": "descriptive" if it.question.kind == "spatial" else "explanatory",
                    "tag": [it.question.family],
                }
            )
        return Twin({self.configs[0]: rows}, {f"video_{i}.mp4": s for i, s in enumerate(pool.scenes)})


BENCHMARK = PerceptionTest(
    name="perceptiontest",
    title="Perception Test",
    group="perceptiontest_val_mc",
    tasks=("perceptiontest_val_mc",),
    configs=("mc_question_val",),
    sizes=(19140,),
    metric="accuracy",
    unit=1,
    repo="lmms-eval/PerceptionTest_Val",
    split="validation",
    fields=("video_name", "question", "question_id", "options", "answer_id", "area", "reasoning", "tag"),
    videos=5900,
    data_dir="perceptiontest_val",
    video_dir="videos",
    other_suffixes=(".MP4",),
    task_folder="perceptiontest",
    max_options=3,
    download_gb=70.0,
    margin=LARGE_MARGIN,
    twin_questions={"micro": 260, "smoke": 45},
    twin_per_video=3.2,
)
