"""How likely proposed tokens of one sequence are accepted.

A draft says with each token how sure it is. What it says is believed as far as it has come true for this sequence: a
draft that claims too much is soon taken at its worth, at the cost of its own stream alone.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from operator import mul

from services.common.calibration import Calibration

_CLAIMS = (0.3, 0.5, 0.7, 0.85, 0.95)
_CLAIMED = (0.2, 0.4, 0.6, 0.78, 0.9, 0.98)
_CLAIM_WEIGHT = 4.0
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
        self._claims = Calibration(_CLAIMS, _CLAIMED, _CLAIM_WEIGHT, _MEMORY)
        self._matches = Calibration(_MATCHES, _MATCHED, _MATCH_WEIGHT, _MEMORY)
        self._typical = Calibration((), (typical,), _TYPICAL_WEIGHT, _MEMORY)

    @property
    def typical(self) -> float:
        """Probability that the draft's next token is accepted, given that those before it were."""
        return self._typical.rate(0)

    def of_claims(self, claims: Sequence[float | None]) -> list[float]:
        """Probabilities that the first 1, 2, ... tokens are all accepted, by what the draft claims of each."""
        rates = (self.typical if claim is None else self._claims.rate(claim) for claim in claims)
        return list(accumulate(rates, mul))

    def of_match(self, length: int, count: int) -> list[float]:
        """The same for tokens that followed an earlier occurrence of the last `length` tokens."""
        return list(accumulate([self._matches.rate(length)] * count, mul))

    def of_next(self, count: int) -> list[float]:
        """The same for proposals that are still to come."""
        return list(accumulate([self.typical] * count, mul))

    def observe_claims(self, claims: Sequence[float | None], num_accepted: int) -> None:
        """So many of the tokens with these claims were accepted; the next one, if there was one, was not."""
        for index, claim in enumerate(claims[: num_accepted + 1]):
            self._typical.observe(0, success=index < num_accepted)
            if claim is not None:
                self._claims.observe(claim, success=index < num_accepted)

    def observe_match(self, length: int, num_drafted: int, num_accepted: int) -> None:
        """So many of the tokens after a match were accepted."""
        for index in range(min(num_drafted, num_accepted + 1)):
            self._matches.observe(length, success=index < num_accepted)


class TypicalAcceptance:
    """Acceptance over all sequences of an adapter, with which new ones begin. An adapter not met begins as the base."""

    def __init__(self) -> None:
        self._rates: OrderedDict[str, float] = OrderedDict()

    def of(self, adapter: str) -> float:
        """Of an adapter by its digest; empty for the base model."""
        return self._rates.get(adapter, self._rates.get("", DEFAULT_TYPICAL))

    def observe(self, adapter: str, rate: float) -> None:
        """A sequence's acceptance after another round. The adapters longest unheard of are forgotten."""
        now = self.of(adapter)
        self._rates[adapter] = now + _SMOOTHING * (rate - now)
        self._rates.move_to_end(adapter)
        while len(self._rates) > _MAX_ADAPTERS:
            self._rates.popitem(last=False)
