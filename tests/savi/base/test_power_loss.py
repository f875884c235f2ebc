"""Whatever is said to be done is there after a power loss, at whatever moment it comes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reproduce.stages import Stage, StageContext, run_stages, stamp_path
from savi.base.files import JsonlWriter, new_folder, write_json_atomic
from savi.base.stamp import Stamp, files_below, read_stamp
from savi.training.checkpoints import last_checkpoint, seal
from tests.reproduce.test_stages import Quiet
from tests.savi.base.disk import Disk

WEIGHTS = b"weights" * 1000


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    (root := tmp_path / "disk").mkdir()
    made = Disk(root, monkeypatch)
    yield made
    made.close()


def every_state(disk: Disk, tmp_path: Path) -> Iterator[tuple[int, Path]]:
    for number in range(len(disk.states)):
        yield number, disk.after(number, tmp_path / "after" / str(number))


def unsynced(folder: Path) -> None:
    """What a library that writes weights leaves: bytes nobody flushed."""
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "config.json").write_text("{}")


def test_the_disk_loses_what_was_not_synced(disk: Disk, tmp_path: Path) -> None:
    """The measure itself: a rename without fsync, as it is often written, loses the bytes."""
    part = disk.root / "part"
    part.write_bytes(WEIGHTS)
    part.rename(disk.root / "whole")
    handle = os.open(disk.root, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    (disk.root / "later").write_bytes(WEIGHTS)
    found = disk.after(1, tmp_path / "found")
    assert {path.name: path.read_bytes() for path in found.iterdir()} == {"whole": b""}


def test_a_file_is_the_old_or_the_new_one(disk: Disk, tmp_path: Path) -> None:
    ends = []
    for value in (1, 2):
        write_json_atomic(disk.root / "new" / "folder" / "x.json", {"value": value})
        ends.append(len(disk.states) - 1)
    for number, folder in every_state(disk, tmp_path):
        path = folder / "new" / "folder" / "x.json"
        value = json.loads(path.read_text())["value"] if path.exists() else 0
        assert sum(end <= number for end in ends) <= value


def test_rows_are_there_once_write_returned(disk: Disk, tmp_path: Path) -> None:
    ends = []
    for first in (0, 3):
        with JsonlWriter(disk.root / "deep" / "rows.jsonl") as writer:
            for row in range(first, first + 3):
                writer.write({"row": row})
                ends.append(len(disk.states) - 1)
    for number, folder in every_state(disk, tmp_path):
        path = folder / "deep" / "rows.jsonl"
        rows = path.read_text().splitlines() if path.exists() else []
        assert len(rows) >= sum(end <= number for end in ends)


def test_a_folder_is_whole_or_its_predecessor_is(disk: Disk, tmp_path: Path) -> None:
    target = disk.root / "iter-1" / "model"
    ends = []
    for _ in range(2):
        with new_folder(target) as partial:
            unsynced(partial)
        ends.append(len(disk.states) - 1)
    for number, folder in every_state(disk, tmp_path):
        model = folder / "iter-1" / "model"
        if number < ends[0]:
            assert not model.exists() or (model / "model.safetensors").read_bytes() == WEIGHTS
        else:
            with pytest.raises(ZeroDivisionError), new_folder(model):  # what the next run does first, and then fails
                raise ZeroDivisionError
            assert (model / "model.safetensors").read_bytes() == WEIGHTS


def whole(folder: Path, stamp: Path) -> bool:
    found = read_stamp(stamp)
    return found is None or not found.done or not found.changed(folder)


def test_a_stage_that_says_done_has_its_files(disk: Disk, tmp_path: Path) -> None:
    def run(c: StageContext) -> str:
        unsynced(c.run / "model")
        return ""

    for value in (1, 2):
        run_stages(disk.root, [Stage("train", "", {"v": value}, (), ("model",), run)], Quiet())
    done = []
    for _, folder in every_state(disk, tmp_path):
        assert whole(folder, stamp_path(folder, "train"))
        found = read_stamp(stamp_path(folder, "train"))
        done.append(found is not None and found.done)
    assert done[-1]


def test_a_checkpoint_that_counts_is_whole(disk: Disk, tmp_path: Path) -> None:
    for step in (1, 2):
        unsynced(disk.root / f"checkpoint-{step}")
        seal(disk.root / f"checkpoint-{step}", "plan", {})
    for _, folder in every_state(disk, tmp_path):
        found = last_checkpoint(folder, "plan", "none")
        assert found is None or (found / "model.safetensors").read_bytes() == WEIGHTS


def test_a_stamp_without_syncing_what_it_names_would_be_seen(disk: Disk, tmp_path: Path) -> None:
    """As stages did it: the stamp durable, the weights not."""
    unsynced(disk.root / "model")
    Stamp.of({}, disk.root, files_below(disk.root / "model"), {}).write(disk.root / "stamp.json")
    assert not all(whole(folder, folder / "stamp.json") for _, folder in every_state(disk, tmp_path))


WRITER = """
import itertools, sys
from pathlib import Path
from savi.base.files import JsonlWriter, new_folder
from savi.base.stamp import Stamp, files_below
root = Path(sys.argv[1])
with JsonlWriter(root / "rows.jsonl") as rows:
    for number in itertools.count():
        with new_folder(root / "model") as partial:
            (partial / "model.safetensors").write_bytes(bytes([number % 251]) * 300_000)
        Stamp.of({"number": number}, root, files_below(root / "model"), {}).write(root / "stamp.json")
        rows.write({"number": number})
        print(number, flush=True)
"""


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[Path, str], Path]]:
    """Mounts an image, where that is allowed."""
    mounted: list[Path] = []

    def call(image: Path, name: str) -> Path:
        (place := tmp_path / name).mkdir()
        if subprocess.run(["mount", "-o", "loop", str(image), str(place)], capture_output=True, check=False).returncode:
            pytest.skip("loop mounts are not allowed here")
        mounted.append(place)
        return place

    yield call
    for place in reversed(mounted):
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="no mkfs.ext4 here")
def test_an_ext4_image_taken_while_results_are_written(tmp_path: Path, mount: Callable[[Path, str], Path]) -> None:
    """A copy of the block device is what a power loss leaves: the journal is replayed when it is mounted."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(24 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    place = mount(image, "live")
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(place)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    draw, checked = random.Random(7), 0
    try:
        for number in range(8):
            said = int(process.stdout.readline())
            time.sleep(draw.uniform(0.0, 0.1))
            process.send_signal(signal.SIGSTOP)
            shutil.copyfile(image, tmp_path / f"copy-{number}")
            process.send_signal(signal.SIGCONT)
            found = mount(tmp_path / f"copy-{number}", f"found-{number}")
            rows = [json.loads(line)["number"] for line in (found / "rows.jsonl").read_text().splitlines() if line.endswith("}")]
            assert rows[: said + 1] == list(range(said + 1))
            stamp = read_stamp(found / "stamp.json")
            assert stamp is not None
            assert stamp.done
            kept = found / "model" if (found / "model").exists() else found / ".model.old"
            data = (kept / "model.safetensors").read_bytes()
            assert data in (bytes([n % 251]) * 300_000 for n in (rows[-1], rows[-1] + 1))  # the row comes after the model
            checked += 1
    finally:
        process.kill()
        process.wait()
    assert checked == 8
