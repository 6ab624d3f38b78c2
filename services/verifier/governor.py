"""How many proposed tokens go into the next step, and whether to wait for more: the most expected tokens a second.

A row costs what the measured step times say; a proposed token is worth the probability that it and all before it are
accepted. At a full batch no row is cheap enough, and no sequence is allocated any. Pure functions: the simulation in
`benchmarks` draws its curves with the same code.
"""

from collections import abc
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

StepSeconds = abc.Callable[[int], float]
"""Expected time of a step by its number of rows, in seconds."""
StepCurve = abc.Callable[[int, int], NDArray[np.float64]]
"""The same for all numbers of rows from the first to the last, both included."""


class Allocation(NamedTuple):
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


class Drafting(NamedTuple):
    """What proposed tokens cost beside rows of the verifier, in seconds."""

    first: float = 0.0
    """Of a round that has any: hops, waits, and what else was learned."""
    each: float = 0.0
    """Of each of them: the draft's own time, as far as the verifier waits for it."""


NO_DRAFTING = Drafting()


def allocate(
    offers: abc.Sequence[abc.Sequence[float]],
    step_curve: StepCurve,
    other_rows: int = 0,
    drafting: Drafting = NO_DRAFTING,
    least: int = 0,
) -> Allocation:
    """Takes the likeliest proposed tokens of all sequences as long as that raises expected tokens a second.

    `offers[i][j]` is the probability that the first j + 1 proposed tokens of sequence i are all accepted: it never
    rises with j. Every sequence gives one token beside. `other_rows` are in the step anyway. At least `least` tokens
    are taken where there are as many. `seconds` of what is returned are the step's alone.
    """
    sizes = [len(offer) for offer in offers]
    values = np.fromiter(chain.from_iterable(offers), float, sum(sizes))
    ranked = np.argsort(-values, kind="stable")
    tokens = len(offers) + np.concatenate(([0.0], np.cumsum(values[ranked])))
    rows = len(offers) + other_rows
    seconds = step_curve(rows, rows + len(values))
    costs = seconds + drafting.each * np.arange(len(seconds))
    costs[1:] += drafting.first
    least = min(least, len(values))
    best = least + int(np.argmax((tokens / costs)[least:])) if seconds[0] > 0 else least
    owners = np.repeat(np.arange(len(offers)), sizes)[ranked[:best]]
    num_tokens = np.bincount(owners, minlength=len(offers))
    return Allocation(num_tokens.tolist(), float(tokens[best]), float(seconds[best]))


def best_start(
    now: float, ready: Allocation, rows: int, pending: abc.Sequence[Pending], step_seconds: StepSeconds
) -> float:
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


def affordable_wait(tokens: float, seconds: float, plain: float) -> float:
    """The same where the draft takes its time from the verifier: as long as the round is no slower than plain steps,
    of `plain` seconds for one token each, would be. A plain step meanwhile would keep the draft from its work.
    """
    return max(0.0, tokens * plain - seconds)
