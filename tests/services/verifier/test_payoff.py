"""Speculation is compared with none where it is not clear which is faster, and the faster way is taken."""

from services.verifier.payoff import Payoff


def run(payoff: Payoff, gain: float, rates: dict[bool, float], rounds: int, sequences: int = 8) -> list[bool]:
    """Decides and records so many rounds; a round takes a second and gives what its way gives."""
    ways = []
    for _ in range(rounds):
        way = payoff.decide(sequences, gain).speculate
        payoff.record(sequences, int(100 * rates[way]), 1.0)
        ways.append(way)
    return ways


def test_a_clear_estimate_is_believed() -> None:
    assert all(run(Payoff(), 2.5, {True: 1.0, False: 9.0}, 500))
    assert not any(run(Payoff(), 0.5, {True: 9.0, False: 1.0}, 500))


def test_where_it_is_unclear_the_faster_way_is_found_and_kept() -> None:
    for faster in (True, False):
        rates = {faster: 2.0, not faster: 1.0}
        ways = run(Payoff(), 1.1, rates, 2000)
        assert ways[1000:].count(faster) > 950
        assert ways.count(not faster) >= 12


def test_a_change_is_noticed() -> None:
    payoff = Payoff()
    run(payoff, 1.1, {True: 1.0, False: 2.0}, 1000)
    ways = run(payoff, 1.1, {True: 3.0, False: 2.0}, 2000)
    assert ways[1500:].count(True) > 450


def test_loads_are_told_apart() -> None:
    payoff = Payoff()
    run(payoff, 1.1, {True: 1.0, False: 2.0}, 500, sequences=16)
    assert not payoff.decide(16, 1.1).speculate
    assert payoff.decide(2, 1.1).speculate
