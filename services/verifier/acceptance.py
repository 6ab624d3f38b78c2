"""How likely proposed tokens of one sequence are accepted.

A draft says with each token how sure it is. What it says is believed as far as it has come true for this sequence: a
draft that claims too much is soon taken at its worth, at the cost of its own stream alone.
"""

from collections import abc
from itertools import accumulate
from operator import mul

from cachetools import LRUCache

from services.common.calibration import Calibration

_CONFIDENCES = (0.3, 0.5, 0.7, 0.85, 0.95)
_CONFIDENT = (0.2, 0.4, 0.6, 0.78, 0.9, 0.98)
_CONFIDENCE_WEIGHT = 4.0
_MATCHES = (4, 6, 8, 12, 16, 24)
_MATCHED = (0.35, 0.5, 0.6, 0.7, 0.8, 0.88, 0.94)
_MATCH_WEIGHT = 8.0
_MEMORY = 100.0
_TYPICAL_WEIGHT = 8.0
DEFAULT_TYPICAL = 0.7
_SMOOTHING = 0.02
_MAX_ADAPTERS = 1024


class Acceptance:
    """Learns with every round of a sequence."""

    def __init__(self, typical: float = DEFAULT_TYPICAL) -> None:
        """`typical` is the acceptance of other sequences."""
        self._confidences = Calibration(_CONFIDENCES, _CONFIDENT, _CONFIDENCE_WEIGHT, _MEMORY)
        self._matches = Calibration(_MATCHES, _MATCHED, _MATCH_WEIGHT, _MEMORY)
        self._typical = Calibration((), (typical,), _TYPICAL_WEIGHT, _MEMORY)

    @property
    def typical(self) -> float:
        """Probability that the draft's next token is accepted, given that those before it were."""
        return self._typical.rate(0)

    def of_confidences(self, confidences: abc.Sequence[float | None]) -> list[float]:
        """Probabilities that the first 1, 2, ... tokens are all accepted, by what the draft says of each."""
        rates = (self.typical if one is None else self._confidences.rate(one) for one in confidences)
        return list(accumulate(rates, mul))

    def of_match(self, length: int, count: int) -> list[float]:
        """The same for tokens that followed an earlier occurrence of the last `length` tokens."""
        return list(accumulate([self._matches.rate(length)] * count, mul))

    def of_next(self, count: int) -> list[float]:
        """The same for proposals that are still to come."""
        return list(accumulate([self.typical] * count, mul))

    def observe_draft(self, confidences: abc.Sequence[float | None], num_accepted: int) -> None:
        """So many of the draft's tokens were accepted, of which it had said this; the next one, if any, was not."""
        for index, confidence in enumerate(confidences[: num_accepted + 1]):
            self._typical.observe(0, success=index < num_accepted)
            if confidence is not None:
                self._confidences.observe(confidence, success=index < num_accepted)

    def observe_match(self, length: int, num_drafted: int, num_accepted: int) -> None:
        """So many of the tokens after a match were accepted."""
        for index in range(min(num_drafted, num_accepted + 1)):
            self._matches.observe(length, success=index < num_accepted)


class TypicalAcceptance:
    """Acceptance over all sequences of an adapter, with which new ones begin. An adapter not met begins as the base."""

    def __init__(self) -> None:
        self._rates: LRUCache[str, float] = LRUCache(_MAX_ADAPTERS)
        """Rates are found by the adapter's digest; the adapters longest unheard of are forgotten."""
        self._base = DEFAULT_TYPICAL
        self.num_rounds = 0
        """Rounds from which the base model's is known."""

    def of(self, adapter: str) -> float:
        """Acceptance of an adapter by its digest; of the base model where that is empty."""
        return self._rates.get(adapter, self._base) if adapter else self._base

    def observe(self, adapter: str, rate: float) -> None:
        """A sequence's acceptance after another round."""
        now = self.of(adapter)
        smoothed = now + _SMOOTHING * (rate - now)
        if adapter:
            self._rates[adapter] = smoothed
        else:
            self._base = smoothed
            self.num_rounds += 1
