"""Rates and ratios are numbers whatever rounds come: none commits anything, all take no time, one takes for ever."""

import math

from hypothesis import given
from hypothesis import strategies as st

from services.verifier.rate import Rate, Ratio

ROUNDS = st.lists(
    st.tuples(st.floats(0, 64), st.sampled_from([0.0, 1e-12, 1e-6, 0.01, 1.0, 3600.0, 1e9])), min_size=1, max_size=80
)


@given(ROUNDS)
def test_any_rounds_have_a_rate(rounds: list[tuple[float, float]]) -> None:
    rate = Rate.of(rounds)
    assert 0 < rate.value < math.inf
    assert 0 < rate.variance < math.inf


@given(st.lists(st.tuples(ROUNDS, ROUNDS), max_size=12))
def test_any_trials_have_a_ratio_that_can_be_told(trials: list[tuple[list[tuple[float, float]], ...]]) -> None:
    ratio = Ratio()
    for one, other in trials:
        tried, followed = Rate.of(one), Rate.of(other)
        ratio.add(math.log(tried.value / followed.value), tried.variance + followed.variance, 1)
        low, mean, high = ratio.bounds
        assert 0 <= low <= mean <= high
        assert ratio.pays in (True, False, None)
        assert str(ratio)
