"""The doctor's findings, on machines that lack something."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from harness.run import doctor

app = typer.Typer()
app.callback()(lambda: None)
doctor.register(app)
runner = CliRunner()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_torchvision", lambda: doctor.Finding("torchvision", "ok", "imports"))


def states(**options: Path) -> dict[str, str]:
    return {f.name: f.state for f in doctor.look(**options)}


def test_this_machine_can_work(tmp_path: Path) -> None:
    found = states(hf_home=tmp_path)
    assert "wrong" not in found.values()
    assert found["data sets"] == "note"


def test_missing_package_is_wrong_and_exit_5(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "peft" else real(name))
    done = runner.invoke(app, ["doctor", "--json"])
    assert done.exit_code == 5
    packages = next(f for f in json.loads(done.stdout) if f["name"] == "packages")
    assert packages["state"] == "wrong"
    assert "peft" in packages["fix"]


def test_a_package_outside_its_range_is_wrong_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: ["filelock<4.3", "peft>=0.18", 'pytest<1; extra == "test"'])
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: "4.3.1" if name == "filelock" else real(name))
    packages = next(f for f in doctor.look() if f.name == "packages")
    assert packages.state == "wrong"
    assert packages.fix == "not in the range this project works with: filelock 4.3.1 (<4.3); run: pip install -e ."


def test_other_lmms_eval_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: "0.8.0")
    assert states()["lmms-eval"] == "note"


def test_full_disk_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))  # type: ignore[attr-defined]
    assert states()["disk"] == "wrong"


def test_broken_data_are_wrong(tmp_path: Path) -> None:
    (tmp_path / "twins.json").write_text("{")
    assert states(hf_home=tmp_path)["data sets"] == "wrong"
    assert runner.invoke(app, ["doctor", "--hf-home", str(tmp_path)]).exit_code == 5


def test_which_decoder_and_kernels_will_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAVI_DECODER", raising=False)
    monkeypatch.setattr(doctor, "_gpu", lambda: doctor.Finding("GPU", "note", "none"))
    assert doctor._decoding().found == "eager decoder, prefixes by flash (torch); videos read by torch"
    monkeypatch.setattr(doctor, "_gpu", lambda: doctor.Finding("GPU", "ok", "NVIDIA H100"))
    monkeypatch.setattr("savi.base.kernels.flash_attn_installed", lambda: False)
    found = doctor._decoding()
    assert found.found == (
        "static decoder, a CUDA graph a step; prefixes by flash (torch), those of unequal length by matrix products; "
        "videos read, and trained on, by torch"
    )
    assert "flash-attn" in found.fix
    monkeypatch.setattr("savi.base.kernels.flash_attn_installed", lambda: True)
    assert doctor._decoding().found.endswith("those of unequal length by flash-attn; videos read, and trained on, by flash-attn")
    monkeypatch.setenv("SAVI_ATTENTION", "torch")
    assert doctor._decoding().found.endswith("by matrix products; videos read, and trained on, by torch")
    monkeypatch.setenv("SAVI_ATTENTION", "fast")
    assert (doctor._decoding().state, doctor._decoding().fix) == ("wrong", "unset SAVI_ATTENTION")
    monkeypatch.delenv("SAVI_ATTENTION")
    monkeypatch.setenv("SAVI_DECODER", "quick")
    assert doctor._decoding().state == "wrong"
