"""What runs come to: figures of each way by number of streams, and the two ways beside each other.

Both ways are asked the same prompts, one after the other, and whoever is second finds them computed. So each way's own
figures are of runs in which it was first, and ratios weigh both orders alike.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from paceline.cli.bench.limit import Limit, StepSeconds, best_ratio
from paceline.cli.bench.load import Position, Run, by_position, overall


class Spread(NamedTuple):
    """Percentiles, in seconds."""

    p50: float
    p95: float
    p99: float


class Way(NamedTuple):
    """Speculation on, or off."""

    tokens_per_second: float
    """The median of the runs."""
    first: Spread
    """Time to first token."""
    between: Spread
    """Time between tokens."""


class Summary(NamedTuple):
    """Both ways at one number of streams."""

    num_streams: int
    on: Way
    off: Way
    ratio: float
    """Tokens a second, on / off: the geometric mean of the medians over pairs in which on was first, and off."""
    decoding_ratio: float
    """The same without the time of prompts, which is what the limit is about."""
    positions: list[Position]
    limit: Limit | None
    """The limit is known where the system says what its steps take, and something was proposed."""
    num_differing: int
    """Streams whose tokens differed between the two ways."""

    @property
    def acceptance(self) -> float | None:
        """Acceptance per position over all places."""
        return overall(self.positions)

    @property
    def share(self) -> float | None:
        """What was measured, relative to the limit."""
        return self.decoding_ratio / self.limit.ratio if self.limit else None


def acceptance_of(runs: Sequence[Run]) -> float | None:
    """Acceptance per position over all places; None where nothing was proposed."""
    return overall(_positions(runs))


def summarize(
    on: Sequence[Run],
    off: Sequence[Run],
    verify: StepSeconds | None = None,
    draft: StepSeconds | None = None,
    acceptance: float | None = None,
) -> Summary:
    """The runs of one number of streams; the i-th of both ways had the same prompts, one after the other. The limit is
    that of `acceptance`.
    """
    pairs = list(zip(on, off, strict=True))
    num_streams = len(on[0].streams)
    limit = None
    if acceptance is not None and verify is not None and draft is not None:
        limit = best_ratio(acceptance, num_streams, verify, draft)
    differing = [a.token_ids != b.token_ids for x, y in pairs for a, b in zip(x.streams, y.streams, strict=True)]
    return Summary(
        num_streams,
        _way([a for a, b in pairs if a.began <= b.began] or on),
        _way([b for a, b in pairs if b.began <= a.began] or off),
        _ratio(pairs, lambda run: run.tokens_per_second),
        _ratio(pairs, lambda run: run.decoding_per_second or 1.0),
        _positions(on),
        limit,
        sum(differing),
    )


def _positions(runs: Sequence[Run]) -> list[Position]:
    return by_position(judged for run in runs for stream in run.streams for judged in stream.rounds)


def _ratio(pairs: Sequence[tuple[Run, Run]], figure: Callable[[Run], float]) -> float:
    """On / off of a figure, both orders weighed alike, however many pairs there are of each."""
    orders = [[(a, b) for a, b in pairs if (a.began <= b.began) is on_first] for on_first in (True, False)]
    return statistics.geometric_mean(
        statistics.median(figure(a) / figure(b) for a, b in order) for order in orders if order
    )


def _way(runs: Sequence[Run]) -> Way:
    streams = [stream for run in runs for stream in run.streams]
    return Way(
        statistics.median(run.tokens_per_second for run in runs),
        spread([stream.first_seconds for stream in streams]),
        spread([gap for stream in streams for gap in stream.gaps]),
    )


def spread(values: Sequence[float]) -> Spread:
    """Percentiles of values; zeros where there are none."""
    if len(values) < 2:
        return Spread(*[values[0] if values else 0.0] * 3)
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return Spread(cuts[49], cuts[94], cuts[98])
