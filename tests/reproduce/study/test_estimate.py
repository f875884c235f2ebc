"""The estimator against a mixed model, against arithmetic, and against the truth: intervals hold it as often as they say."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from harness.stats import Design, design
from reproduce.study.coverage import EFFECT, WORLDS, World, coverage_table, draw, simulate, twins_design
from reproduce.study.estimate import estimate, parts

BASES, VIDEOS = 8, 30


def one_task(videos: int) -> Design:
    return design(np.arange(videos), np.zeros(videos, dtype=int))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_in_balanced_data_it_is_the_mixed_models(seed: int) -> None:
    """REML of statsmodels with crossed random effects of bases and videos: the same mean, standard error and variance of bases."""
    import pandas as pd
    import statsmodels.formula.api as smf

    rng = np.random.default_rng(seed)
    y = 0.3 + rng.normal(0, 1, (BASES, 1)) + rng.normal(0, 1, VIDEOS) + rng.normal(0, 1.5, (BASES, VIDEOS))
    frame = pd.DataFrame([{"y": y[b, v], "base": b, "video": v, "all": 1} for b in range(BASES) for v in range(VIDEOS)])
    crossed = {"base": "0 + C(base)", "video": "0 + C(video)"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = smf.mixedlm("y ~ 1", frame, groups="all", vc_formula=crossed).fit(reml=True)
    found = parts(y, one_task(VIDEOS))
    assert fit.params["Intercept"] == pytest.approx(float(found.mean), abs=1e-6)
    assert fit.bse["Intercept"] == pytest.approx(float(found.variance) ** 0.5, rel=2e-3)
    assert fit.vcomp[0] == pytest.approx(float(found.base - found.both) * BASES, rel=5e-3)


def test_without_error_of_questions_it_is_the_t_interval_over_bases() -> None:
    gains = np.array([0.01, 0.03, 0.02, 0.05])
    found = estimate(np.repeat(gains[:, None], 50, axis=1), one_task(50))
    low, high = stats.t.interval(0.95, 3, loc=gains.mean(), scale=stats.sem(gains))
    assert (found.points, found.low, found.high) == pytest.approx((100 * gains.mean(), 100 * low, 100 * high), abs=1e-9)
    assert found.df == pytest.approx(3)
    assert found.each == pytest.approx(100 * gains)
    assert found.text() == f"+2.8 [{100 * low:+.1f}, {100 * high:+.1f}]"


def test_questions_that_all_bases_share_are_not_averaged_away() -> None:
    """The same answers from every base are the answers of one: more bases make the interval no narrower than one base's."""
    one = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 200)
    alone, many = estimate(one[None], one_task(200)), estimate(np.repeat(one[None], 12, axis=0), one_task(200))
    assert many.half == pytest.approx(alone.half, rel=1e-6)
    assert many.base_sd == pytest.approx(0, abs=1e-9)
    assert alone.base_sd is None
    assert alone.bases == 1


def test_two_bases_have_an_interval() -> None:
    """A wide one; an infinite one can stand in no table."""
    for drawn in np.random.default_rng(0).choice([-1.0, 0.0, 1.0], (50, 2, 40)):
        found = estimate(drawn, one_task(40))
        assert np.isfinite([found.low, found.high]).all()
        assert found.df >= 1


def test_equal_answers_have_no_error() -> None:
    found = estimate(np.zeros((3, 40)), one_task(40))
    assert (found.points, found.low, found.high) == (0, 0, 0)


def test_the_simulation_draws_what_it_says() -> None:
    """Base models' spread, the share of answers that change, and the questions' error where all of it is shared, as seen at micro scale."""
    plan, rng = twins_design(), np.random.default_rng(3)
    assert plan.n == 1540
    found = draw(World(12, 1.2, 1.3, 1.0), plan, rng, 30)
    assert set(np.unique(found)) == {-1.0, 0.0, 1.0}
    assert np.abs(found).mean() == pytest.approx(0.26, abs=0.01)
    p = parts(found, plan)
    assert 100 * np.sqrt(np.mean((p.base - p.both) * 12)) == pytest.approx((1.2**2 + 1.3**2) ** 0.5, rel=0.15)
    assert 1.2 < 100 * np.sqrt(p.video).mean() < 1.7
    apart = draw(World(12, 1.2, 1.3, 0.0), plan, rng, 30)
    assert apart.mean() == pytest.approx(EFFECT, abs=0.005)
    several = draw(World(12, 1.2, 1.3, 0.0, seeds=4), plan, rng, 30)
    spread = [100 * np.sqrt(np.mean((q.base - q.both) * 12)) for q in (parts(apart, plan), parts(several, plan))]
    assert spread[1] < spread[0]


@pytest.mark.parametrize("world", [World(6, 1.0, 1.1, 1.0), World(12, 1.4, 1.6, 0.5)], ids=["6 bases, shared", "12 bases, half shared"])
def test_intervals_hold_the_truth_as_often_as_they_say(world: World) -> None:
    """300 studies: 95 % within three of the simulation's standard errors; intervals over bases or questions alone do not."""
    found = {one.estimator: one for one in simulate(world, 300, estimators=("two-way", "bases only", "questions only"))}
    assert abs(found["two-way"].coverage_pct - 95) < 3 * 100 * (0.95 * 0.05 / 300) ** 0.5
    assert found["bases only"].coverage_pct < 85
    assert found["questions only"].coverage_pct < found["two-way"].coverage_pct


def test_the_table_has_every_estimator_and_world() -> None:
    found = [one for world in WORLDS[:2] for one in simulate(world, 20)]
    text = coverage_table(found, 20).to_markdown()
    for said in ("two-way", "mixed model", "crossed bootstrap", "bases only", "questions only", "6 bases, SD 1.0 + 1.1, 50 % shared"):
        assert said in text


def test_the_page_says_what_the_simulation_found() -> None:
    """The ranges in docs/study.md are those of the table in docs/study_coverage.md."""
    docs = Path(__file__).parents[3] / "docs"
    lines = [line.strip("|").split("|") for line in (docs / "study_coverage.md").read_text().splitlines() if line.startswith("|")]
    names = [name.strip() for name in lines[0][1:]]
    said = " ".join((docs / "study.md").read_text().split())
    for i, name in enumerate(names, start=1):
        found = [float(line[i].split()[0]) for line in lines[2:]]
        assert f"{min(found)} to {max(found)} %" in said, name
    assert len(lines) == 2 + len(WORLDS)
