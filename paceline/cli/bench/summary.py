"""What runs come to: figures of each way by number of streams, and the two ways beside each other."""

import statistics
from collections.abc import Sequence
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
    """Tokens a second, on / off: the median over pairs of neighbouring runs."""
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


def summarize(on: Sequence[Run], off: Sequence[Run], verify: StepSeconds | None, draft: StepSeconds | None) -> Summary:
    """The runs of one number of streams; the i-th of both ways had the same prompts, one after the other."""
    pairs = list(zip(on, off, strict=True))
    num_streams = len(on[0].streams)
    positions = by_position(judged for run in on for stream in run.streams for judged in stream.rounds)
    acceptance = overall(positions)
    limit = None
    if acceptance is not None and verify is not None and draft is not None:
        limit = best_ratio(acceptance, num_streams, verify, draft)
    differing = [a.token_ids != b.token_ids for x, y in pairs for a, b in zip(x.streams, y.streams, strict=True)]
    return Summary(
        num_streams,
        _way(on),
        _way(off),
        statistics.median(a.tokens_per_second / b.tokens_per_second for a, b in pairs),
        statistics.median(a.decoding_per_second / (b.decoding_per_second or 1.0) for a, b in pairs),
        positions,
        limit,
        sum(differing),
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
