"""The gate's statistics against scipy and statsmodels where those have the same test, and against arithmetic where they have not."""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy import stats as sps

from harness import stats


def clustered(seed: int = 0, n: int = 240, videos: int = 40, tasks: int = 1) -> tuple[np.ndarray, stats.Design]:
    rng = np.random.default_rng(seed)
    d = stats.design(rng.integers(0, videos, n), rng.permutation(np.arange(n) % tasks))
    return rng.choice([-1.0, 0.0, 0.0, 1.0], n), d


def test_clustered_error_is_that_of_statsmodels() -> None:
    import statsmodels.api as sm

    x, d = clustered()
    fit = sm.OLS(x, np.ones(len(x))).fit(cov_type="cluster", cov_kwds={"groups": d.clusters, "use_correction": True})
    mean = stats.cluster_mean(x, d)
    assert mean.estimate == pytest.approx(float(fit.params[0]), abs=1e-9)
    assert mean.se == pytest.approx(float(fit.bse[0]), abs=1e-9)
    assert mean.df == d.videos - 1


def test_one_question_a_video_is_the_one_sample_t_test() -> None:
    x = np.random.default_rng(1).normal(0.1, 1, 50)
    d = stats.design(np.arange(50), np.zeros(50, int))
    mean = stats.cluster_mean(x, d)
    ours = stats.t_upper(mean.estimate, mean.se, mean.df, -0.05)
    theirs = sps.ttest_1samp(x, -0.05, alternative="greater").pvalue
    assert ours == pytest.approx(float(theirs), abs=1e-9)
    assert stats.t_lower(mean.estimate, mean.se, mean.df, -0.05) == pytest.approx(1 - float(theirs), abs=1e-9)


def test_mean_of_tasks_weighs_tasks_equally() -> None:
    d = stats.design(["a", "a", "b", "c"], ["x", "x", "x", "y"])
    mean = stats.cluster_mean(np.array([1.0, 0.0, 0.0, 1.0]), d)
    assert mean.estimate == pytest.approx((1 / 3 + 1) / 2)
    assert d.weights.sum() == pytest.approx(1)


def test_leading_axes_give_the_same_numbers() -> None:
    x, d = clustered(2, tasks=3)
    y = clustered(3, tasks=3)[0]
    both = stats.cluster_mean(np.stack([x, y]), d)
    for k, one in enumerate((x, y)):
        m = stats.cluster_mean(one, d)
        assert both.estimate[k] == pytest.approx(m.estimate, abs=1e-12)
        assert both.se[k] == pytest.approx(m.se, abs=1e-12)
        np.testing.assert_allclose(both.totals[k], m.totals, atol=1e-15)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (7, 3), (3, 7), (40, 55), (200, 150)])
def test_mcnemar_is_that_of_statsmodels(gained: int, lost: int) -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    better, worse = stats.mcnemar(gained, lost)
    two_sided = min(1.0, 2 * min(better, worse))
    if gained + lost:
        assert two_sided == pytest.approx(float(mcnemar([[10, gained], [lost, 10]], exact=True).pvalue), abs=1e-9)
    else:
        assert (better, worse) == (1.0, 1.0)


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (3, 500), (361, 500)])
def test_wilson_is_that_of_statsmodels(right: int, n: int) -> None:
    from statsmodels.stats.proportion import proportion_confint

    np.testing.assert_allclose(stats.wilson(right, n), proportion_confint(right, n, method="wilson"), atol=1e-9)


@pytest.fixture(scope="module")
def little_garbage() -> Iterator[None]:
    """multipletests collects garbage on every call: take out of its way what is there already (a third of a second a call)."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("little_garbage")
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(max_examples=60)
def test_holm_is_that_of_statsmodels(p: list[float]) -> None:
    from statsmodels.stats.multitest import multipletests

    np.testing.assert_allclose(stats.holm(p), multipletests(p, method="holm")[1], atol=1e-9)


def test_holm_of_nothing_and_of_rows() -> None:
    assert len(stats.holm([])) == 0
    rows = np.array([[0.01, 0.04], [0.5, 0.001]])
    np.testing.assert_allclose(stats.holm(rows), [stats.holm(r) for r in rows])


def test_mde_and_power_are_those_of_statsmodels() -> None:
    from statsmodels.stats.power import TTestPower

    se, df = 0.01, 409
    theirs = TTestPower().power(stats.mde(se, df, 0.05) / (se * math.sqrt(df + 1)), df + 1, 0.05, alternative="larger")
    assert float(theirs) == pytest.approx(0.8, abs=1e-9)
    assert stats.t_power(0.02, se, df, 0.05) == pytest.approx(
        float(TTestPower().power(0.02 / se / math.sqrt(df + 1), df + 1, 0.05, alternative="larger")), abs=1e-9
    )


def test_needed_questions_shrink_with_the_square() -> None:
    assert stats.n_needed(500, 5.0, 2.5) == 2000
    assert stats.n_needed(500, math.inf, 2.5) is None


def brute_force(totals: np.ndarray) -> tuple[float, float]:
    sums = [float(np.dot(signs, np.abs(totals))) for signs in itertools.product((-1, 1), repeat=len(totals))]
    seen = float(totals.sum())
    return float(np.mean([s >= seen - 1e-9 for s in sums])), float(np.mean([s <= seen + 1e-9 for s in sums]))


@pytest.mark.parametrize(
    "totals", [[1.0, -1, 2, 3, 0, -1, 1], [0.5, 0.5, -1.5, 2.0], [-1.0] * 5, [0.25, 0.25, -0.25, 0.5, 1.0, 0.75, -0.5, 0.25]]
)
def test_sign_flip_is_exact_where_it_can_be(totals: list[float]) -> None:
    x = np.array(totals)
    np.testing.assert_allclose(stats.sign_flip(x), brute_force(x), atol=1e-12)


def test_sign_flip_is_that_of_scipy() -> None:
    x = np.array([1.0, -1, 2, 3, -1, 1, 1, 2, -3, 1])
    theirs = sps.permutation_test((x,), np.sum, permutation_type="samples", alternative="greater", n_resamples=np.inf)
    assert stats.sign_flip(x)[0] == pytest.approx(float(theirs.pvalue), abs=1e-9)


def test_sampled_sign_flip_is_near_the_exact_one() -> None:
    x = np.random.default_rng(5).normal(0.3, 1, 12)  # sizes without a common step: drawn
    drawn, exact = stats.sign_flip(x, draws=40_000, seed=1), brute_force(x)
    np.testing.assert_allclose(drawn, exact, atol=4 * 0.5 / math.sqrt(40_000))
    assert stats.sign_flip(np.array([1.0, math.pi, math.e, 7.7] * 10), draws=999)[0] > 0


def test_nothing_changed_is_no_evidence() -> None:
    assert stats.sign_flip(np.zeros(10)) == (1.0, 1.0)
    x = np.zeros(40)
    d = stats.design(np.arange(40) // 4, np.zeros(40, int))
    mean = stats.cluster_mean(x, d)
    assert mean.se == 0
    assert stats.mean_test(mean, -0.02).se > 0  # the null hypothesis itself implies some error


def test_floor_is_binomial_for_equal_videos_and_grows_with_a_giant() -> None:
    assert stats.null_se(np.full(100, 0.01), 0.02) == pytest.approx(math.sqrt(0.02 * 0.98 / 100))
    giant = np.array([0.5, *np.full(100, 0.005)])
    assert stats.null_se(giant, 0.02) == pytest.approx(math.sqrt(0.02 * 0.98 * 0.495), rel=0.02)


def test_the_floor_is_kept_however_many_videos_changed() -> None:
    """Before, it was switched off once five videos had changed: six changed answers on 40 videos ruled a loss out."""
    d = stats.design(np.repeat(np.arange(40), 13), np.zeros(520, int))
    x = np.zeros(520)
    x[::90] = [1, -1, 1, -1, 1, -1]
    test = stats.mean_test(stats.cluster_mean(x, d), -0.015)
    assert test.floored
    assert test.p_above > 0.05


def test_jackknife_is_the_usual_error_for_equal_videos_and_brute_force_else() -> None:
    x, d = clustered(8)
    sizes = np.bincount(d.clusters)
    mean = stats.cluster_mean(x, d)
    left = np.array([x[d.clusters != g].mean() for g in range(d.videos)])
    by_hand = math.sqrt((d.videos - 1) / d.videos * ((left - x.mean()) ** 2).sum())
    assert stats.mean_test(mean, 0.0).se == pytest.approx(by_hand, abs=1e-12)
    assert stats.mean_test(mean, 0.0).df < d.videos - 1 < len(sizes)
    equal = stats.design(np.repeat(np.arange(40), 6), np.zeros(240, int))
    mean = stats.cluster_mean(x, equal)
    test = stats.mean_test(mean, 0.0)
    assert (test.se, test.df) == (pytest.approx(mean.se, abs=1e-12), pytest.approx(39))


def test_a_video_that_holds_half_leaves_few_degrees_of_freedom() -> None:
    d = stats.design(np.repeat(np.arange(101), [1300] + [13] * 100), np.zeros(2600, int))
    test = stats.mean_test(stats.cluster_mean(np.random.default_rng(0).choice([-1.0, 0, 0, 1], 2600), d), -0.015)
    assert test.df == 1
    assert test.p_above > 0.05


@pytest.mark.parametrize("seed", range(3))
def test_tilting_is_the_bootstrap_under_the_tilted_null(seed: int) -> None:
    """The saddlepoint tail against a simulated one: draws from the scores, reweighted so that their mean is 0."""
    rng = np.random.default_rng(seed)
    scores = rng.gamma(0.5, 1.0, 60) - 0.35
    lam = optimize.brentq(lambda t: (scores * np.exp(t * scores)).sum(), -20, 20)
    p = np.exp(lam * scores)
    sums = rng.choice(scores, (40_000, 60), p=p / p.sum()).sum(axis=1)
    simulated = float((sums >= scores.sum()).mean())
    assert float(stats.tilted_p(scores, 1e9)) == pytest.approx(simulated, abs=0.01)


def test_tilting_is_the_z_test_for_normal_scores_and_keeps_leading_axes() -> None:
    x = np.random.default_rng(3).normal(0.02, 1, (3, 5000))
    z = x.sum(-1) / np.sqrt((x**2).sum(-1))
    np.testing.assert_allclose(stats.tilted_p(x, 1e9), sps.norm.sf(z), atol=0.005)
    np.testing.assert_allclose(stats.tilted_p(x, 1e9), [stats.tilted_p(row, 1e9) for row in x], atol=1e-12)


def test_nothing_below_zero_cannot_be_tilted() -> None:
    assert stats.tilted_p(np.array([0.0, 1.0]), 10) == 0
    assert stats.tilted_p(np.array([0.0, -1.0]), 10) == 1
    assert stats.tilted_p(np.zeros(5), 10) == 1


def test_sign_flips_that_tie_count_whatever_the_sizes() -> None:
    """Before, sizes were rounded and the observed sum was not: 1e-5 where ten equal signs give 2**-10 = 0.00098."""
    x = np.array([1 / 1580, 1 / 2453, 1 / 1503, 2 / 1580, 1 / 1580 + 1 / 2453, 3 / 1503, 1 / 7, 1 / 11, 1 / 13, 5 / 2453]) / 3
    assert stats.sign_flip(x)[0] == pytest.approx(2.0**-10)
    assert stats.sign_flip(-x) == (1.0, pytest.approx(2.0**-10))
    many = np.random.default_rng(0).random(30)
    drawn = stats.sign_flip(np.concatenate([many, -many]), draws=2000)
    assert all(0.4 < p < 0.6 for p in drawn)


def test_one_video_gives_no_interval() -> None:
    d = stats.design(["a"] * 5, ["t"] * 5)
    mean = stats.cluster_mean(np.array([1.0, 0, 0, 0, 0]), d)
    assert math.isinf(mean.se)
    assert stats.t_upper(mean.estimate, mean.se, mean.df, -0.1) == 1.0
    assert math.isinf(stats.mde(float(mean.se), mean.df, 0.05))


def test_a_design_needs_questions() -> None:
    with pytest.raises(ValueError, match="at least one question"):
        stats.design([], [])
