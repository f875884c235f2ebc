"""The tolerated share of failures: how it is written, and what ends a command."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from savi.base.fail_over import FailOver, read_share, stop_over


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.05", 0.05), (" 0% ", 0.0), ("100%", 1.0), ("1", 1.0), ("2.5%", 0.025)])
def test_shares(text: str, share: float) -> None:
    assert read_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "5", "-1%", "101%", "nan", "five", "5%%"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="no share"):
        read_share(text)


@pytest.mark.parametrize(
    ("given", "failed", "code"),
    [([], 10, 0), (["--fail-over", "10%"], 1, 0), (["--fail-over", "10%"], 2, 5), (["--fail-over", "0"], 0, 0),
     (["--fail-over", "0"], 1, 5), (["--fail-over", "x"], 0, 2)],
)  # fmt: skip
def test_a_command(given: list[str], failed: int, code: int) -> None:
    app = typer.Typer()

    @app.command()
    def work(fail_over: FailOver = None) -> None:
        stop_over(fail_over, failed, 10, "videos")

    done = CliRunner().invoke(app, given)
    assert done.exit_code == code, done.output
    if code == 5:
        assert f"{failed} of 10 videos failed, more than --fail-over" in done.output
