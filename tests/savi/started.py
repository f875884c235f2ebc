"""Commands as real processes: stopped at work, and two of them in one place."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

STOPS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
"""Signal, exit code and word of a command that was asked to end."""


def start(arguments: Sequence[object], env: Mapping[str, str]) -> subprocess.Popen[str]:
    """`python -m ...` in a session of its own."""
    command = [sys.executable, "-W", "ignore", "-m", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(env), start_new_session=True
    )  # fmt: skip


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until `ready()`; the process must still be at work then."""
    until = time.monotonic() + 300
    while not ready() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()[1][-3000:]


def stopped(arguments: Sequence[object], env: Mapping[str, str], number: signal.Signals, ready: Callable[[], bool]) -> tuple[int, str]:
    """Exit code and last line of stderr of a command that got a signal as soon as `ready()`."""
    with start(arguments, env) as process:
        wait_until(ready, process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    assert "Traceback" not in errors
    assert errors.count("error: ") == 1
    return process.returncode, errors.splitlines()[-1]


def check_two_at_once(arguments: Sequence[object], env: Mapping[str, str], place: Path) -> None:
    """The first is held still at work while the second is refused by its name; then the first ends well."""
    with start(arguments, env) as first:
        wait_until(lambda: any(place.rglob(".*holder")), first)
        first.send_signal(signal.SIGSTOP)
        with start(arguments, env) as second:
            _, errors = second.communicate(timeout=300)
        first.send_signal(signal.SIGCONT)
        _, own = first.communicate(timeout=600)
    assert second.returncode == 5, errors[-3000:]
    assert f"another run is at work here (process {first.pid} on " in errors
    assert "Traceback" not in errors
    assert first.returncode == 0, own[-3000:]
