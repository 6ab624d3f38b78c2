"""How long a sequence without a proposal waits for one.

What waiting is worth the governor says. This remembers how long proposals take, and waits ever more rarely for a draft
that keeps missing.
"""

from dataclasses import dataclass

_SMOOTHING = 0.2
_FORGETTING = 0.95
"""What is left each round of a time that is not waited for: a draft that was slow once is waited for again some day."""
_MISSES_ALLOWED = 3
_MAX_ROUNDS_BETWEEN = 64


@dataclass(slots=True)
class Pacing:
    """What one sequence has learnt about its draft. Times in seconds. Begins with trust."""

    arrival_seconds: float = 0.0
    """Smoothed time from a commit to the proposal that continues it."""
    has_arrived: bool = False
    """Whether a proposal has ever come."""
    misses: int = 0
    """Waits in a row that ended without a proposal."""
    rounds_to_skip: int = 0
    waiting_since: float | None = None
    asked_at: float | None = None
    """When a proposal was first wanted, until one has come."""

    def committed(self, num_drafted: int) -> None:
        """A round ended."""
        if num_drafted:
            self.misses = self.rounds_to_skip = 0
        elif self.waiting_since is not None:
            self.misses += 1
            if self.misses >= _MISSES_ALLOWED or not self.has_arrived:
                self.rounds_to_skip = min(_MAX_ROUNDS_BETWEEN, 2 ** (self.misses + 1))
        self.waiting_since = None

    def proposal_arrived(self, now: float) -> None:
        """A proposal came that continues the sequence. For the first one the draft computed the text: no guide."""
        if self.waiting_since is not None and self.has_arrived:
            self.arrival_seconds += _SMOOTHING * (now - self.waiting_since - self.arrival_seconds)
        elif not self.has_arrived:
            self.arrival_seconds = 0.0
        self.has_arrived, self.waiting_since, self.asked_at = True, None, None

    def wait_until(self, now: float, worth: float) -> float:
        """Until when to wait for a proposal, by the clock of `now`, if that is worth `worth` seconds; `now` for not."""
        if worth and not self.has_arrived and self.asked_at is None:
            self.asked_at = now
        if self.rounds_to_skip:
            self.rounds_to_skip -= 1
            return now
        if worth <= self.arrival_seconds:
            self.arrival_seconds *= _FORGETTING
            return now
        self.waiting_since = now
        return now + worth
