"""What the next rounds of the whole batch should take, and whether speculation pays: decided after every step.

Counts its decisions by reason, for metrics.
"""

import time
from collections import Counter, abc

from services.engine.readings import Reading, Readings
from services.engine.step_times import StepTimes
from services.verifier.governor import Allocation, allocate, worth_waiting
from services.verifier.payoff import Decision, Payoff
from services.verifier.target_sequence import TargetSequence


class Planner:
    """Decides for all sequences at once. It belongs to the engine's thread."""

    def __init__(self) -> None:
        self.speculates = True
        self.payoff = Payoff()
        self.decisions: Counter[Decision] = Counter()
        """Steps by what was decided after them."""
        self.gain = 1.0
        """Estimated tokens a second with speculation, relative to without, at the latest step."""
        self._advanced_at = 0.0
        self._mixed = True
        """Whether prompts were computed, or nothing at all, since the last round: its time says nothing."""

    def mix(self) -> None:
        """The round's time is not to count."""
        self._mixed = True

    def plan(self, targets: abc.Collection[TargetSequence], step_times: StepTimes) -> Allocation:
        """What a step would take if every sequence had as many proposed tokens as it may; notes it as wanted."""
        decoding = [target for target in targets if target.num_due <= 1]
        offers = [target.acceptance.of_next(target.room) for target in decoding]
        allocation = allocate(offers, step_times.curve)
        if any(offers):
            plain = len(decoding) / max(step_times.seconds(len(decoding)), 1e-9)
            self.gain = allocation.tokens / max(allocation.seconds, 1e-9) / plain
            decision = self.payoff.decide(len(decoding), self.gain)
            self.decisions[decision] += 1
            self.speculates = decision.speculate
        else:
            self.speculates = True
        for target, count in zip(decoding, allocation.num_tokens, strict=True):
            target.wanted = count if self.speculates else 0
        return allocation

    def wait(self, target: TargetSequence, allocation: Allocation, now: float) -> None:
        """Lets a sequence wait for its proposal as long as that may pay."""
        worth = 0.0
        if target.wanted:
            worth = worth_waiting(target.expected_tokens, target.acceptance.typical, allocation.seconds)
        target.waiting_until = target.pacing.wait_until(now, worth)

    def record(self, num_sequences: int, num_committed: int) -> None:
        """A step of so many sequences committed so many tokens."""
        now = time.monotonic()
        if not self._mixed:
            self.payoff.record(num_sequences, num_committed, now - self._advanced_at)
        self._advanced_at, self._mixed = now, False

    def readings(self) -> Readings:
        """What was decided how often, and the estimated and measured tokens a second behind it."""
        return {
            "governor_decisions": tuple(
                Reading(count, {"speculates": decision.speculate, "reason": decision.reason.value})
                for decision, count in self.decisions.items()
            ),
            "governor_gain": (Reading(self.gain),),
            "governor_rate": tuple(
                Reading(rate, {"sequences": at, "speculates": way}) for (at, way), rate in self.payoff.rates().items()
            ),
        }
