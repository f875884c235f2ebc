"""Twins of the benchmarks on the micro world: small, real mp4 files, and questions in Arrow files where the `datasets` library
looks for those of the real sets, so that lmms-eval's unmodified tasks load them with no network.

    build_twins(hf_home, seed=1, size="micro")

The same seed gives the same bytes. Ground truth is written only here, below `hf_home`; the alignment loop reads videos from another
folder, made from other scenes.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from benchmarks.benchmark import Benchmark, TwinSize
from benchmarks.catalog import CATALOG, PAPER, select
from benchmarks.data.layout import TWINS_STAMP, DatasetError, arrow_folder, twins_stamp
from benchmarks.micro.twins import drawing
from benchmarks.micro.world import questions, videos, world
from benchmarks.micro.world.videos import write_mp4
from benchmarks.micro.world.world import render
from savi.base.digests import sha256_bytes, sha256_file
from savi.base.files import make_folder, sync_files, write_bytes_atomic

SIZES: tuple[TwinSize, ...] = get_args(TwinSize)
SCHEMA = 2
_MARK = ".twins"
"""Tells a folder of twins whose stamp is gone (interrupted build, deleted file) from somebody's real data sets."""


@dataclass(frozen=True)
class TwinSet:
    """Twins on disk: questions and videos of each benchmark, and a fingerprint over every file's bytes."""

    hf_home: Path
    seed: int
    size: TwinSize
    n: dict[str, int]
    videos: dict[str, int]
    fingerprint: str


def _write_arrow(hf_home: Path, benchmark: Benchmark, config: str, rows: list[dict[str, Any]], revision: str) -> list[Path]:
    """Write one configuration as the `datasets` library's cache: <org>___<snake>/<config>/0.0.0/<40 hex>/{<snake>-<split>.arrow,
    dataset_info.json}.

    Written with pyarrow alone: importing `datasets` fixes the process's HF_HOME, which here may not be the one in use."""
    import pyarrow as pa

    types = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64()}
    described = {k: _feature(v) for k, v in rows[0].items()}
    columns = [(k, types[d["dtype"]] if "dtype" in d else pa.list_(types[d["feature"]["dtype"]])) for k, d in described.items()]
    schema = pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": described}})})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    data = sink.getvalue().to_pybytes()
    snake = benchmark.dataset_name
    split = {"name": benchmark.split, "num_bytes": len(data), "num_examples": len(rows), "dataset_name": snake}
    info = {
        "description": "", "citation": "", "homepage": "", "license": "", "features": described, "builder_name": "parquet",
        "dataset_name": snake,
        "config_name": config, "version": {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0}, "splits": {benchmark.split: split},
        "download_size": 0,
        "dataset_size": len(data), "size_in_bytes": len(data),
    }  # fmt: skip
    folder = arrow_folder(hf_home, benchmark, config) / "0.0.0" / revision
    arrow, described_by = folder / f"{snake}-{benchmark.split}.arrow", folder / "dataset_info.json"
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in ((arrow, data), (described_by, json.dumps(info).encode())):
        if not (path.is_file() and path.read_bytes() == content):  # an evaluation may be reading it
            path.write_bytes(content)
    return [arrow, described_by]


def _feature(value: object) -> Mapping[str, Any]:
    """A column's type in the `datasets` library's words, from one of its values."""
    if isinstance(value, list):
        return {"feature": _feature(value[0]), "_type": "List"}
    return {"dtype": {str: "string", int: "int64", float: "float64"}[type(value)], "_type": "Value"}


def _remove(path: Path) -> None:
    """Delete a file, and its folder where nothing else is in it: `datasets` takes the folder changed last, empty or not."""
    path.unlink(missing_ok=True)
    if path.parent.is_dir() and not any(path.parent.iterdir()):
        path.parent.rmdir()


def _code(names: Sequence[str]) -> str:
    """What the twins are made by: a change of world, drawing, layout or a benchmark's file makes them again."""
    files = [m.__file__ for m in (world, questions, videos, drawing)] + [__file__]
    files += [inspect.getfile(type(CATALOG[name])) for name in names]
    return sha256_bytes(b"".join(Path(str(f)).read_bytes() for f in files))


def check_twins(hf_home: Path) -> list[str]:
    """Files of the twins that are missing or changed, relative to `hf_home` (all that is known: the stamp alone, where that is missing).

    Every file's digest is compared (6 MB at micro size). The stamp is a file of its own form, not one of `savi.base.stamp`: it describes
    the data set to those who measure on it (questions, videos, tasks) and travels with the folder.
    """
    stamp = twins_stamp(hf_home)
    if stamp is None:
        return [TWINS_STAMP]
    out = []
    for name, (size, sha) in stamp["files"].items():
        path = hf_home / name
        if not path.is_file() or path.stat().st_size != size or sha256_file(path) != sha:
            out.append(name)
    return out


def build_twins(hf_home: Path, *, seed: int, size: TwinSize = "micro", benchmarks: Sequence[str] | None = None) -> TwinSet:
    """Make twins below `hf_home` (of the paper's benchmarks, and of those named), or keep them where they are whole and were made the same
    way. Optional twins that are there stay.

    Missing or changed files are made again (the same bytes). The stamp is written last, so an interrupted build is not taken for a whole
    one.

    Raises:
        ValueError: unknown size.
        UnknownBenchmarkError: a name is not in the catalog.
        DatasetError: `hf_home` holds something else: data sets that were not made here.
    """
    if size not in SIZES:
        raise ValueError(f"unknown twin size {size!r}; choose from {', '.join(sorted(SIZES))}")
    stamp = twins_stamp(hf_home)
    if stamp is None and any((hf_home / benchmark.data_dir).exists() and not (hf_home / _MARK).exists() for benchmark in CATALOG.values()):
        raise DatasetError(f"{hf_home} holds data sets that are no twins; give the twins a folder of their own")
    there = [name for name in stamp["n"] if name in CATALOG] if stamp is not None else []
    wanted = select([*PAPER, *(benchmarks or ()), *there])
    names = [benchmark.name for benchmark in wanted]
    made = {"schema": SCHEMA, "seed": seed, "size": size, "code": _code(names)}
    if stamp is not None and list(stamp["n"]) == names and all(stamp.get(k) == v for k, v in made.items()) and not check_twins(hf_home):
        return TwinSet(hf_home, seed, size, stamp["n"], stamp["videos"], stamp["fingerprint"])
    kept = stamp["files"] if stamp is not None and stamp.get("code") == _code(there) and stamp.get("seed") == seed else {}
    make_folder(hf_home)
    write_bytes_atomic(hf_home / _MARK, b"this folder is the twins' own\n")
    (hf_home / TWINS_STAMP).unlink(missing_ok=True)
    files: dict[str, list[Any]] = {}
    n: dict[str, int] = {}
    count: dict[str, int] = {}
    tasks: dict[str, dict[str, int]] = {}
    for benchmark in wanted:
        revision = sha256_bytes(json.dumps({**made, "code": _code([benchmark.name])}).encode())[:40]
        twin = benchmark.twin(seed, benchmark.twin_task(size))
        used = {benchmark.video_name(t, doc) for t, c in zip(benchmark.tasks, benchmark.configs, strict=True) for doc in twin.rows[c]}
        for video in sorted(used):
            name = f"{benchmark.video_folder}/{video}"
            path = hf_home / name
            if not (name in kept and path.is_file() and sha256_file(path) == kept[name][1]):
                write_mp4(path, render(twin.scenes[video]))
            files[name] = [path.stat().st_size, sha256_file(path)]
        for config, rows in twin.rows.items():
            for path in _write_arrow(hf_home, benchmark, config, rows, revision):
                files[path.relative_to(hf_home).as_posix()] = [path.stat().st_size, sha256_file(path)]
        tasks[benchmark.name] = {t: len(twin.rows[c]) for t, c in zip(benchmark.tasks, benchmark.configs, strict=True)}
        n[benchmark.name], count[benchmark.name] = sum(tasks[benchmark.name].values()), len(used)
    for name in set(stamp["files"] if stamp else {}) - set(files):
        _remove(hf_home / name)
    fingerprint = sha256_bytes("".join(f"{k} {v[1]}\n" for k, v in sorted(files.items())).encode())
    sync_files((hf_home / name for name in files), hf_home)
    out = {**made, "n": n, "videos": count, "tasks": tasks, "fingerprint": fingerprint, "files": files}
    write_bytes_atomic(hf_home / TWINS_STAMP, json.dumps(out).encode())
    return TwinSet(hf_home, seed, size, n, count, fingerprint)
