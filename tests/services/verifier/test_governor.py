"""The governor takes rows as long as they raise expected tokens a second, and waits only as long as that pays."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from services.verifier.governor import Pending, StepCurve, StepSeconds, allocate, best_start, worth_waiting

Offer = Sequence[float]


def memory_bound(rows: int) -> float:
    return 0.030 + 0.0005 * rows


def compute_bound(rows: int) -> float:
    return 0.010 * rows


def curve(seconds: StepSeconds) -> StepCurve:
    return lambda first, last: np.array([seconds(rows) for rows in range(first, last + 1)])


def offers(count: int) -> st.SearchStrategy[list[list[float]]]:
    probabilities = st.lists(st.floats(0.01, 0.99), max_size=3).map(lambda values: sorted(values, reverse=True))
    return st.lists(probabilities, min_size=1, max_size=count)


@given(offers(3), st.lists(st.floats(0.001, 0.02), min_size=13, max_size=13))
def test_no_other_choice_gives_more_tokens_a_second(given: list[list[float]], steps: list[float]) -> None:
    times = [0.0]
    for step in steps:
        times.append(times[-1] + step)
    choice = allocate(given, lambda first, last: np.array(times[first : last + 1]))
    best = max(
        (len(given) + sum(sum(offer[:count]) for offer, count in zip(given, counts, strict=True)))
        / times[len(given) + sum(counts)]
        for counts in product(*(range(len(offer) + 1) for offer in given))
    )
    assert abs(choice.tokens / choice.seconds - best) < 1e-9 * best


def test_an_idle_machine_takes_all_and_a_full_one_nothing() -> None:
    likely = [0.9**k for k in range(1, 9)]
    assert allocate([likely], curve(memory_bound)).num_tokens == [8]
    assert allocate([likely] * 64, curve(compute_bound)).num_tokens == [0] * 64


def test_the_likelier_sequence_gets_the_rows() -> None:
    def two_rows_are_free(rows: int) -> float:
        return 0.03 if rows <= 4 else 0.03 * rows

    assert allocate([[0.9, 0.8, 0.7], [0.3, 0.1]], curve(two_rows_are_free)).num_tokens == [2, 0]


def test_prompts_in_the_step_make_rows_cheap_beside_them() -> None:
    likely = [0.5, 0.3]
    assert allocate([likely], curve(compute_bound)).num_tokens == [0]
    assert allocate([likely], curve(lambda rows: 0.5 if rows < 200 else 1.0), other_rows=150).num_tokens == [2]


def test_a_step_waits_for_proposals_that_come_soon_and_not_for_those_that_come_late() -> None:
    ready = allocate([[0.8]], curve(memory_bound))
    assert best_start(5.0, ready, 2, [Pending(5.003, 4.0, 5)], memory_bound) == 5.003
    assert best_start(5.0, ready, 2, [Pending(5.9, 4.0, 5)], memory_bound) == 5.0
    assert best_start(5.0, ready, 2, [Pending(4.0, 4.0, 5)], memory_bound) == 5.0
    soon_and_late = [Pending(5.9, 4.0, 5), Pending(5.002, 4.0, 5)]
    assert best_start(5.0, ready, 2, soon_and_late, memory_bound) == 5.002


def test_waiting_is_worth_less_than_a_step_and_nothing_for_a_useless_draft() -> None:
    assert 0.02 < worth_waiting(4.0, 0.8, 0.03) < 0.03
    assert worth_waiting(1.0, 0.0, 0.03) == 0.0
