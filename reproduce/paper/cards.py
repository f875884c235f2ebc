"""The cards of a run's models and pairs: what `savi.cards.model_card` writes, with the sources of the scale's settings and the scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from benchmarks.catalog import select
from harness.tables.results import scored
from reproduce.run_dir import base_identity
from savi.base.stamp import read_stamp

if TYPE_CHECKING:
    from harness.records import Evaluation
    from reproduce.paper.experiment import Experiment
    from savi.cards.model_card import CardScore, Settings


def _settings(experiment: Experiment, *sections: str) -> Settings:
    found = experiment.scale.settings().items()
    return {key: (one.value, one.source) for key, one in found if key.partition(".")[0] in sections}


def _code(experiment: Experiment) -> str:
    from savi.cards.model_card import code_version

    git = (experiment.run.read() or {}).get("git") or {}
    commit = f", commit {git['commit'][:12]}" if git.get("commit") else ""
    return code_version() + commit + (" with changes of its own" if git.get("dirty") else "")


def describe_pairs(experiment: Experiment, iteration: int, counts: str) -> None:
    """Write the card beside iter-t/pairs.jsonl."""
    from savi.publish.pairs_card import describe_pairs as describe

    pairs = experiment.run.iteration(iteration) / "pairs.jsonl"
    describe(pairs, _settings(experiment, "loop"), experiment.model(iteration - 1), counts)


def describe_model(experiment: Experiment, iteration: int, found: Mapping[str, Evaluation] | None = None) -> None:
    """Write iter-t/model/README.md, with the scores once they are there."""
    from savi.cards.model_card import Trained, lineage, write_model_card

    folder, base = experiment.model(iteration), experiment.model(iteration - 1)
    stamp = read_stamp(experiment.run.iteration(iteration) / "train" / "result.json")
    facts = stamp.facts if stamp is not None else {}
    data = f"made by the model of iteration {iteration - 1} on videos of iteration {iteration}, scale {experiment.scale.name}"
    made = Trained(
        pairs=int(facts.get("pairs_used", 0)),
        left_out=len(facts.get("pairs_dropped", ())),
        steps=int(facts.get("steps", 0)),
        settings=_settings(experiment, "loop", "training"),
        data=data,
        scores=_scores(experiment, found or {}),
        code=_code(experiment),
    )
    start = lineage(base)
    name = f"{start.base.rpartition('/')[2] or 'Base model'}, VideoSAVi iteration {iteration} ({experiment.scale.name})"
    stopped = experiment.scale.loop.early_stop.value
    copied = (
        "Copied, as the loop had been stopped or there was no pair to train on," if stopped else "Copied, as there was no pair to train on,"
    )
    how = "Trained" if facts.get("trained", True) else copied
    write_model_card(folder, name, start, made, base_fingerprint=base_identity(base), how=how)


def _scores(experiment: Experiment, found: Mapping[str, Evaluation]) -> list[CardScore]:
    from savi.cards.model_card import CardScore

    twins = experiment.scale.evaluation.twins.value is not None
    made = []
    for benchmark in select(list(found)) if found else ():
        cell = scored(found[benchmark.name], "upstream")
        title = f"{benchmark.title} (synthetic twin)" if twins else benchmark.title
        dataset = f"synthetic-{benchmark.name}" if twins else benchmark.repo
        made.append(CardScore(dataset, title, cell.value, cell.interval, found[benchmark.name].score.n))
    return made
