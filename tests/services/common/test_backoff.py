"""Pauses double up to a limit, are drawn at random below it, and are short again after success."""

import itertools

import pytest

from services.common.backoff import Backoff


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set by the test."""
    now = [100.0]
    monkeypatch.setattr("services.common.backoff.time.monotonic", lambda: now[0])
    return now


def test_pauses_double_up_to_the_longest_and_begin_anew_after_success(clock: list[float]) -> None:
    backoff = Backoff(1.0, 5.0, lambda longest: longest)
    assert not backoff.is_off
    assert [backoff.failed() for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert backoff.is_off
    clock[0] += 5.0
    assert not backoff.is_off
    backoff.failed()
    backoff.worked()
    assert not backoff.is_off
    assert backoff.failed() == 1.0


def test_jitter_is_full() -> None:
    pauses = [Backoff(1.0, 8.0).failed() for _ in range(200)]
    assert all(0.0 <= pause <= 1.0 for pause in pauses)
    assert min(pauses) < 0.2
    assert max(pauses) > 0.8


def test_those_that_failed_together_do_not_come_back_together() -> None:
    ends = sorted(Backoff(1.0, 8.0).failed() for _ in range(50))
    assert all(later > earlier for earlier, later in itertools.pairwise(ends))
