"""Files after crashes: whole, or whole up to the last acknowledged line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from savi.base import files
from savi.base.digests import sha256_file, sha256_json
from savi.base.files import (
    Failure,
    FailureLog,
    FileFormatError,
    JsonlWriter,
    new_folder,
    read_jsonl,
    write_bytes_atomic,
    write_json_atomic,
    write_jsonl_atomic,
    write_text_atomic,
)
from savi.base.stamp import read_stamp

ROOT = Path(__file__).parents[3]


def test_atomic_writes_leave_only_the_file(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "a.txt"
    write_text_atomic(target, "erste\nZeile ü\r\n")
    write_text_atomic(target, "zweite ü\r\n")
    assert target.read_bytes() == "zweite ü\r\n".encode()
    assert os.listdir(target.parent) == ["a.txt"]
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.json"
    write_json_atomic(target, {"b": 1, "a": 2})
    before = target.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomic(target, {"a": float("nan")})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes_atomic(target, b"x" * 10)
    assert target.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.json"]


def test_hashes(tmp_path: Path) -> None:
    path = tmp_path / "big.bin"
    path.write_bytes(bytes(range(256)) * 9000)  # more than one piece
    import hashlib

    assert sha256_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha256_json({"a": 1, "b": [True, None, "ü"]}) == sha256_json({"b": [True, None, "ü"], "a": 1})
    assert sha256_json({"a": 1}) != sha256_json({"a": "1"})
    with pytest.raises(ValueError):
        sha256_json(float("inf"))
    with pytest.raises(TypeError):
        sha256_json(object())


ROWS = st.lists(st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=8), st.none()), max_size=3), max_size=5)


@given(rows=ROWS, cut=st.integers(0, 200))
def test_a_torn_file_continues_from_its_last_whole_row(tmp_path_factory: pytest.TempPathFactory, rows: list[dict], cut: int) -> None:
    path = tmp_path_factory.mktemp("torn") / "rows.jsonl"
    with JsonlWriter(path) as writer:
        writer.write(*rows)
    whole = path.read_bytes()
    torn = whole[: max(0, len(whole) - cut)]
    path.write_bytes(torn)
    survivors = []
    for row in rows:  # a row survives if all its bytes but perhaps the line end are there
        line = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        if len(b"".join(survivors)) + len(line) > len(torn):
            break
        survivors.append(line + b"\n")
    with JsonlWriter(path) as writer:
        writer.write({"last": 1})
    assert list(read_jsonl(path)) == [*rows[: len(survivors)], {"last": 1}]


def test_reading_passes_over_a_torn_last_line_only(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a":1}\n{"a":2')
    assert list(read_jsonl(path)) == [{"a": 1}]
    for broken in (b'{"a":1}\n{"a":\n{"a":3}\n', b"[1]\n", b'{"a":"\xff"}\n'):
        path.write_bytes(broken)
        with pytest.raises(FileFormatError, match=r"rows\.jsonl:\d: not a JSON object"):
            list(read_jsonl(path))


@pytest.mark.parametrize("deep", [b"[" * 100_000, b'{"a":' * 100_000])
def test_a_line_nested_without_end_is_named(tmp_path: Path, deep: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n":1}\n' + deep + b"\n")
    with pytest.raises(FileFormatError, match=r"rows\.jsonl:2: not a JSON object"):
        list(read_jsonl(path))
    stamp = tmp_path / "stamp.json"
    stamp.write_bytes(deep)
    assert read_stamp(stamp) is None


def test_a_long_torn_line_is_cut_off_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a":1}\n{"a":"' + b"x" * 200_000)
    writer = JsonlWriter(path)
    assert writer.repaired_bytes == 200_006
    writer.close()
    assert path.read_bytes() == b'{"a":1}\n'


def test_a_batch_with_a_bad_row_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with JsonlWriter(path) as writer:
        with pytest.raises(TypeError):
            writer.write({"a": 1}, {"a": object()})
        writer.write()
    assert path.read_bytes() == b""
    with pytest.raises(ValueError, match="closed"):
        writer.write({"a": 1})


def test_a_killed_writer_loses_no_acknowledged_row(tmp_path: Path) -> None:
    path, told = tmp_path / "rows.jsonl", tmp_path / "told"
    code = (
        "import sys; from savi.base.files import JsonlWriter\n"
        "writer = JsonlWriter(sys.argv[1])\n"
        "for number in range(10**9):\n"
        "    writer.write({'number': number, 'text': 'x' * 3000})\n"
        "    print(number, flush=True)\n"
    )
    with told.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=out, cwd=ROOT)
        deadline = time.monotonic() + 20
        while told.stat().st_size < 50 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    acknowledged = [int(line) for line in told.read_text().split("\n")[:-1]]
    with JsonlWriter(path) as writer:
        writer.write({"number": -1})
    numbers = [row["number"] for row in read_jsonl(path)]
    assert len(acknowledged) > 5
    assert numbers[: len(acknowledged)] == acknowledged
    assert numbers[-1] == -1
    assert numbers[:-1] == list(range(len(numbers) - 1))


def test_failures_are_listed_once_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "failures.jsonl"
    log = FailureLog(path)
    assert not path.exists()  # a run without failures leaves no file
    first = log.add("video", "a.mp4", "truncated at 31 kB", "decode")
    log.add("reply", "b.mp4#1", "no question mark", "propose")
    before = path.read_bytes()
    again = FailureLog(path)
    again.add("video", "a.mp4", "truncated at 31 kB", "decode")
    assert path.read_bytes() == before
    assert again.failures[0] == first == Failure("video", "a.mp4", "truncated at 31 kB", "decode")
    assert (len(again), again.counts()) == (2, {"decode": 1, "propose": 1})


def test_a_foreign_failure_file_is_refused(tmp_path: Path) -> None:
    write_jsonl_atomic(tmp_path / "failures.jsonl", [{"something": "else"}])
    with pytest.raises(FileFormatError, match="not a failure row"):
        FailureLog(tmp_path / "failures.jsonl")


def test_a_folder_that_was_not_finished_goes_and_the_old_one_stays(tmp_path: Path) -> None:
    target = tmp_path / "site"
    target.mkdir()
    (target / "old").touch()

    def stop() -> None:
        with new_folder(target) as folder:
            (folder / "half").touch()
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        stop()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["site", "site/old"]
