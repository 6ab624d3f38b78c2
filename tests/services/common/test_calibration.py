"""Measured shares take over from the prior, bin by bin."""

import pytest

from services.common.calibration import Calibration


def test_begins_with_the_prior_and_follows_what_is_observed() -> None:
    table = Calibration((0.5,), (0.2, 0.9), weight=10, memory=100)
    assert (table.rate(0.1), table.rate(0.5)) == (0.2, 0.9)
    for _ in range(200):
        table.observe(0.7, success=False)
    assert table.rate(0.7) < 0.15
    assert table.rate(0.1) == 0.2


def test_old_observations_are_forgotten() -> None:
    table = Calibration((), (0.5,), weight=1, memory=50)
    for _ in range(1000):
        table.observe(0, success=False)
    for _ in range(150):
        table.observe(0, success=True)
    assert table.rate(0) > 0.85


def test_bins_and_priors_must_fit() -> None:
    with pytest.raises(ValueError, match="2 bins"):
        Calibration((0.5,), (0.2,), weight=1, memory=1)
