"""The GPU checks under pytest; without a GPU the quick ones are tried on the CPU, so that a check that cannot run is found early."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.gpu import checks


@pytest.mark.gpu
@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.__name__)
def test_on_a_gpu(check: Callable[[str], None]) -> None:
    check("cuda")


@pytest.mark.parametrize("check", [c for c in checks.CHECKS if c is not checks.static_equals_eager], ids=lambda check: check.__name__)
def test_the_check_itself_on_a_cpu(check: Callable[[str], None]) -> None:
    check("cpu")
