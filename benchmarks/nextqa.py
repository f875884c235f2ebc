"""NExT-QA, multiple choice, test split (lmms-eval's `nextqa_mc_test`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.benchmark import LARGE_MARGIN, LETTERS, Benchmark, Credit, Document
from benchmarks.micro.twins.drawing import FIVE, Twin, dealer, shared_pool
from benchmarks.micro.world.world import FRAMES, SIZE

_FIRST_TWIN_VIDEO = 4_010_000_000


class NextQA(Benchmark):
    """Five options in fields of their own; the metric is a plain true or false, so a sample does not say its video."""

    def video_name(self, task: str, doc: Mapping[str, Any]) -> str:
        return f"{doc['video']}.mp4"

    def document(self, task: str, doc: Mapping[str, Any]) -> Document:
        return Document(doc["question"], tuple(doc[f"a{k}"] for k in range(5)), LETTERS[int(doc["answer"])])

    def credit(self, sample: Mapping[str, Any]) -> Credit:
        return Credit(float(sample[self.metric]))

    def twin(self, seed: int, size: int) -> Twin:
        pool = shared_pool(self.name, seed, size, self.twin_per_video)
        deal = dealer(pool, self.name, seed)
        rows = []
        for i in range(size):
            it = deal.choice(FIVE, 5)
            rows.append(
                {
                    "video": _FIRST_TWIN_VIDEO + it.video,
                    "frame_count": FRAMES,
                    "width": SIZE,
                    "height": SIZE,
                    "question": it.question.text,
                    "answer": it.answer,
                    "qid": i,
                    "type": "DL" if it.question.kind == "spatial" else "TN",
                    **{f"a{k}": o for k, o in enumerate(it.options)},
                }
            )
        return Twin({self.configs[0]: rows}, {f"{_FIRST_TWIN_VIDEO + i}.mp4": s for i, s in enumerate(pool.scenes)})


BENCHMARK = NextQA(
    name="nextqa",
    title="NExT-QA",
    group="nextqa_mc_test",
    tasks=("nextqa_mc_test",),
    configs=("MC",),
    sizes=(8564,),
    metric="exact_match",
    unit=1,
    repo="lmms-eval/NExTQA",
    split="test",
    fields=("video", "question", "answer", "a0", "a1", "a2", "a3", "a4"),
    videos=1000,
    data_dir="nextqa",
    video_dir="NExTVideo",
    other_suffixes=(".MP4",),
    task_folder="nextqa",
    max_options=5,
    download_gb=12.0,
    margin=LARGE_MARGIN,
    twin_questions={"micro": 240, "smoke": 40},
    twin_per_video=6.0,  # 8.6 in the real set: so few videos would say little about a model
)
