"""Other machines than this one: the requirements that a platform gets, and that no message names a package without a wheel for it.

decord 0.6.0 has wheels for x86-64 Linux and Windows alone (for a Mac with an Intel processor only up to Python 3.8).
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

from harness.run import doctor

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PLATFORMS = {
    ("linux", "Linux", "x86_64"): True,
    ("linux", "Linux", "aarch64"): False,
    ("darwin", "Darwin", "arm64"): False,
    ("darwin", "Darwin", "x86_64"): False,
    ("win32", "Windows", "AMD64"): True,
    ("win32", "Windows", "ARM64"): False,
}
"""(sys_platform, platform_system, platform_machine) -> whether decord has a wheel there."""


def environment(platform: tuple[str, str, str]) -> dict[str, str]:
    return {**dict(zip(("sys_platform", "platform_system", "platform_machine"), platform, strict=True)), "extra": ""}


@pytest.mark.parametrize(("platform", "has_wheel"), PLATFORMS.items(), ids=["-".join(p) for p in PLATFORMS])
def test_decord_is_asked_for_where_it_has_a_wheel(platform: tuple[str, str, str], has_wheel: bool) -> None:
    (decord,) = [r for text in PROJECT["dependencies"] if (r := Requirement(text)).name == "decord"]
    assert decord.marker is not None
    assert decord.marker.evaluate(environment(platform)) is has_wheel


@pytest.mark.parametrize("platform", [p for p, has_wheel in PLATFORMS.items() if not has_wheel], ids="-".join)
def test_the_doctor_does_not_ask_for_it_elsewhere(platform: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    versions, here = {"av": "15.1.0"}, default_environment()
    monkeypatch.setattr(doctor, "_version", versions.get)
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: PROJECT["dependencies"])
    monkeypatch.setattr("packaging.markers.default_environment", lambda: {**here, **environment(platform)})
    said = [doctor._decoder(), doctor._packages()]
    assert said[0].state == "ok"
    assert not any("decord" in finding.fix for finding in said)


def test_no_text_tells_to_install_it() -> None:
    files = [p for package in ("savi", "benchmarks", "harness", "reproduce") for p in (ROOT / package).rglob("*.py")]
    files += [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "docs/ci").iterdir()]
    found = [
        f"{p.name}: {line}" for p in files for line in p.read_text(encoding="utf-8").splitlines() if re.search(r"install\b.*decord", line)
    ]
    assert found == []


@pytest.mark.parametrize("version", [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)])
def test_each_python_that_is_named_has_an_environment_of_tox(version: str) -> None:
    minor = version.removeprefix("3.")
    assert re.search(rf"\[testenv:py3{{[^}}]*\b{minor}\b", (ROOT / "tox.ini").read_text(encoding="utf-8"))
    assert version in PROJECT["requires-python"] or int(minor) > 11
