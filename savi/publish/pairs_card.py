"""The card of a set of pairs: beside their file, and README.md on the hub. It holds no times, and no path of this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from savi.base.files import write_text_atomic
from savi.cards.model_card import Settings, code_version, lineage, settings_table, table
from savi.loop.preferences import PreferencePair, read_pairs

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))


def pairs_card_path(pairs: Path) -> Path:
    """The card beside a file of pairs; on the hub it is the README.md."""
    return pairs.with_suffix(".card.md")


def describe_pairs(pairs: Path, settings: Settings, model: Path | None, counts: str) -> Path:
    """Write the card of a finished file of pairs. `model`: the folder of the one that was asked."""
    base = lineage(model).base
    return write_pairs_card(pairs_card_path(pairs), read_pairs(pairs), file=pairs.name, model=base, settings=settings, counts=counts)


def write_pairs_card(
    path: Path,
    pairs: Sequence[PreferencePair],
    *,
    file: str,
    model: str = "",
    settings: Settings | None = None,
    counts: str = "",
    note: str = "",
) -> Path:
    """Write the card of a set of pairs. `file`: the name of their file beside it; `model`: what made them; `counts`: what became of the
    questions; `note`: the
    format, where it is not the project's own."""
    from huggingface_hub import DatasetCard, DatasetCardData

    data = DatasetCardData(
        task_categories=["video-text-to-text"],
        tags=["preference", "dpo", "videosavi"],
        size_categories=next((name for most, name in _SIZES if len(pairs) < most), "n>10M"),
        configs=[{"config_name": "default", "data_files": file}],
    )
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(pair.kind for pair in pairs).items()))
    videos = len({pair.video for pair in pairs})
    maker = f" (that, or one trained from it: `{model}`)" if model else ""
    made = f" A model made them from its own critiques, without labels{maker}." if settings else ""
    parts = [
        f"# {len(pairs)} preference pairs on {videos} videos",
        f"To a question on a video, `chosen` is preferred to `rejected` ({kinds or 'none'}).{made} {counts}".strip(),
        note or table(("column", "what it holds"), _COLUMNS),
        *(["## Settings", settings_table(settings)] if settings else []),
        "The videos are named, not included, unless a folder videos/ stands beside this card; their licences are their owners'.",
        f"```bash\npython -m savi train {file} --model MODEL --out trained\n```",
        f"Code: {code_version()}.",
    ]
    return write_text_atomic(path, str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")))


_COLUMNS = (
    ("pair_id", "its name"),
    ("video", "path of the video"),
    ("question, kind", "what was asked, spatial or temporal; `meta.prompts` names the template around it"),
    ("chosen, rejected", "the two answers"),
    ("initial, critique", "the model's first answer and its critique of it, as it wrote them"),
    ("meta", "what belongs to the making: frames shown, index of the question"),
)
