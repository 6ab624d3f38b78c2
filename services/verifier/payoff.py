"""Whether speculation pays at all at a load: measured, not only computed.

What speculation costs beside rows (a draft on the same cores, messages, waits) shows in no step time. So at loads where
the governor's own estimate is not clear, stretches with and without speculation are measured in turns, and the faster
way is taken. Loads are counted in powers of two of the number of sequences.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

TRIAL_ROUNDS = 12
"""Rounds of one stretch that count."""
SETTLING_ROUNDS = 3
"""Rounds at its beginning that do not: proposals are still on their way, or still about."""
_STRETCH_ROUNDS = SETTLING_ROUNDS + TRIAL_ROUNDS
_FIRST_INTERVAL = 64
"""Rounds between two trials of the slower way; it grows with every trial that finds it slower still."""
_MAX_INTERVAL = 768
_CLEAR = 1.15
"""A way that is slower by this factor is tried again after four times as many rounds instead of twice."""
_UNCLEAR = 0.75, 1.6
"""Estimated gains between which the two ways are compared."""
_MARGIN = 1.03
"""Speculation has to be this much faster to be gone on with."""
_SMOOTHING = 0.5


class Reason(StrEnum):
    """Why speculation is on or off."""

    ESTIMATED = "estimated"
    """The governor's estimate is clear."""
    TRIAL = "trial"
    """The way is being measured."""
    MEASURED = "measured"
    """The way was measured to be the faster one."""


class Decision(NamedTuple):
    """Whether to speculate in the next round of the batch."""

    speculate: bool
    reason: Reason


@dataclass(slots=True)
class _Load:
    """What was measured at one load."""

    rates: dict[bool, float] = field(default_factory=dict)
    """Committed tokens a second, with and without speculation."""
    speculating: bool = True
    rounds: int = 0
    """The present stretch has lasted so many rounds."""
    tokens: int = 0
    seconds: float = 0.0
    interval: int = _FIRST_INTERVAL
    since_trial: int = 0


class Payoff:
    """Decides before every round of the batch and learns after it."""

    def __init__(self) -> None:
        self._loads: dict[int, _Load] = {}

    def rates(self) -> dict[tuple[int, bool], float]:
        """Measured tokens a second by (smallest number of sequences of the load, whether with speculation)."""
        return {(1 << bits >> 1, way): rate for bits, load in self._loads.items() for way, rate in load.rates.items()}

    def decide(self, num_sequences: int, gain: float) -> Decision:
        """Whether to speculate. `gain` is the governor's estimate: tokens a second with speculation / without."""
        load = self._loads.setdefault(num_sequences.bit_length(), _Load())
        low, high = _UNCLEAR
        if not low < gain < high:
            self._go(load, speculating=gain > 1)
            return Decision(load.speculating, Reason.ESTIMATED)
        if load.rounds >= _STRETCH_ROUNDS:
            self._turn(load)
        return Decision(load.speculating, Reason.TRIAL if load.rounds < _STRETCH_ROUNDS else Reason.MEASURED)

    def record(self, num_sequences: int, tokens: int, seconds: float) -> None:
        """A round of the batch committed so many tokens, so long after the round before."""
        load = self._loads.get(num_sequences.bit_length())
        if load is None:
            return
        load.rounds += 1
        load.since_trial += 1
        if load.rounds <= SETTLING_ROUNDS:
            return
        load.tokens += tokens
        load.seconds += seconds
        if (load.rounds - SETTLING_ROUNDS) % TRIAL_ROUNDS == 0 and load.seconds > 0:
            rate = load.tokens / load.seconds
            old = load.rates.get(load.speculating, rate)
            load.rates[load.speculating] = old + _SMOOTHING * (rate - old)
            load.tokens, load.seconds = 0, 0.0

    def _turn(self, load: _Load) -> None:
        """After a stretch: measures the other way when it is time, or else goes the faster one."""
        other = not load.speculating
        if len(load.rates) < 2 or load.since_trial >= load.interval:
            load.since_trial = 0
            self._go(load, speculating=other)
            return
        ratio = load.rates[True] / load.rates[False]
        if load.speculating != (ratio > _MARGIN):
            clear = not 1 / _CLEAR < ratio < _CLEAR
            load.interval = min(_MAX_INTERVAL, load.interval * (4 if clear else 2))
            self._go(load, speculating=not load.speculating)

    @staticmethod
    def _go(load: _Load, *, speculating: bool) -> None:
        if load.speculating != speculating:
            load.speculating = speculating
            load.rounds, load.tokens, load.seconds = 0, 0, 0.0
