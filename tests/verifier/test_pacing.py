"""Waiting for a proposal: only while it pays, and ever more rarely for a draft that stays silent."""

import itertools

from services.verifier.pacing import Pacing

STEP = 0.02


def test_waits_for_a_draft_that_answers_quickly() -> None:
    pacing = Pacing(arrival_seconds=0.004, accepted=3.0)
    assert pacing.hold_until(100.0, STEP) > 100.004


def test_does_not_wait_when_the_proposal_comes_later_than_it_saves() -> None:
    assert Pacing(arrival_seconds=0.1, accepted=1.0).hold_until(100.0, STEP) == 100.0
    assert Pacing(arrival_seconds=0.004, accepted=0.0).hold_until(100.0, STEP) == 100.0


def test_a_silent_draft_is_waited_for_ever_more_rarely_and_never_forgotten() -> None:
    pacing = Pacing(arrival_seconds=0.004, accepted=3.0)
    waits = []
    for round_number in range(1000):
        if pacing.hold_until(0.0, STEP) > 0:
            waits.append(round_number)
        pacing.committed(0, 0)
    assert waits[:3] == [0, 1, 2]
    gaps = [b - a for a, b in itertools.pairwise(waits)]
    assert gaps == sorted(gaps)
    assert 5 < len(waits) < 30


def test_one_round_with_a_proposal_restores_trust() -> None:
    pacing = Pacing(arrival_seconds=0.004, accepted=3.0)
    for _ in range(20):
        pacing.hold_until(0.0, STEP)
        pacing.committed(0, 0)
    pacing.committed(4, 3)
    assert pacing.hold_until(0.0, STEP) > 0


def test_arrival_and_acceptance_are_learnt() -> None:
    pacing = Pacing()
    for _ in range(50):
        pacing.hold_until(10.0, STEP)
        pacing.proposal_arrived(10.006)
        pacing.committed(5, 4)
    assert abs(pacing.arrival_seconds - 0.006) < 0.001
    assert abs(pacing.accepted - 4) < 0.1
