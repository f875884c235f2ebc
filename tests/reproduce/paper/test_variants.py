"""Variants of the loop as settings of a scale: what each turns into, and what cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reproduce.__main__ import app
from reproduce.paper.console import RunConsole
from reproduce.paper.experiment import Experiment, align_settings, dpo_settings
from reproduce.paper.paper import build_stages, run_paper
from reproduce.paper.work import _early_stop
from reproduce.scale import ScaleError, load_scale, scale_names
from savi.loop.journal import AlignCounts
from tests.reproduce.fakes import FakeWork

Make = Callable[..., Experiment]


@pytest.mark.parametrize("name", scale_names())
def test_every_scale_says_where_the_variants_come_from(name: str) -> None:
    settings = load_scale(name).settings()
    assert settings["loop.critic"].value == "self"
    assert settings["loop.kinds"].value == ["spatial", "temporal"]
    assert {settings[key].source for key in ("loop.critic", "loop.kinds", "loop.early_stop")} == {"paper"}
    assert settings["training.replay_critiques"].source.startswith("ours")


def test_who_criticises(experiment: Make, fake_base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert [experiment().critic(t) for t in (1, 2)] == [None, None]
    assert [experiment(loop__critic="none").critic(t) for t in (1, 2)] == [None, None]
    assert [experiment(loop__critic="base").critic(t) for t in (1, 2)] == [None, fake_base]
    assert [experiment(loop__critic=str(other)).critic(t) for t in (1, 2)] == [other, other]
    assert not align_settings(experiment(loop__critic="none").scale, 1).criticise
    assert align_settings(experiment(loop__kinds=["temporal"]).scale, 1).kinds == ("temporal",)


def test_sft_on_initial_answers_has_no_preference_loss(experiment: Make) -> None:
    for control in ("sft", "sft-initial"):
        assert dpo_settings(experiment(training__control=control).scale, 1).objective.loss is None


def test_replay_needs_an_nll_term() -> None:
    def with_alpha(alpha: float, control: str = "none") -> None:
        values = {"training.replay_critiques": 0.5, "training.rpo_alpha": alpha, "training.control": control}
        load_scale("smoke", {key: (value, "ours: test") for key, value in values.items()})

    with_alpha(1.0)
    with_alpha(0.0, "sft")
    with pytest.raises(ScaleError, match="rpo_alpha"):
        with_alpha(0.0)


def test_another_critic_makes_other_pairs(experiment: Make, fake_base: Path, work: FakeWork, tmp_path: Path) -> None:
    """A critic's folder whose weights change is another critic: the proposals are made again (here with the same result)."""
    critic = tmp_path / "critic"
    critic.mkdir()
    (critic / "model.safetensors").write_bytes(b"one")
    x = experiment(loop__iterations=1, loop__critic=str(critic))
    x.run.path.mkdir()
    run_paper(x, build_stages(x, work), RunConsole())
    (critic / "model.safetensors").write_bytes(b"other")
    work.calls.clear()
    run_paper(x, build_stages(x, work), RunConsole())
    assert work.calls == ["propose 1"]


def test_an_early_stop_reads_all_pairs_so_far(experiment: Make, work: FakeWork, monkeypatch: pytest.MonkeyPatch) -> None:
    x = experiment(loop__early_stop=True)
    train = {stage.name: stage for stage in build_stages(x, work)}["iter-2/train"]
    assert train.after == ("iter-1/propose", "iter-2/propose", "iter-1/train")
    changed = {"iter-1": 500, "iter-2": 700}
    monkeypatch.setattr("savi.loop.journal.read_counts", lambda path: AlignCounts(pairs=1000, equal=1000 - changed[path.parent.name]))
    assert _early_stop(x, 1) == ""
    assert "iteration 2" in _early_stop(x, 2)
    assert _early_stop(experiment(), 2) == ""


@pytest.mark.parametrize(
    ("setting", "said"),
    [("loop.critic=nowhere", "no such folder"), ("loop.kinds=[]", "loop.kinds"), ("loop.kinds=[causal]", "loop.kinds")],
)
def test_what_cannot_be_is_usage(setting: str, said: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["paper", "--scale", "smoke", "--out", str(tmp_path / "run"), "--set", setting])
    assert done.exit_code == 2
    assert said in done.output
    assert not (tmp_path / "run").exists()
