"""TempCompass without its open captions: three lmms-eval tasks, one number (the mean of the three).

The paper gives one number and does not say how it is made; lmms-eval has a task each and no group score.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.benchmark import LARGE_MARGIN, LETTERS, Benchmark, Credit, Document, Form, Judge, lettered, without_letter
from benchmarks.micro.twins.drawing import Twin, dealer, shared_pool

_FAMILIES = {"action": "event", "direction": "direction", "speed": "speed", "order": "order", "attribute_change": "becomes"}
"""The micro world's question family for each of the benchmark's temporal aspects."""
_FORMS: dict[str, Form] = {
    "tempcompass_multi_choice": "letter",
    "tempcompass_yes_no": "yes_no",
    "tempcompass_caption_matching": "caption",
}


class TempCompass(Benchmark):
    """Options stand in the question's own text. Replies that no rule reads go to an outside judge upstream."""

    def form(self, task: str) -> Form:
        return _FORMS[task]

    def video_name(self, task: str, doc: Mapping[str, Any]) -> str:
        return f"{doc['video_id']}.mp4"

    def document(self, task: str, doc: Mapping[str, Any]) -> Document:
        form = self.form(task)
        if form == "yes_no":
            return Document(doc["question"], ("yes", "no"), str(doc["answer"]))
        question, *lines = doc["question"].split("\n")
        if form == "caption":
            return Document(question, tuple(x.split(": ", 1)[1] for x in lines), LETTERS[lines.index(doc["answer"])])
        return Document(question, tuple(without_letter(x) for x in lines), doc["answer"][0])

    def credit(self, sample: Mapping[str, Any]) -> Credit:
        result = sample[self.metric]
        return Credit(float(result["rating"] == 1), video=str(result.get("video_id", "")))

    def twin(self, seed: int, size: int) -> Twin:
        pool = shared_pool(self.name, seed, len(self.tasks) * size, self.twin_per_video)
        rows: dict[str, list[dict[str, Any]]] = {}
        aspects = list(_FAMILIES.items())
        for task, config in zip(self.tasks, self.configs, strict=True):
            deal = dealer(pool, self.name, seed, config)
            form = self.form(task)
            rows[config] = []
            for i in range(size):
                aspect, family = aspects[i % len(aspects)]
                if form == "yes_no":
                    it = deal.yes_no((family,))
                    question, answer = it.question.text, it.options[it.answer]
                elif form == "letter":
                    it = deal.choice((family,), 4)
                    lines = lettered(it.options)
                    question, answer = "\n".join([it.question.text, *lines]), lines[it.answer]
                else:
                    it = deal.captions((family,))
                    lines = [f"Caption {LETTERS[k]}: {o}" for k, o in enumerate(it.options)]
                    question, answer = "\n".join(["Which caption matches the video better?", *lines]), lines[it.answer]
                rows[config].append({"video_id": str(1000 + it.video), "question": question, "answer": answer, "dim": aspect})
        return Twin(rows, {f"{1000 + i}.mp4": s for i, s in enumerate(pool.scenes)})


BENCHMARK = TempCompass(
    name="tempcompass",
    title="TempCompass",
    group="tempcompass",
    tasks=tuple(_FORMS),
    configs=("multi-choice", "yes_no", "caption_matching"),
    sizes=(1580, 2453, 1503),
    metric="avg_accuracy",
    unit=100,
    repo="lmms-eval/TempCompass",
    split="test",
    fields=("video_id", "question", "answer", "dim"),
    videos=410,
    data_dir="tempcompass",
    video_dir="videos",
    task_folder="tempcompass",
    max_options=4,
    download_gb=0.5,
    margin=LARGE_MARGIN,
    judge=Judge("get_eval_result", (None, 0)),
    twin_questions={"micro": 100, "smoke": 17},
    twin_per_video=6.0,  # 13.5 in the real set: so few videos would say little about a model
)
