"""Video-MME without subtitles (lmms-eval's `videomme`): optional, not among the paper's six.

No VideoSAVi number is published for it, so there is no row to compare with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from benchmarks.benchmark import MEDIUM_MARGIN, Benchmark, Credit, Document, lettered, without_letter
from benchmarks.micro.twins.drawing import FOUR, Twin, dealer, shared_pool


class VideoMME(Benchmark):
    """Three questions a video, four options with their letters in one list. A reply that no rule reads is wrong, never guessed."""

    def video_name(self, task: str, doc: Mapping[str, Any]) -> str:
        return f"{doc['videoID']}.mp4"

    def document(self, task: str, doc: Mapping[str, Any]) -> Document:
        return Document(doc["question"], tuple(without_letter(o) for o in doc["options"]), str(doc["answer"]))

    def credit(self, sample: Mapping[str, Any]) -> Credit:
        result = sample[self.metric]
        return Credit(float(result["score"]), video=str(result.get("videoID", "")))

    def twin(self, seed: int, size: int) -> Twin:
        pool = shared_pool(self.name, seed, size, self.twin_per_video)
        deal = dealer(pool, self.name, seed)

        def name(video: int) -> str:
            return hashlib.sha256(f"twin/{self.name}/{seed}/{video}".encode()).hexdigest()[:11]

        rows = []
        for i in range(size):
            it = deal.choice(FOUR, 4)
            rows.append(
                {
                    "video_id": f"{it.video:03d}",
                    "duration": "short",
                    # The task's own lists of categories, outside of which it fails.
                    "domain": "Knowledge",
                    "sub_category": "Technology",
                    "url": "",
                    "videoID": name(it.video),
                    "question_id": f"{it.video:03d}-{i}",
                    "task_type": "Spatial Perception" if it.question.kind == "spatial" else "Temporal Perception",
                    "question": it.question.text,
                    "options": lettered(it.options),
                    "answer": "ABCD"[it.answer],
                }
            )
        return Twin({self.configs[0]: rows}, {f"{name(i)}.mp4": s for i, s in enumerate(pool.scenes)})


BENCHMARK = VideoMME(
    name="videomme",
    title="Video-MME",
    group="videomme",
    tasks=("videomme",),
    configs=("videomme",),
    sizes=(2700,),
    metric="videomme_perception_score",
    unit=100,
    repo="lmms-eval/Video-MME",
    split="test",
    fields=("videoID", "duration", "domain", "sub_category", "task_type", "question_id", "question", "options", "answer"),
    videos=900,
    data_dir="videomme",
    video_dir="data",
    other_suffixes=(".MP4", ".mkv"),
    task_folder="videomme",
    max_options=4,
    download_gb=101.0,
    margin=MEDIUM_MARGIN,
    twin_questions={"micro": 240, "smoke": 36},
    twin_per_video=3.0,
    optional=True,
)
