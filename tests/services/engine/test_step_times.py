"""Step times are learnt, never fall with rows, and follow a machine that changes its speed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.engine.step_times import ROWS, StepTimes


def test_unknown_until_something_was_observed() -> None:
    times = StepTimes()
    assert not times
    assert times.seconds(8) == 0.0
    times.observe(8, 0.02)
    assert times.seconds(8) == 0.02
    assert times.seconds(64) > 0.02 > times.seconds(1) > 0


def test_measurements_hold_at_their_rows_and_between_them() -> None:
    times = StepTimes({1: 0.010, 4: 0.010, 8: 0.020})
    assert abs(times.seconds(1) - 0.010) < 1e-9
    assert abs(times.seconds(6) - 0.015) < 1e-9
    assert abs(times.seconds(8) - 0.020) < 1e-9


def test_converges_to_what_is_observed() -> None:
    times = StepTimes(dict.fromkeys(ROWS[:8], 0.01))
    for _ in range(100):
        for rows in (1, 4, 16, 40):
            times.observe(rows, 0.004 + 0.001 * rows)
    for rows in (1, 4, 16, 40):
        assert abs(times.seconds(rows) / (0.004 + 0.001 * rows) - 1) < 0.25


def test_a_slower_machine_is_slower_for_all_rows() -> None:
    times = StepTimes({1: 0.010, 8: 0.020})
    for _ in range(100):
        times.observe(1, 0.030)
    assert times.seconds(8) > 0.029


@given(st.lists(st.tuples(st.integers(1, 600), st.floats(1e-6, 10.0)), max_size=60))
def test_never_falls_with_rows(observations: list[tuple[int, float]]) -> None:
    times = StepTimes()
    for rows, seconds in observations:
        times.observe(rows, seconds)
    curve = [times.seconds(rows) for rows in range(1, 700)]
    assert curve == sorted(curve)


def test_a_curve_holds_the_same_times() -> None:
    times = StepTimes({1: 0.010, 8: 0.020, 64: 0.1})
    for first, last in ((1, 1), (1, 40), (300, 900)):
        assert times.curve(first, last).tolist() == pytest.approx([times.seconds(n) for n in range(first, last + 1)])
    assert StepTimes().curve(1, 3).tolist() == [0, 0, 0]


def test_rows_are_spare_as_long_as_a_step_takes_hardly_longer() -> None:
    times = StepTimes({1: 1.0, 8: 1.02, 16: 2.0, 64: 8.0})
    assert times.spare_rows(1, 100) == 7
    assert times.spare_rows(0, 100) == 8
    assert times.spare_rows(8, 100) == 0
    assert times.spare_rows(2, 3) == 3
    assert StepTimes().spare_rows(4, 100) == 100
