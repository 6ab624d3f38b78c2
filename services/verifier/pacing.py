"""Whether a sequence without a proposal waits for one, and how long.

Waiting pays when the proposal is expected soon enough: a plain step yields one token and takes a step's time; a round
with a proposal yields 1 + (expected accepted tokens) after the wait and a step. Both are measured as the sequence runs.
A draft that keeps missing is waited for ever more rarely.
"""

from dataclasses import dataclass

_SMOOTHING = 0.2
_MAX_WAIT_SECONDS = 0.25
_MISSES_ALLOWED = 3
_MAX_ROUNDS_BETWEEN = 64


@dataclass(slots=True)
class Pacing:
    """What one sequence has learnt about its draft. Times in seconds. Begins with trust."""

    arrival_seconds: float = 0.0
    """Smoothed time from a commit to the proposal that continues it."""
    accepted: float = 3.0
    """Smoothed accepted tokens of a round that had a proposal."""
    misses: int = 0
    """Waits in a row that ended without a proposal."""
    rounds_to_skip: int = 0
    waiting_since: float | None = None

    def committed(self, num_drafted: int, num_accepted: int) -> None:
        """A round ended."""
        if num_drafted:
            self.accepted += _SMOOTHING * (num_accepted - self.accepted)
            self.misses = self.rounds_to_skip = 0
        elif self.waiting_since is not None:
            self.misses += 1
            if self.misses >= _MISSES_ALLOWED:
                self.rounds_to_skip = min(_MAX_ROUNDS_BETWEEN, 2**self.misses)
        self.waiting_since = None

    def proposal_arrived(self, now: float) -> None:
        """A proposal came that continues the sequence."""
        if self.waiting_since is not None:
            self.arrival_seconds += _SMOOTHING * (now - self.waiting_since - self.arrival_seconds)
            self.waiting_since = None

    def hold_until(self, now: float, step_seconds: float) -> float:
        """Until when to wait for a proposal, by the clock of `now`; `now` for not at all."""
        if self.rounds_to_skip:
            self.rounds_to_skip -= 1
            return now
        # A plain step gives 1 token a step's time; a waited round gives 1 + accepted in a wait and a step. Equal when
        # the wait takes as long as the accepted tokens' own steps: until then waiting pays, after it never does.
        worth = self.accepted * step_seconds
        if worth <= self.arrival_seconds:
            return now
        self.waiting_since = now
        return now + min(_MAX_WAIT_SECONDS, worth)
