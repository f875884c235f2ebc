"""What a process does with memory that it will need again: freed memory that glibc would give back, and objects that stay to the end."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager


def keep_freed_memory() -> None:
    """Tell glibc to keep memory that was freed: given back to the system after every step and fetched again, it halves the speed of
    training on a CPU. Does nothing where there is no glibc."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for name in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            libc.mallopt(name, 2**31 - 1)  # the most it takes


@contextmanager
def imports_that_stay() -> Iterator[None]:
    """Import large libraries within: Python looks for garbage neither meanwhile nor, later, among what was there at the end. Going
    through the objects of torch, transformers and lmms-eval takes long each time, and a forked process would get copies of them."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
