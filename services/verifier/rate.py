"""Rates of committed tokens, and ratios of them, with what of them may be chance."""

import math
from collections import abc
from dataclasses import dataclass, replace
from typing import NamedTuple

ON, OFF = 1.02, 1.01
"""Ratios to off: above the first a way is proven to pay, below the second not to. Between them nothing is at stake."""
_Z = 1.96
"""Standard errors on each side of a 95 % interval."""
_PRIOR_ROUNDS, _PRIOR_VARIANCE = 4, 0.16
"""A rate's variance is taken as if so many rounds had differed by two fifths, as numbers of accepted tokens do: a few
equal ones prove little."""
_MOST_VARIANCE = 1e4
"""Of a rate of which nothing is known, since next to nothing was committed."""
_STALLS = 64
"""The longest round of so many counts as the next longest. What happens more often is no stall but the way's cost."""
_MEMORY = 0.9
"""Weight of what earlier trials said at each further one: the last ten say most."""
_LOWS = 3
"""Trials in a row in which a way was slower than off: it does not pay then, however wide the interval."""

Round = tuple[float, float]
"""Committed tokens of a row, and seconds."""


class Rate(NamedTuple):
    """Tokens a second of a row."""

    value: float
    variance: float
    """What is chance in the value, relative to its square."""

    @classmethod
    def of(cls, rounds: abc.Collection[Round]) -> "Rate":
        """The ratio of sums, with a ratio estimator's variance; robust against stalls."""
        count = len(rounds)
        longest = sorted(seconds for _, seconds in rounds)[max(0, count - 1 - -(-count // _STALLS))]
        clipped = [(tokens, min(seconds, longest)) for tokens, seconds in rounds]
        total = max(sum(tokens for tokens, _ in clipped), 1e-9)
        rate = total / max(sum(seconds for _, seconds in clipped), 1e-9)
        spread = sum((tokens - rate * seconds) ** 2 for tokens, seconds in clipped) * (count / total) ** 2
        variance = (spread + _PRIOR_ROUNDS * _PRIOR_VARIANCE) / (count + _PRIOR_ROUNDS) / count
        return cls(rate, min(variance, _MOST_VARIANCE))

    def errors_above(self, other: "Rate") -> float:
        """How much faster this is than another, in standard errors."""
        return math.log(self.value / other.value) / math.sqrt(self.variance + other.variance)


@dataclass(slots=True)
class Ratio:
    """What all trials say of a way's rate relative to off, in logarithms."""

    mean: float = 0.0
    weight: float = 0.0
    num_windows: int = 0
    lows: int = 0
    """Latest trials in a row that found it slower."""

    def add(self, mean: float, variance: float, num_windows: int) -> None:
        """Takes in another trial."""
        self.weight *= _MEMORY
        total = self.weight + 1 / variance
        self.mean = (self.mean * self.weight + mean / variance) / total
        self.weight, self.num_windows = total, self.num_windows + num_windows
        self.lows = self.lows + 1 if mean < 0 else 0

    def with_another(self, mean: float, variance: float) -> "Ratio":
        """A copy that has taken in another trial."""
        ratio = replace(self)
        ratio.add(mean, variance, 0)
        return ratio

    @property
    def error(self) -> float:
        """Half of the 95 % interval."""
        return _Z / math.sqrt(self.weight) if self.weight else math.inf

    @property
    def bounds(self) -> tuple[float, float, float]:
        """The lower end of the interval, the ratio, and the upper end."""
        low, mean, high = (_exp(self.mean + side * self.error) for side in (-1, 0, 1))
        return low, mean, high

    @property
    def pays(self) -> bool | None:
        """Whether it is proven to pay, or not to; None while neither is."""
        if self.mean + self.error < math.log(OFF) or self.lows >= _LOWS:
            return False
        return True if self.mean - self.error > math.log(ON) else None

    @property
    def is_taken(self) -> bool:
        """Whether to follow it: as proven, or as is likelier."""
        return self.mean > math.log(OFF) if self.pays is None else self.pays

    def __str__(self) -> str:
        ratio = _exp(self.mean)
        return f"{ratio:.2f} +- {ratio * self.error:.2f} over {self.num_windows} windows"


def _exp(logarithm: float) -> float:
    """A ratio of this logarithm; infinity where it has no other number."""
    try:
        return math.exp(logarithm)
    except OverflowError:
        return math.inf
