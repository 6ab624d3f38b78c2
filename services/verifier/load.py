"""A number of running rows with a draft: what was measured there, and which way is followed."""

from collections import abc, deque
from dataclasses import dataclass, field
from enum import StrEnum

from services.verifier.rate import Rate, Ratio, Round

STRETCH = 32
"""Latest rounds of the followed way that are remembered: four windows, which another way is compared with."""
_SLACK, _ALARM, _DRIFT = 1.0, 6.0, 0.1
"""A change of the followed way's rate is what a cumulative sum tells (Page 1954), in standard errors; the slack makes
false alarms rarer than one in a thousand windows. What differs by less than the third is no change."""


class Way(StrEnum):
    """How sequences are continued."""

    OFF = "off"
    """One token a step."""
    TEXT = "text"
    """With what followed when their ends occurred before; no draft."""
    DRAFT = "draft"
    """With a draft's proposals, and with text."""


@dataclass(slots=True)
class Trial:
    """Another way than the followed one is tried."""

    way: Way
    before: list[Round]
    rate: float
    """Of the followed way, before."""
    tried: list[Round] = field(default_factory=list)
    after: list[Round] = field(default_factory=list)
    lost: float = 0.0
    """Seconds that it took longer than the followed way takes for as many tokens."""
    is_over: bool = False
    """Whether the followed way is measured once more."""


@dataclass(slots=True)
class Load:
    """What is known of a bucket with a draft."""

    rows: int
    """Most rows of the bucket."""
    draft: str
    way: Way = Way.OFF
    """This way is followed."""
    ratios: dict[Way, Ratio] = field(default_factory=dict)
    recent: deque[Round] = field(default_factory=lambda: deque(maxlen=STRETCH))
    """The latest rounds of the followed way."""
    off: Rate | None = None
    """How fast off was when it was last measured."""
    rounds: int = 0
    due: dict[Way, int] = field(default_factory=dict)
    interval: dict[Way, int] = field(default_factory=dict)
    trial: Trial | None = None
    level: float | None = None
    """Logarithm of the followed way's rate, from which changes are told."""
    fell: float = 0.0
    rose: float = 0.0

    @property
    def present(self) -> Way:
        """The way of the next round."""
        return self.way if self.trial is None or self.trial.is_over else self.trial.way

    @property
    def is_proven(self) -> bool:
        """Whether what is followed is not slower than off, as far as was measured."""
        return self.way is Way.OFF or (self.way in self.ratios and self.ratios[self.way].pays is True)

    def follow(self, way: Way, rounds: abc.Iterable[Round] = ()) -> None:
        """Goes another way, of which these rounds were measured."""
        self.way, self.trial, self.level = way, None, None
        self.fell = self.rose = 0.0
        self.recent.clear()
        self.recent.extend(rounds)

    def changed(self, deviation: float, errors: float) -> bool:
        """Takes in a window's deviation from the level; whether the deviations add up to a change."""
        self.fell = max(0.0, self.fell - errors - _SLACK)
        self.rose = max(0.0, self.rose + errors - _SLACK)
        return abs(deviation) > _DRIFT and max(self.fell, self.rose) > _ALARM

    def doubt(self, wait: int) -> None:
        """What was measured counts little from now on; all is tried again after so many rounds."""
        for ratio in self.ratios.values():
            ratio.weight, ratio.lows = ratio.weight / 10, 0
        self.interval.clear()
        self.due = {way: min(due, self.rounds + wait) for way, due in self.due.items()}
