"""Waiting for a proposal: only while it pays, and ever more rarely for a draft that stays silent."""

import itertools

from services.verifier.pacing import Pacing

WORTH = 0.02


def test_waits_as_long_as_that_is_worth_for_a_draft_that_answers_in_time() -> None:
    assert Pacing(arrival_seconds=0.004).wait_until(100.0, WORTH) == 100.0 + WORTH


def test_does_not_wait_when_the_proposal_comes_later_than_it_saves() -> None:
    assert Pacing(arrival_seconds=0.1).wait_until(100.0, WORTH) == 100.0
    assert Pacing(arrival_seconds=0.004).wait_until(100.0, 0.0) == 100.0


def test_a_silent_draft_is_waited_for_ever_more_rarely_and_never_forgotten() -> None:
    pacing = Pacing(arrival_seconds=0.004, has_arrived=True)
    waits = []
    for round_number in range(1000):
        if pacing.wait_until(0.0, WORTH) > 0:
            waits.append(round_number)
        pacing.committed(0)
    assert waits[:3] == [0, 1, 2]
    gaps = [b - a for a, b in itertools.pairwise(waits)]
    assert gaps == sorted(gaps)
    assert 5 < len(waits) < 30


def test_a_draft_that_never_was_there_is_waited_for_once_and_then_rarely() -> None:
    pacing = Pacing()
    assert pacing.wait_until(0.0, WORTH) > 0
    pacing.committed(0)
    assert pacing.wait_until(0.0, WORTH) == 0


def test_one_round_with_a_proposal_restores_trust() -> None:
    pacing = Pacing(arrival_seconds=0.004)
    for _ in range(20):
        pacing.wait_until(0.0, WORTH)
        pacing.committed(0)
    pacing.committed(4)
    assert pacing.wait_until(0.0, WORTH) > 0


def test_arrival_is_learnt() -> None:
    pacing = Pacing()
    for _ in range(50):
        pacing.wait_until(10.0, WORTH)
        pacing.proposal_arrived(10.006)
        pacing.committed(5)
    assert abs(pacing.arrival_seconds - 0.006) < 0.001
