"""The exceptions file: strict, and only as committed."""

from __future__ import annotations

import datetime as dt
import subprocess
from pathlib import Path

import pytest

from harness.gate.exceptions import EXCEPTIONS_FILE, ExceptionsError, committed_exceptions, read_exceptions

GOOD = """exceptions:
  - benchmark: egoschema
    covers: no_regression
    run: nightly-7
    reason: a known loss, mended in the next run
    approved_by: Jane Doe
    expires: 2030-01-31
"""


def repository(folder: Path) -> Path:
    for args in (["init", "-q"], ["config", "user.email", "a@b.c"], ["config", "user.name", "A"]):
        subprocess.run(["git", *args], cwd=folder, check=True)
    return folder / EXCEPTIONS_FILE


def commit(folder: Path) -> None:
    subprocess.run(["git", "add", "-A"], cwd=folder, check=True)
    subprocess.run(["git", "commit", "-q", "-m", "x"], cwd=folder, check=True)


def test_counts_only_as_committed(tmp_path: Path) -> None:
    path = repository(tmp_path)
    assert committed_exceptions(tmp_path) == ()
    path.write_text(GOOD)
    with pytest.raises(ExceptionsError, match="uncommitted"):
        committed_exceptions(tmp_path)
    commit(tmp_path)
    (e,) = committed_exceptions(tmp_path)
    assert e.expires == dt.date(2030, 1, 31)
    assert "expired" in e.text(dt.date(2031, 1, 1))
    path.write_text(GOOD.replace("nightly-7", "nightly-8"))
    with pytest.raises(ExceptionsError, match="uncommitted"):
        committed_exceptions(tmp_path)


def test_an_ignored_file_is_not_committed(tmp_path: Path) -> None:
    path = repository(tmp_path)
    (tmp_path / ".gitignore").write_text(EXCEPTIONS_FILE)
    commit(tmp_path)
    path.write_text(GOOD)
    with pytest.raises(ExceptionsError, match="uncommitted"):
        committed_exceptions(tmp_path)


def test_outside_a_repository_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / EXCEPTIONS_FILE).write_text(GOOD)
    with pytest.raises(ExceptionsError, match="not in a git repository"):
        committed_exceptions(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("    expires: 2030-01-31\n", "", "expires"),
        ("2030-01-31", "never", "expires"),
        ("Jane Doe", "''", "approved_by"),
        ("a known loss, mended in the next run", "meh", "reason"),
        ("no_regression", "failed", "covers"),
        ("run: nightly-7", "run: nightly-7\n    force: true", "force"),
        ("exceptions:", "exeptions:", "exceptions"),
        (GOOD, "{", "YAML"),
        (GOOD, "", "file"),
    ],
)
def test_malformed_entries_are_refused(tmp_path: Path, old: str, new: str, match: str) -> None:
    path = tmp_path / EXCEPTIONS_FILE
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ExceptionsError, match=match):
        read_exceptions(path)
