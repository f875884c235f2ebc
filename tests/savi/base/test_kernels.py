"""Which decoder and which kernel run, decided in one place."""

from __future__ import annotations

import pytest

from savi.base import kernels
from savi.base.errors import UsageError
from savi.base.kernels import decoder_for, prefix_kernel


def test_the_decoder_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAVI_DECODER", raising=False)
    assert (decoder_for("cuda"), decoder_for("cpu")) == ("static", "eager")
    assert (decoder_for("cuda", "eager"), decoder_for("cpu", "static")) == ("eager", "static")
    monkeypatch.setenv("SAVI_DECODER", "eager")
    assert (decoder_for("cuda"), decoder_for("cuda", "static")) == ("eager", "static")
    monkeypatch.setenv("SAVI_DECODER", "fast")
    with pytest.raises(UsageError, match=r"'fast'.*SAVI_DECODER.*auto, static, eager"):
        decoder_for("cuda")


@pytest.mark.parametrize(
    ("device", "half", "head_dim", "equal", "installed", "kernel"),
    [
        ("cuda", True, 128, True, False, "flash (torch)"),
        ("cuda", True, 128, True, True, "flash (torch)"),
        ("cuda", True, 128, False, True, "flash-attn"),
        ("cuda", True, 128, False, False, "matrix products"),
        ("cuda", True, 20, True, True, "memory-efficient (torch)"),
        ("cuda", True, 512, False, True, "matrix products"),
        ("cuda", False, 128, True, True, "memory-efficient (torch)"),
        ("cuda", False, 128, False, True, "matrix products"),
        ("cpu", False, 128, True, True, "flash (torch)"),
        ("cpu", True, 128, False, True, "matrix products"),
    ],
)
def test_the_kernel_of_the_prefixes(
    device: str, half: bool, head_dim: int, equal: bool, installed: bool, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "flash_attn_installed", lambda: installed)
    assert prefix_kernel(device, half=half, head_dim=head_dim, equal_lengths=equal) == kernel
