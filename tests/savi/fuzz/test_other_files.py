"""Damaged pairs, journals, archives, scales and published tables: each is read, or refused in one line with an exit code."""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.data.archives import bring, find_members
from benchmarks.data.source import FolderSource
from harness.tables.published import load_published
from reproduce.scale import SCALES_DIR, load_scale
from savi.base.digests import sha256_json
from savi.base.errors import SaviError
from savi.formats.table import NAMES, read_any_pairs, write_any_pairs
from savi.loop.journal import Journal, is_complete, read_counts
from savi.loop.parts import Made, PartWriter, read_parts
from savi.loop.preferences import PreferencePair, make_pair_id, read_pairs, write_pairs
from savi.server.server_lm import read_replies
from savi.server.usage import ServedReply, Usage
from tests.savi.fuzz.damage import Damage, damage_bytes, damage_json

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(1800)]
INPUTS = 500
ROOT = Path(__file__).resolve().parents[3]


def damage_lines(data: bytes, rng: random.Random) -> bytes:
    """A line's values made odd, or bytes anywhere."""
    lines = data.splitlines(keepends=True)
    if rng.random() < 0.5:
        at = rng.randrange(len(lines))
        lines[at] = damage_json(lines[at], rng) + b"\n"
        return b"".join(lines)
    return damage_bytes(data, rng)


def fuzz(whole: Path, name: str, work: Path, damage: Damage, use: Callable[[Path], Any]) -> None:
    """`use` gets a folder like `whole`, in which the file `name` is damaged."""
    counts, wrong = {"used": 0, "refused": 0}, []
    for seed in range(INPUTS):
        folder = work / str(seed)
        shutil.copytree(whole, folder)
        (folder / name).write_bytes(damage((whole / name).read_bytes(), random.Random(f"{name}/{seed}")))
        try:
            use(folder)
            counts["used"] += 1
        except SaviError as error:
            counts["refused"] += 1
            if "\n" in str(error) or not str(error):
                wrong.append(f"{name}/{seed}: {str(error)[:300]!r}")
        except Exception as error:
            place = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)][-3:]
            wrong.append(f"{name}/{seed}: {type(error).__name__} {str(error)[:150]!r} {place}")
        finally:
            shutil.rmtree(folder)
    assert not wrong, f"{len(wrong)} of {INPUTS}:\n" + "\n".join(wrong[:30])
    assert counts["refused"] > 10, "the damage is not seen"
    print(f"{name}: {counts}")


@pytest.fixture
def pairs() -> list[PreferencePair]:
    made = []
    for i in range(6):
        question = f"What moves in scene {i}?"
        made.append(
            PreferencePair(
                pair_id=make_pair_id(f"{i}.mp4", "temporal", i, question), video=f"{i}.mp4", question=question, kind="temporal",
                initial="the cup", critique="It is the ball.", chosen="the ball", rejected="the cup", meta={"index": i},
            )
        )  # fmt: skip
    return made


def test_pairs(pairs: list[PreferencePair], tmp_path: Path) -> None:
    write_pairs(tmp_path / "whole" / "pairs.jsonl", pairs)
    fuzz(tmp_path / "whole", "pairs.jsonl", tmp_path / "work", damage_lines, lambda folder: read_pairs(folder / "pairs.jsonl"))


@pytest.mark.parametrize("style", NAMES)
def test_pairs_of_other_tools(pairs: list[PreferencePair], style: str, tmp_path: Path) -> None:
    write_any_pairs(tmp_path / "whole" / "rows.jsonl", pairs, style)
    fuzz(tmp_path / "whole", "rows.jsonl", tmp_path / "work", damage_lines, lambda folder: read_any_pairs(folder / "rows.jsonl"))


def test_journal_of_pairs(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    counts = {"videos": 4, "broken": 1, "questions": 6, "pairs": 2, "dropped": {"duplicate": 4}, "equal": 0}
    failure = {"what": "3.mp4", "where": "/clips/3.mp4", "why": "cut off", "stage": "propose"}
    chunk = {"videos_done": 4, "pairs_bytes": 0, "dropped_bytes": 0, "counts": counts, "failures": [failure]}
    rows = [{"model": "m", "settings": sha256_json({"seed": 1}), "videos": sha256_json(["0.mp4"])}, chunk, {**chunk, "again": ["3.mp4"]}]
    (whole / "pairs.journal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def use(folder: Path) -> None:
        is_complete(folder / "pairs.jsonl")
        read_counts(folder / "pairs.jsonl")
        Journal(folder / "pairs.jsonl", None, model="m", settings={"seed": 1}, videos=["0.mp4"])

    fuzz(whole, "pairs.journal.jsonl", tmp_path / "work", damage_lines, use)


def test_parts_of_several_processes(pairs: list[PreferencePair], tmp_path: Path) -> None:
    whole, header = tmp_path / "whole", {"model": "m"}
    dropped = {"video": "7.mp4", "reason": "unchanged", "question": "What?"}
    failure = {"what": "8.mp4", "where": "8.mp4", "why": "cut off", "stage": "propose"}
    with PartWriter(whole / "pairs.jsonl", header) as part:
        part.add({"0.mp4": Made(pairs[:2]), "7.mp4": Made(dropped=[dropped], usage={"model": Usage(2)}), "8.mp4": Made(broken=[failure])})
    name = next(path.name for path in whole.glob("*.part-*.jsonl"))

    def use(folder: Path) -> None:
        for made in read_parts(folder / "pairs.jsonl", header, lambda _: None).values():
            assert all(isinstance(pair.chosen, str) for pair in made.pairs)
            assert all(isinstance(row["reason"], str) for row in made.dropped)

    fuzz(whole, name, tmp_path / "work", damage_lines, use)


def test_replies_of_a_server(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    rows = [{"request": f"{i:064x}", **asdict(ServedReply(f"reply {i}", 2, True, Usage(1, 0, 5, 0, 2)))} for i in range(6)]
    (whole / "pairs.replies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def use(folder: Path) -> None:
        assert all(isinstance(reply.text, str) for reply in read_replies(folder / "pairs.replies.jsonl").values())

    fuzz(whole, "pairs.replies.jsonl", tmp_path / "work", damage_lines, use)


def write_zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("name", ["videos.zip", "videos.tar", "videos.tar.gz"])
def test_archives(name: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    members = {f"videos/{i}.mp4": random.Random(i).randbytes(700) + b"\0" * 700 for i in range(4)}
    (write_zip if name.endswith("zip") else write_tar)(whole / name, members)

    def use(folder: Path) -> None:
        source = FolderSource(folder)
        out = folder / "out"
        wanted = [(member, out / f"{i}.mp4") for i, member in enumerate(find_members(source)) if member.size < 1 << 20]
        for path, _ in bring(source, wanted):
            assert path.is_relative_to(out)

    fuzz(whole, name, tmp_path / "work", damage_bytes, use)


@pytest.mark.parametrize("name", ["micro", "_paper"])
def test_scales(name: str, tmp_path: Path) -> None:
    scale = "8b" if name == "_paper" else name
    fuzz(SCALES_DIR, f"{name}.yaml", tmp_path / "work", damage_bytes, lambda folder: load_scale(scale, folder=folder))


@pytest.mark.parametrize("name", ["manifest.yaml", "table1_main.csv"])
def test_published_tables(name: str, tmp_path: Path) -> None:
    fuzz(ROOT / "results" / "paper", name, tmp_path / "work", damage_bytes, load_published)
