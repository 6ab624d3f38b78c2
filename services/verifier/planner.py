"""What the next rounds of the whole batch should take, and whether speculation pays: decided after every step.

Counts its decisions by reason, for metrics.
"""

import time
from collections import Counter
from collections.abc import Collection

from services.engine.step_times import StepTimes
from services.verifier.governor import Choice, choose, worth_waiting
from services.verifier.payoff import Decision, Payoff
from services.verifier.target_sequence import TargetSequence


class Planner:
    """Used by the engine's thread; metrics read its counters."""

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

    def plan(self, targets: Collection[TargetSequence], step_times: StepTimes) -> Choice:
        """What a step would take if every sequence had as many proposed tokens as it may; notes it as wanted."""
        decoding = [target for target in targets if target.num_due <= 1]
        offers = [target.acceptance.of_next(target.room) for target in decoding]
        choice = choose(offers, step_times.curve)
        if any(offers):
            plain = len(decoding) / max(step_times.seconds(len(decoding)), 1e-9)
            self.gain = choice.tokens / max(choice.seconds, 1e-9) / plain
            decision = self.payoff.decide(len(decoding), self.gain)
            self.decisions[decision] += 1
            self.speculates = decision.speculate
        else:
            self.speculates = True
        for target, count in zip(decoding, choice.num_tokens, strict=True):
            target.wanted = count if self.speculates else 0
        return choice

    def wait(self, target: TargetSequence, choice: Choice, now: float) -> None:
        """Lets a sequence wait for its proposal as long as that may pay."""
        worth = 0.0
        if target.wanted:
            worth = worth_waiting(target.expected_tokens, target.acceptance.typical, choice.seconds)
        target.waiting_until = target.pacing.wait_until(now, worth)

    def record(self, num_sequences: int, num_committed: int) -> None:
        """A step of so many sequences committed so many tokens."""
        now = time.monotonic()
        if not self._mixed:
            self.payoff.record(num_sequences, num_committed, now - self._advanced_at)
        self._advanced_at, self._mixed = now, False
