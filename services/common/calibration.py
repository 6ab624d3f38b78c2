"""How often something came true, by what was said about it before."""

from bisect import bisect_right
from collections.abc import Sequence


class Calibration:
    """Shares of successes in bins of a prediction. Begins with a prior, and forgets what is long ago."""

    def __init__(self, bounds: Sequence[float], priors: Sequence[float], weight: float, memory: float) -> None:
        """`priors[i]` holds between `bounds[i - 1]` and `bounds[i]`, and counts as `weight` observations."""
        if len(priors) != len(bounds) + 1:
            raise ValueError(f"{len(bounds)} bounds make {len(bounds) + 1} bins, got {len(priors)} priors")
        self._bounds = tuple(bounds)
        self._priors = tuple(priors)
        self._weight = weight
        self._memory = memory
        self._seen = [0.0] * len(priors)
        self._true = [0.0] * len(priors)

    def rate(self, value: float) -> float:
        """Expected share of successes among predictions like this one."""
        at = bisect_right(self._bounds, value)
        return (self._priors[at] * self._weight + self._true[at]) / (self._weight + self._seen[at])

    def observe(self, value: float, *, success: bool) -> None:
        """A prediction came true, or did not."""
        at = bisect_right(self._bounds, value)
        self._seen[at] += 1
        self._true[at] += success
        if self._seen[at] > self._memory:
            self._seen[at] /= 2
            self._true[at] /= 2
