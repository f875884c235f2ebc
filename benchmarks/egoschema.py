"""EgoSchema, the subset of 500 questions with public answers (lmms-eval's `egoschema_subset`, the task of the release's eval.sh)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from benchmarks.benchmark import LETTERS, SMALL_MARGIN, Benchmark, Credit, Document, lettered, without_letter
from benchmarks.micro.twins.drawing import FIVE, Twin, dealer, shared_pool


class EgoSchema(Benchmark):
    """One question a video, five options."""

    def video_name(self, task: str, doc: Mapping[str, Any]) -> str:
        return f"{doc['video_idx']}.mp4"

    def document(self, task: str, doc: Mapping[str, Any]) -> Document:
        return Document(doc["question"], tuple(without_letter(o) for o in doc["option"]), LETTERS[int(doc["answer"])])

    def credit(self, sample: Mapping[str, Any]) -> Credit:
        result = sample[self.metric]
        # One question a video, so the question is its own cluster.
        return Credit(float(str(result["pred"]) == str(result["ground_truth"])), video=str(sample["doc_id"]))

    def twin(self, seed: int, size: int) -> Twin:
        pool = shared_pool(self.name, seed, size, self.twin_per_video)
        deal = dealer(pool, self.name, seed)

        def name(video: int) -> str:
            return hashlib.sha256(f"twin/{self.name}/{seed}/{video}".encode()).hexdigest()[:32]

        rows = []
        for i in range(size):
            it = deal.choice(FIVE, 5)
            rows.append(
                {
                    "question_idx": str(i),
                    "question": it.question.text,
                    "video_idx": name(it.video),
                    "option": lettered(it.options),
                    "answer": str(it.answer),
                }
            )
        return Twin({self.configs[0]: rows}, {f"{name(i)}.mp4": s for i, s in enumerate(pool.scenes)})


BENCHMARK = EgoSchema(
    name="egoschema",
    title="EgoSchema",
    group="egoschema_subset",
    tasks=("egoschema_subset",),
    configs=("Subset",),
    sizes=(500,),
    metric="score",
    unit=1,
    repo="lmms-eval/egoschema",
    split="test",
    fields=("question", "video_idx", "option", "answer"),
    videos=500,
    data_dir="egoschema",
    video_dir="videos",
    other_suffixes=(".MP4",),
    task_folder="egoschema",
    max_options=5,
    download_gb=106.0,
    margin=SMALL_MARGIN,
    twin_questions={"micro": 200, "smoke": 34},
    twin_per_video=1.0,
)
