"""How likely the target picks what the draft picked, and what it picks instead.

The margin of a pick says much: on held-out code the target agrees with a third of the picks that win by less than a
quarter of a nat and with all but one in seventy of those that win by more than two (docs/benchmarks). The tables begin
with what was measured there and follow what the served pair does.
"""

from collections import abc
from typing import NamedTuple

from services.common.calibration import Calibration
from services.common.sampling_params import SamplingParams
from services.engine.sampler import RunnerUp

NUM_RUNNERS_UP = 8
_MARGINS = (0.25, 0.5, 1.0, 2.0, 4.0)
_GREEDY = (0.35, 0.51, 0.74, 0.87, 0.985, 0.997)
_SAMPLED = (0.37, 0.49, 0.59, 0.79, 0.93, 0.985)
_RANKS = tuple(rank + 0.5 for rank in range(NUM_RUNNERS_UP - 1))
_GREEDY_RANKS = (0.52, 0.12, 0.06, 0.03, 0.03, 0.02, 0.02, 0.01)
_SAMPLED_RANKS = (0.48, 0.20, 0.10, 0.06, 0.03, 0.02, 0.02, 0.01)
_WEIGHT = 30.0
_MEMORY = 2000.0


class Guess(NamedTuple):
    """What the draft thinks of one position."""

    token_id: int
    margin: float
    """Score of the pick minus that of the first runner-up."""
    confidence: float
    """Expected probability that the target picks the same."""
    runners_up: list[int]
    """What the target may pick instead, likeliest first."""


class Confidence:
    """Calibrated on every commit that a draft service sees; greedy and sampled picks apart."""

    def __init__(self) -> None:
        self._margins = {
            True: Calibration(_MARGINS, _GREEDY, _WEIGHT, _MEMORY),
            False: Calibration(_MARGINS, _SAMPLED, _WEIGHT, _MEMORY),
        }
        self._ranks = {
            True: Calibration(_RANKS, _GREEDY_RANKS, _WEIGHT, _MEMORY),
            False: Calibration(_RANKS, _SAMPLED_RANKS, _WEIGHT, _MEMORY),
        }

    def guess(self, token_id: int, runners_up: abc.Sequence[RunnerUp], params: SamplingParams) -> Guess:
        """A pick with its probability."""
        margin = runners_up[0].gap if runners_up else 0.0
        confidence = self._margins[params.temperature == 0].rate(margin)
        return Guess(token_id, margin, confidence, [runner.token_id for runner in runners_up])

    def share(self, rank: int, params: SamplingParams) -> float:
        """Probability that the target's pick is the runner-up of this rank (0 is the first), given a rejection."""
        return self._ranks[params.temperature == 0].rate(rank)

    def observe(self, guess: Guess, picked: int, params: SamplingParams) -> None:
        """The target picked this where the draft had guessed."""
        greedy = params.temperature == 0
        right = picked == guess.token_id
        self._margins[greedy].observe(guess.margin, success=right)
        if not right:
            for rank, token_id in enumerate(guess.runners_up):
                self._ranks[greedy].observe(rank, success=token_id == picked)
