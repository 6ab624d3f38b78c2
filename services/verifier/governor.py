"""How many proposed tokens go into the next step, and whether to wait for more: the most expected tokens a second.

A row costs what the measured step times say; a proposed token is worth the probability that it and all before it are
accepted. At a full batch no row is cheap enough, and the choice is zero. Pure functions: the simulation in `benchmarks`
draws its curves with the same code.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

StepSeconds = Callable[[int], float]
"""Expected time of a step by its number of rows, in seconds."""


class Choice(NamedTuple):
    """What a step takes of each offer, and what it is expected to give."""

    num_tokens: list[int]
    tokens: float
    """Expected committed tokens of the step."""
    seconds: float
    """Expected time of the step."""


class Pending(NamedTuple):
    """A sequence whose proposal is on its way."""

    due: float
    """When it is expected, by the clock of `now`."""
    tokens: float
    """Expected tokens of a round with it."""
    rows: int
    """Rows of a round with it."""


def choose(offers: Sequence[Sequence[float]], step_seconds: StepSeconds, other_rows: int = 0) -> Choice:
    """Takes the likeliest proposed tokens of all sequences as long as that raises expected tokens a second.

    `offers[i][j]` is the probability that the first j + 1 proposed tokens of sequence i are all accepted: it never
    rises with j. Every sequence gives one token beside. `other_rows` are in the step anyway.
    """
    rows, tokens = len(offers) + other_rows, float(len(offers))
    seconds = step_seconds(rows)
    best, best_seconds, best_tokens = 0, seconds, tokens
    ranked = sorted(((value, index) for index, offer in enumerate(offers) for value in offer), reverse=True)
    for count, (value, _) in enumerate(ranked, 1):
        tokens += value
        seconds = step_seconds(rows + count)
        if tokens * best_seconds > best_tokens * seconds:
            best, best_seconds, best_tokens = count, seconds, tokens
    num_tokens = [0] * len(offers)
    for _, index in ranked[:best]:
        num_tokens[index] += 1
    return Choice(num_tokens, best_tokens, best_seconds)


def best_start(now: float, ready: Choice, rows: int, pending: Sequence[Pending], step_seconds: StepSeconds) -> float:
    """When to start a step: `now`, or the time by which some pending proposals are expected to be there.

    What waits is `ready`, a step of `rows` rows. A sequence whose proposal has not come by then is left out and goes
    with a later step: two groups in turns hide a round trip that is longer than a step.
    """
    tokens, best, best_rate = ready.tokens, now, ready.tokens / max(ready.seconds, 1e-9)
    for due, more_tokens, more_rows in sorted(pending):
        tokens += more_tokens
        rows += more_rows
        start = max(now, due)
        rate = tokens / max(start - now + step_seconds(rows), 1e-9)
        if rate > best_rate:
            best, best_rate = start, rate
    return best


def worth_waiting(tokens: float, acceptance: float, seconds: float) -> float:
    """Longest wait, in seconds, for a proposal that makes a round of `tokens` expected tokens in `seconds`.

    Instead of waiting a plain step could be made meanwhile. It leaves the proposal usable if its first token is
    accepted, so that it gains `1 - acceptance` tokens over both rounds, for one more step.
    """
    return max(0.0, seconds * (1 - (1 - acceptance) / max(tokens, 1.0)))
