"""Ends a text before the first of its stop strings, and never shows a part of one that may still be completed."""

from collections.abc import Sequence
from typing import NamedTuple


class Passed(NamedTuple):
    """Text that may be shown, and whether a stop string was found right after it."""

    text: str
    stopped: bool


class StopStrings:
    """Watches one text. Holds back its end while that may be the start of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def __bool__(self) -> bool:
        """Whether there is anything to watch for."""
        return bool(self._stops)

    def push(self, text: str) -> Passed:
        """Takes more of the text."""
        if not self._stops:
            return Passed(text, False)
        self._held += text
        found = [at for at in map(self._held.find, self._stops) if at >= 0]
        if found:
            shown, self._held = self._held[: min(found)], ""
            return Passed(shown, True)
        keep = self._longest_start()
        split = len(self._held) - keep
        shown, self._held = self._held[:split], self._held[split:]
        return Passed(shown, False)

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        shown, self._held = self._held, ""
        return shown

    def _longest_start(self) -> int:
        """Length of the longest end of the held text that a stop string begins with."""
        longest = max(map(len, self._stops)) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
