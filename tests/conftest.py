"""Shared by all tests: no network, one thread, no progress bars, no time limits of hypothesis, Ctrl-C as in a terminal."""

from __future__ import annotations

import os
import signal
import threading

from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TERM", "dumb")
os.environ.setdefault("NO_COLOR", "1")

if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell's background job (`pytest &`) ignores it, and every process that the tests start would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine fails no test
settings.load_profile("untimed")
