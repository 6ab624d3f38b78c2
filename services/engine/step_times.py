"""The expected time of a step by its number of rows, learnt while it runs.

Known at a few numbers of rows, linear between them and beyond the last. What a step took moves the points beside its
number of rows, and all points a little: a machine that got slower got slower for every number of rows.
"""

from bisect import bisect_right
from collections import abc

import numpy as np
from numpy.typing import NDArray

ROWS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512)
_LOCAL = 0.15
_GLOBAL = 0.05
_MOST = 2.0
"""A step that took longer than this many times what was expected, or less than one in so many, counts as that."""
_NEARLY = 1.03
"""A step that takes so many times as long is taken to be as long."""
_ROW_COST = 0.05
"""Share of a step's time that a further row is taken to cost as long as nothing is known."""


class StepTimes:
    """Times in seconds. Unknown, and so 0, until something was observed."""

    def __init__(self, measured: abc.Mapping[int, float] | None = None) -> None:
        self._times: list[float] = []
        if measured:
            last = max(measured)
            self._begin(last, measured[last])
            known = sorted(measured.items())
            for point, rows in enumerate(ROWS):
                if rows <= last:
                    self._times[point] = _between(known, rows)
            self._settle(0)

    def __bool__(self) -> bool:
        return bool(self._times)

    def seconds(self, rows: int) -> float:
        """Expected time of a step of so many rows. Never falls as rows grow."""
        if not self._times:
            return 0.0
        low, share = _place(rows)
        return self._times[low] + share * (self._times[low + 1] - self._times[low])

    def curve(self, first: int, last: int) -> NDArray[np.float64]:
        """Expected times [last - first + 1] of steps of `first`, ..., `last` rows."""
        if not self._times:
            return np.zeros(last - first + 1)
        end = max(last, ROWS[-1] + 1)
        return np.interp(np.arange(first, last + 1), [*ROWS, end], [*self._times, self.seconds(end)])

    def spare_rows(self, rows: int, most: int) -> int:
        """How many of `most` further rows lengthen a step of so many by a few hundredths at most."""
        times = self.curve(max(1, rows), rows + most)
        return max(0, int(np.searchsorted(times, _NEARLY * times[0], side="right")) - (rows > 0))

    def observe(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        if not self._times:
            self._begin(rows, seconds)
            return
        ratio = min(_MOST, max(1 / _MOST, seconds / max(self.seconds(rows), 1e-9)))
        low, share = _place(rows)
        near = {low: 1 - min(1.0, share), low + 1: min(1.0, share)}
        everywhere = ratio**_GLOBAL
        for point, time in enumerate(self._times):
            self._times[point] = time * everywhere * ratio ** (_LOCAL * near.get(point, 0.0))
        self._settle(low)

    def _begin(self, rows: int, seconds: float) -> None:
        one = seconds / (1 + _ROW_COST * (rows - 1))
        self._times = [one * (1 + _ROW_COST * (point - 1)) for point in ROWS]

    def _settle(self, around: int) -> None:
        """More rows never take less time: points above are raised, points below lowered."""
        times = self._times
        for point in range(around + 1, len(times)):
            times[point] = max(times[point], times[point - 1])
        for point in range(around, 0, -1):
            times[point - 1] = min(times[point - 1], times[point])


def _place(rows: int) -> tuple[int, float]:
    """The point below, and how far from it to the next one (above 1 past the last)."""
    low = min(bisect_right(ROWS, rows), len(ROWS) - 1) - 1
    return low, (rows - ROWS[low]) / (ROWS[low + 1] - ROWS[low])


def _between(known: abc.Sequence[tuple[int, float]], rows: int) -> float:
    """Linear between the two entries (rows, seconds) around a number of rows."""
    above = next(index for index, (at, _) in enumerate(known) if rows <= at)
    low, high = known[max(0, above - 1)], known[above]
    share = (rows - low[0]) / (high[0] - low[0]) if high[0] > low[0] else 0.0
    return low[1] + share * (high[1] - low[1])
