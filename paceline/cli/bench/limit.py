"""What speculation can give at best, by acceptance and by what steps take.

A round over n streams that proposes K tokens to each commits 1 + a + ... + a^K tokens a stream, where a is the
probability that a proposed token is accepted given that all before it were. It costs one step of the target of
n (K + 1) rows and K steps of the draft of n rows; the same time without speculation is steps of the target of n rows.
Nothing else is counted: no message, no wait, no prompt. K = 0 is no speculation, so that the limit is never below 1.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple

StepSeconds = Callable[[int], float]
"""Time of a step by its number of rows, in seconds."""
MOST_DRAFTED = 16


class Limit(NamedTuple):
    """The best that can be had."""

    ratio: float
    """Tokens a second with speculation, relative to without."""
    num_drafted: int
    """Proposed tokens a round that give it."""


def best_ratio(
    acceptance: float, num_streams: int, verify: StepSeconds, draft: StepSeconds, most_drafted: int = MOST_DRAFTED
) -> Limit:
    """The best over K from 0 to `most_drafted` of (1 + a + ... + a^K) / (verify(n(K+1)) / verify(n) + K d(n)), where
    d(n) is draft(n) / verify(n).
    """
    plain = verify(num_streams)
    best, tokens = Limit(1.0, 0), 1.0
    for count in range(1, most_drafted + 1):
        tokens += acceptance**count
        seconds = verify(num_streams * (count + 1)) + count * draft(num_streams)
        if (ratio := tokens * plain / seconds) > best.ratio:
            best = Limit(ratio, count)
    return best


def interpolated(points: Sequence[tuple[int, float]]) -> StepSeconds:
    """Times between those that were measured, as (rows, seconds) ascending: linear, and beyond the last as between the
    last two. There must be one at least.
    """
    rows, seconds = [point[0] for point in points], [point[1] for point in points]

    def at(count: int) -> float:
        above = min(bisect_left(rows, count), len(rows) - 1)
        if not above or rows[above] == count:
            return seconds[above]
        share = (count - rows[above - 1]) / (rows[above] - rows[above - 1])
        return seconds[above - 1] + share * (seconds[above] - seconds[above - 1])

    return at
