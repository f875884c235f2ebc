"""Every command ends the same way: a known error in one line with its own code, a signal with 130 or 143."""

from __future__ import annotations

import errno
import json
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from savi.base.cli import KEPT, describe_error, errors
from savi.base.errors import ExitCode, FileFormatError, SaviError, UsageError
from savi.base.files import write_bytes_atomic
from savi.video.frames import VideoError

ROOT = Path(__file__).resolve().parents[3]
APP = """
import sys, time
import typer
from savi.base.cli import errors, run_app
app = typer.Typer()
@app.command()
def work():
    with errors(kept="the first half is kept"):
        print("at work", flush=True)
        try:
            time.sleep(60)
        except Exception:
            pass
@app.command()
def short():
    print("at work", flush=True)
    time.sleep(60)
if __name__ == "__main__":
    run_app(app, "app")
"""


@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
@pytest.mark.parametrize("command", ["work", "short"])
def test_a_signal_ends_a_command_in_one_line(tmp_path: Path, number: int, code: int, word: str, command: str) -> None:
    (tmp_path / "app.py").write_text(APP)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "app.py"), command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert said.splitlines() == [f"error: {word}; the first half is kept" if command == "work" else "stopped"]


def test_a_helper_process_of_a_stopped_command_dies_of_the_signal(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import os, signal, time
        from savi.base.cli import stop_signals
        with stop_signals():
            ready, tell = os.pipe()
            child = os.fork()
            if child == 0:
                os.write(tell, b"x")
                time.sleep(30)
                os._exit(7)
            os.read(ready, 1)
            os.kill(child, signal.SIGTERM)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{-signal.SIGTERM}\n", "")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (SaviError("x: gone"), 5, "x: gone"),
        (UsageError("no such thing"), 2, "no such thing"),
        (FileFormatError("a.jsonl:3: not JSON"), 4, "a.jsonl:3: not JSON"),
        (VideoError("v.mp4", "no such file", "missing"), 2, "v.mp4: no such file"),
        (VideoError("v.mp4", "no frames", "zero_frames"), 4, "v.mp4: no frames"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), 5, "/data/x: Permission denied"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/x"),
            5,
            "/data/x: no room left; free some and run the same command to go on",
        ),
        (SaviError("\x1b[2Jclip\udce9.mp4: gone"), 5, r"\x1b[2Jclip\udce9.mp4: gone"),
        (
            ModuleNotFoundError("No module named 'av'"),
            5,
            "No module named 'av' (a package is missing: install the project with pip install -e .)",
        ),
    ],
)
def test_an_error_knows_its_code(error: Exception, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[Any] = []
    with pytest.raises(typer.Exit) as ended, errors(on_stop=lambda message, code: told.append((message, code))):
        raise error
    assert ended.value.exit_code == code
    assert capsys.readouterr().err == f"error: {line}\n"
    assert [code for _, code in told] == [code]


def test_an_unknown_error_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), errors(kept=KEPT):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos 64 vs 0"),
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_no_room_is_recognised_as_libraries_report_it(error: Exception) -> None:
    known = describe_error(error)
    assert known is not None
    assert "room" in known[0]
    assert known[1] == ExitCode.MACHINE


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_what_libraries_say_of_a_full_disk_is_known(full_disk: Path) -> None:
    import torch
    from safetensors.torch import save_file

    weights = {"a": torch.zeros(1 << 18)}
    for write in (
        lambda: torch.save(weights, full_disk / "a.pt"),
        lambda: save_file(weights, full_disk / "a.safetensors"),
        lambda: write_bytes_atomic(full_disk / "a.bin", bytes(1 << 20)),
    ):
        with pytest.raises(Exception) as caught:
            write()
        known = describe_error(caught.value)
        assert known is not None, repr(caught.value)
        assert "room" in known[0]
        assert known[1] == ExitCode.MACHINE


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from savi.base.cli import errors
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
with errors():
    save_file({"a": torch.zeros(1 << 18)}, Path(sys.argv[1]))
"""


def test_a_file_above_the_shells_limit_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path / "a.safetensors")], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr.split("error: ")[0]
    assert "File too large" in done.stderr and "room" in done.stderr


def test_what_rust_libraries_make_of_a_failing_disk_is_known() -> None:
    for said in ("Error while serializing: I/O error: Read-only file system (os error 30)", "Input/output error (os error 5)"):
        assert describe_error(RuntimeError(said)) == (said, ExitCode.MACHINE)
    assert describe_error(RuntimeError("a bug")) is None


WARNS = """
import sys, warnings, typer
from savi.base.cli import run_app
app = typer.Typer()
@app.command()
def main() -> None:
    warnings.warn("old name", FutureWarning)
    warnings.warn("going away", DeprecationWarning)
    warnings.warn("ours: 3 network calls were refused")
run_app(app, "x")
"""


@pytest.mark.parametrize(("options", "shown"), [([], False), (["-W", "default"], True)])
def test_notes_to_other_authors_do_not_reach_the_user_and_ours_do(options: list[str], shown: bool) -> None:
    done = subprocess.run([sys.executable, *options, "-c", WARNS], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ("warning: ours: 3 network calls were refused" in done.stderr.splitlines()) == (not shown)
    assert "ours: 3 network calls were refused" in done.stderr
    assert ("old name" in done.stderr) == ("going away" in done.stderr) == shown


PRINTS = """
import sys, typer
from savi.base.cli import print_json, run_app
app = typer.Typer()
@app.command()
def ours(as_json: bool = typer.Option(False, "--json")) -> None:
    print("a library prints")
    print_json({"a": 1}) if as_json else typer.echo("text")
@app.command()
def others(as_json: bool = typer.Option(False, "--json")) -> None:
    typer.echo("{}")
run_app(app, "x", json_alone=("ours",))
"""


def test_with_json_stdout_is_the_objects_alone() -> None:
    """What libraries print there (trackers, and transformers where it is imported with WANDB_MODE=offline) goes to stderr."""

    def ran(*arguments: str) -> tuple[str, str]:
        done = subprocess.run([sys.executable, "-c", PRINTS, *arguments], capture_output=True, text=True, cwd=ROOT, check=True)
        return done.stdout, done.stderr

    out, said = ran("ours", "--json")
    assert json.loads(out) == {"a": 1} and said == "a library prints\n"
    assert ran("ours") == ("a library prints\ntext\n", "")
    assert ran("others", "--json") == ("{}\n", "")


def test_no_warning_of_ours_is_of_a_kind_that_is_left_out() -> None:
    for package in ("savi", "benchmarks", "harness", "reproduce"):
        for path in (ROOT / package).rglob("*.py"):
            for line in path.read_text(encoding="utf-8").splitlines():
                assert "warn(" not in line or not re.search(r"(Future|Deprecation)Warning", line), f"{path}: {line}"


ENDS = """
import gc, typer
from savi.base.cli import run_app
app = typer.Typer()
@app.command()
def work():
    gc.callbacks.append(lambda phase, info: print("objects looked at:", len(gc.get_objects()) > 5000))
run_app(app, "x")
"""


def test_no_time_is_spent_on_garbage_while_the_interpreter_ends(tmp_path: Path) -> None:
    """After torch it took more than a second."""
    (tmp_path / "app.py").write_text(ENDS)
    done = subprocess.run([sys.executable, str(tmp_path / "app.py")], capture_output=True, text=True, check=True, timeout=30)
    assert "True" not in done.stdout
