"""Nothing leaves the machine, and a process that is not set up is refused with the mend."""

from __future__ import annotations

import importlib.metadata
import os
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest

from harness.run import manifest
from harness.run.offline import (
    Guesses,
    InfrastructureError,
    NetworkRefusedError,
    check_environment,
    offline_environment,
    refuse_network,
)

ROOT = Path(__file__).resolve().parents[3]


def test_network_is_refused_and_counted() -> None:
    before = socket.getaddrinfo
    with pytest.warns(UserWarning, match=r"refused.*api\.openai\.com"), refuse_network() as tried:  # noqa: PT031
        with pytest.raises(NetworkRefusedError, match=r"api\.openai\.com"):
            socket.create_connection(("api.openai.com", 443), timeout=1)
        with socket.socket() as s, pytest.raises(NetworkRefusedError, match=r"192\.0\.2\.1"):
            s.connect(("192.0.2.1", 80))
        assert tried == ["api.openai.com", "192.0.2.1"]
    assert socket.getaddrinfo is before


def test_this_machine_is_let_through() -> None:
    with refuse_network() as tried, socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with socket.create_connection(server.getsockname(), timeout=5):
            pass
    assert tried == []


def test_a_read_only_cache_is_read_through_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that a cluster shares: the datasets library locks where it reads."""
    own = tmp_path / "hf" / "datasets"
    (own / "lmms-eval___egoschema").mkdir(parents=True)
    (own / "old.lock").touch()
    assert offline_environment(tmp_path / "hf")["HF_DATASETS_CACHE"] == str(own)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: access(path, mode) and not (mode & os.W_OK and Path(path) == own))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):
        cache = Path(offline_environment(tmp_path / "hf")["HF_DATASETS_CACHE"])
        assert cache.is_relative_to(tmp_path / "cache")
        assert {p.name: p.resolve() for p in cache.iterdir()} == {"lmms-eval___egoschema": own / "lmms-eval___egoschema"}
    (own / "lmms-eval___n_ex_tqa").mkdir()
    assert len(list(Path(offline_environment(tmp_path / "hf")["HF_DATASETS_CACHE"]).iterdir())) == 2
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InfrastructureError, match=r"hf/datasets cannot be written \(the datasets library locks there\).*XDG_CACHE_HOME"):
        offline_environment(tmp_path / "hf")


def test_environment_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HOME", raising=False)
    with pytest.raises(InfrastructureError, match=r"HF_HOME is None.*offline_environment"):
        check_environment(tmp_path)
    for k, v in offline_environment(tmp_path).items():
        monkeypatch.setenv(k, v)
    for name in ("datasets.config", "huggingface_hub.constants"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    check_environment(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(InfrastructureError, match="HF_HUB_OFFLINE"):
        check_environment(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    late = types.ModuleType("datasets.config")
    late.HF_DATASETS_CACHE = "/elsewhere"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets.config", late)
    with pytest.raises(InfrastructureError, match="imported before HF_HOME"):
        check_environment(tmp_path)


UPSTREAM = """
import random
def get_eval_result(prompt, maxtry=10):
    raise AssertionError("the judge was called")
def process(doc, results):
    if results[0] == "A":
        return {"pred": "A"}
    if results[0] == "judge":
        return {"pred": get_eval_result("is it right?")}
    return {"pred": random.choice(["A", "B"]), "other": random.random()}
"""


def test_guesses_are_noted_and_the_judge_is_never_asked() -> None:
    import random

    names: dict = {}
    exec(compile(UPSTREAM, "utils.py", "exec"), names)
    task = types.SimpleNamespace(config=types.SimpleNamespace(process_results=names["process"]))
    guesses = Guesses()
    guesses.watch("tempcompass_yes_no", task)
    random.seed(7)
    out = [task.config.process_results({}, [x]) for x in ("A", "hm", "judge", "A")]
    assert guesses.by_task["tempcompass_yes_no"] == ["rule", "guess", "judge", "rule"]
    assert out[2] == {"pred": (None, 0)}
    random.seed(7)  # the draw is the one upstream would have made
    assert out[1] == {"pred": random.choice(["A", "B"]), "other": random.random()}


def test_manifest_is_free_of_heavy_imports() -> None:
    code = (
        "import sys, harness.run.manifest; "
        "print([m for m in ('torch', 'transformers', 'lmms_eval', 'savi', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_manifest_names_the_class() -> None:
    pytest.importorskip("lmms_eval.models.registry_v2")
    m = manifest.manifest()
    assert (m.model_id, m.simple_class_path) == ("savi", "harness.run.lmms_model.SaviLmms")


def test_entry_point_of_the_installed_package() -> None:
    points = [e for e in importlib.metadata.entry_points(group="lmms_eval.models") if e.name == "savi"]
    if not points:
        pytest.skip("the package is not installed here")
    assert points[0].load() is manifest.manifest


def test_nothing_of_the_package_runs_at_import_torch() -> None:
    import tomllib

    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    assert set(groups) == {"lmms_eval.models"}


def test_the_launcher_hands_every_argument_to_lmms_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Order, options and --help stay lmms-eval's."""
    from typer.testing import CliRunner

    from harness.__main__ import app

    dispatch = pytest.importorskip("lmms_eval.cli.dispatch")
    seen: list[list[str]] = []
    monkeypatch.setattr(dispatch, "main", lambda: seen.append(sys.argv))
    monkeypatch.setattr(sys, "argv", [])
    for line in ("--model savi --model_args pretrained=x,num_frames=8 --tasks a,b -v", "--help", "tasks list --help", ""):
        assert CliRunner().invoke(app, ["lmms-eval", *line.split()]).exit_code == 0
        assert seen[-1] == ["lmms-eval", *line.split()]
