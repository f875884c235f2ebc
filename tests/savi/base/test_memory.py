"""Freed memory that is kept, and imports that garbage collection passes over."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from savi.base.memory import imports_that_stay

ROOT = Path(__file__).resolve().parents[3]
HELD_MB = """
import ctypes, sys
from savi.base.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
libc, size = ctypes.CDLL("libc.so.6"), 256 << 20
libc.malloc.restype = ctypes.c_void_p
block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size)))
libc.memset(block, 1, ctypes.c_size_t(size))
libc.free(block)
print(next(int(line.split()[1]) >> 10 for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""


def test_what_was_imported_is_not_looked_at_again() -> None:
    try:
        with imports_that_stay():
            assert not gc.isenabled()
            kept = [[] for _ in range(1000)]
        assert gc.isenabled()
        assert gc.get_freeze_count() >= len(kept)
    finally:
        gc.unfreeze()


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_stays_with_the_process() -> None:
    def held(how: str) -> int:
        return int(subprocess.run([sys.executable, "-c", HELD_MB, how], cwd=ROOT, capture_output=True, text=True, check=True).stdout)

    assert held("keep") - held("give back") > 200
