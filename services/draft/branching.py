"""Which other ways the text may go are worth preparing: the likeliest outcomes of the block under verification.

For each position under verification the target may pick one of the draft's runners-up instead. How likely that is
follows from the draft's own margins: the text gets there, the pick is rejected, and the runner-up of that rank is what
the target picks. Where acceptance is high the likeliest outcomes lie deep, where it is low they lie at the first
positions: the geometry that speculative speculative decoding derives (arXiv 2603.03251) comes out of the order alone.
"""

from collections import abc
from typing import NamedTuple

from services.draft.confidence import Guess

MIN_PROBABILITY = 0.004
"""Outcomes less likely than this are not prepared."""


class Outcome(NamedTuple):
    """The target picks a runner-up at a position."""

    probability: float
    position: int
    token_id: int


def outcomes(
    guesses: abc.Sequence[Guess], position: int, reach: float, share: abc.Callable[[int], float]
) -> list[Outcome]:
    """Rejections at positions `position`, `position` + 1, ... of which these are the guesses; likeliest first.

    `reach` is the probability that the text gets to the first of them, `share(rank)` that of a rejected pick's place
    being taken by the runner-up of that rank.
    """
    found: list[Outcome] = []
    for at, guess in enumerate(guesses, position):
        rejected = reach * (1 - guess.confidence)
        for rank, token_id in enumerate(guess.runners_up):
            probability = rejected * share(rank)
            if probability < MIN_PROBABILITY:
                break
            found.append(Outcome(probability, at, token_id))
        reach *= guess.confidence
    return sorted(found, reverse=True)


def affordable_rows(seconds: abc.Callable[[int], float], limit: float, most: int) -> int:
    """Most rows, up to `most`, whose step takes no longer than `limit` seconds."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if seconds(middle) <= limit:
            low = middle
        else:
            high = middle - 1
    return low
