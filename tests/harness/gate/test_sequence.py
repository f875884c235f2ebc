"""The confidence sequence: the bounds logic sets, its promises by simulation, and agreement of the two ways it is computed."""

from __future__ import annotations

import numpy as np
import pytest

from harness import stats
from harness.gate.early import sequence


def small_set(seed: int = 0, videos: int = 60, net: int = 0, changed: int = 20):  # type: ignore[no-untyped-def]
    """A finite set with unequal videos: design, baseline, totals of each video, true difference."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, videos)
    d = stats.design(np.repeat(np.arange(videos), sizes), np.zeros(int(sizes.sum()), int))
    base = (rng.random(d.n) < 0.7).astype(float)
    diff = np.zeros(d.n)
    lost = (changed - net) // 2
    diff[rng.permutation(np.flatnonzero(base == 1))[:lost]] = -1
    diff[rng.permutation(np.flatnonzero(base == 0))[: lost + net]] = 1
    return d, base, d.totals(diff), float(d.totals(diff).sum())


def test_at_the_end_the_bounds_are_the_point() -> None:
    d, base, x, truth = small_set(net=3)
    pop = sequence.population(d, base, margin=0.05)
    order = pop.order(np.random.default_rng(0))
    end = sequence.look(x[order], order, pop, margin=0.05, alpha=0.05)
    assert end.low == end.high == pytest.approx(truth)
    assert end.verdict == "pass"


def test_nothing_drawn_gives_what_logic_allows() -> None:
    d, base, _, _ = small_set()
    pop = sequence.population(d, base, margin=0.05)
    start = sequence.look(np.zeros(0), pop.order(np.random.default_rng(0)), pop, margin=0.05, alpha=0.05)
    assert start.low == pytest.approx(-base.mean())
    assert start.high == pytest.approx(1 - base.mean())
    assert start.verdict is None


def test_a_baseline_that_was_always_wrong_cannot_be_undercut() -> None:
    d, _, _, _ = small_set()
    pop = sequence.population(d, np.zeros(d.n), margin=0.05)
    assert sequence.look(np.zeros(0), np.arange(pop.size), pop, margin=0.05, alpha=0.05).verdict == "pass"


def test_bounds_stay_within_logic_hold_the_truth_mostly_and_verdicts_follow() -> None:
    missed = 0
    for seed in range(40):
        d, base, x, truth = small_set(seed, net=-4, changed=16)
        pop = sequence.population(d, base, margin=0.1)
        order = pop.order(np.random.default_rng(seed))
        inside = True
        for t in range(5, pop.size + 1, 11):
            k = sequence.look(x[order[:t]], order, pop, margin=0.1, alpha=0.05)
            rest = order[t:]
            assert k.low >= x[order[:t]].sum() + pop.low[rest].sum() - 1e-9
            assert k.high <= x[order[:t]].sum() + pop.high[rest].sum() + 1e-9
            inside &= k.low - 1e-9 <= truth <= k.high + 1e-9
            assert (k.verdict == "pass") == (k.low > -0.1 - 1e-6) or k.verdict is None
        missed += not inside
    assert missed <= 8  # each end may miss in 5 % of runs


def test_one_run_at_a_time_and_all_at_once_agree() -> None:
    d, base, x, _ = small_set(3, videos=80, net=5)
    pop = sequence.population(d, base, margin=0.03)
    rng = np.random.default_rng(1)
    orders = np.stack([pop.order(rng) for _ in range(6)])
    runs = sequence.run_all(x[orders], orders, pop, margin=0.03, alpha=0.05, batch=7)
    for k, order in enumerate(orders):
        t = 0
        look = None
        while look is None or look.verdict is None:
            t = min(t + 7, pop.size)
            look = sequence.look(x[order[:t]], order, pop, margin=0.03, alpha=0.05)
        assert (t, look.verdict == "pass") == (int(runs.drawn[k]), bool(runs.passed[k]))


def test_capital_is_a_fair_game_in_expectation() -> None:
    """Mean capital over all orders of a tiny set is at most 1 when the hypothesis is true (a martingale stopped anywhere)."""
    d, base, x, truth = small_set(7, videos=12, changed=8)
    pop = sequence.population(d, base, margin=0.1)
    rng = np.random.default_rng(0)
    orders = np.argsort(rng.exponential(size=(20_000, 12)) / pop.draw, axis=-1)
    y = x[orders]
    for direction in (1, -1):
        game = sequence.play(y, pop.draw[orders], pop, target=-0.1, direction=direction)  # type: ignore[arg-type]
        capital = np.exp(game.log_capital(truth))
        assert np.all(capital >= 0)
        for t in (0, 3, 7):
            se = capital[:, t].std() / np.sqrt(len(orders))
            assert capital[:, t].mean() == pytest.approx(1, abs=4 * se + 1e-9)


def test_capital_falls_with_the_hypothesis_for_the_upper_game() -> None:
    d, base, x, _ = small_set(2)
    pop = sequence.population(d, base, margin=0.05)
    order = pop.order(np.random.default_rng(0))[:25]
    up = sequence.play(x[order], pop.draw[order], pop, target=-0.05, direction=1)
    down = sequence.play(x[order], pop.draw[order], pop, target=-0.05, direction=-1)
    grid = np.linspace(-0.3, 0.2, 21)
    assert np.all(np.diff([up.log_capital(v)[-1] for v in grid]) <= 1e-9)
    assert np.all(np.diff([down.log_capital(v)[-1] for v in grid]) >= -1e-9)


def test_drawing_follows_the_stated_probabilities() -> None:
    d, base, _, _ = small_set(4, videos=5)
    pop = sequence.population(d, base, margin=0.05)
    first = [pop.order(np.random.default_rng(i))[0] for i in range(4000)]
    np.testing.assert_allclose(np.bincount(first, minlength=5) / 4000, pop.draw, atol=0.03)
    assert pop.draw.sum() == pytest.approx(1)
    assert pop.draw.min() > 0
