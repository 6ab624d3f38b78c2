"""A number of running rows with a draft: what was measured there, and which way is followed."""

import math
from bisect import bisect_left
from collections import abc, deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from services.verifier.rate import Rate, Ratio, Round

TOPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Most rows of each bucket: narrow enough that the shape of a plain step's curve corrects what differs within one."""
WINDOW, STRETCH = 8, 128
"""Rounds of a window: a tenth of noise a round becomes 4 %. And how many of the followed way's are remembered: sixteen
windows, which another way is compared with."""
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


class Decision(NamedTuple):
    """What was decided, and when by the clock of `time.time`."""

    at: float
    words: str


class Prospect(NamedTuple):
    """What is expected of a draft that is not followed, by what rounds with drafts took so far."""

    opening: float
    """Seconds that its beginning takes from the target."""
    ratio: float
    """Tokens a second, relative to off; not a number while that cannot be known."""
    answer: float = math.inf
    """Tokens of an answer: for so many a draft begins once."""

    def promises(self, account: float) -> bool:
        """Whether it is known, and expected to pay, and to cost no more than so many seconds to begin."""
        return self.ratio > 1 and self.opening <= account


NOT_KNOWN = Prospect(0.0, math.nan)


def bucket(rows: int) -> int:
    """The most rows of the bucket that has so many."""
    return TOPS[min(bisect_left(TOPS, rows), len(TOPS) - 1)]


@dataclass(slots=True)
class Trial:
    """Another way than the followed one is tried."""

    way: Way
    before: list[Round]
    rate: float
    """Of the followed way, before."""
    may_lose: float
    """Seconds after which it ends."""
    answer: float = math.inf
    """Tokens of a row for which the way begins once. A trial begins anywhere in answers: else it would say nothing of
    what short ones pay."""
    tried: list[Round] = field(default_factory=list)
    after: list[Round] = field(default_factory=list)
    lost: float = 0.0
    """Seconds that it took longer than the followed way takes for as many tokens."""
    opening: float = 0.0
    """What of it was lost before the way had come."""
    is_over: bool = False
    """Whether the followed way is measured once more."""

    @property
    def result(self) -> Rate:
        """How fast the way is, with its share of the opening."""
        rate = Rate.of(self.tried)
        return rate._replace(value=1 / (1 / rate.value + max(0.0, self.opening) / self.answer))


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

    @property
    def best(self) -> Way:
        """The way that gives most, by what was measured."""
        taken = {way: ratio.mean for way, ratio in self.ratios.items() if ratio.is_taken}
        return max(taken, key=lambda way: taken[way], default=Way.OFF)

    def next_above(self, loads: abc.Iterable["Load"]) -> "Load | None":
        """Of loads with the same draft and more rows, of which something was measured, the one with the fewest. A step
        of fewer rows leaves more room for proposed tokens.
        """
        above = [load for load in loads if load.draft == self.draft and load.rows > self.rows and load.ratios]
        return min(above, key=lambda load: load.rows, default=None)

    def learn(self, trial: Trial) -> Way:
        """Takes in a trial. Returns the way whose ratio to off it says something of."""
        way = self.way if trial.way is Way.OFF else trial.way
        ratio = self.ratios.setdefault(way, Ratio())
        if not trial.tried:
            ratio.add(math.log(0.5), 1.0, 0)  # Nothing came before all was lost that may be.
            return way
        followed, tried = Rate.of([*trial.before, *trial.after]), trial.result
        mean, variance = math.log(tried.value / followed.value), followed.variance + tried.variance
        if trial.way is Way.OFF:
            mean, self.off = -mean, tried
        elif self.way is Way.OFF:
            self.off = followed
        else:
            base = self.ratios.get(self.way, Ratio())
            mean, variance = mean + base.mean, variance + (1 / base.weight if base.weight else 0.0)
        rounds = len(trial.before) + len(trial.tried) + len(trial.after)
        ratio.add(mean, variance, -(-rounds // WINDOW))
        return way

    def has_proven(self, way: Way) -> bool:
        """Whether it is proven that a way pays, or that it does not."""
        return way in self.ratios and self.ratios[way].pays is not None

    def is_confirmed(self, way: Way, tried: Rate, followed: Rate) -> bool:
        """Whether what is tried once more is as it was before, so that no more of it need be seen."""
        ratio = self.ratios.get(self.way if way is Way.OFF else way)
        if ratio is None or ratio.pays is None or Way.OFF not in (way, self.way):
            return False
        mean, variance = math.log(tried.value / followed.value), tried.variance + followed.variance
        return ratio.with_another(-mean if way is Way.OFF else mean, variance).pays is ratio.pays

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
