"""How the next rounds of the whole batch go on, and what they should take: decided after every step."""

import math
import time
from collections import abc
from dataclasses import dataclass, replace

from services.engine.readings import Attribute, Reading, Readings
from services.engine.step_times import StepTimes
from services.verifier.decision import Decider
from services.verifier.governor import Allocation, Drafting, affordable_wait, allocate, worth_waiting
from services.verifier.load import Load, Prospect, Way, bucket
from services.verifier.settings import Speculation
from services.verifier.target_sequence import Origin, TargetSequence

_SMOOTHING = 0.1
_UNKNOWN_ANSWER, _ANSWER_SMOOTHING = 256, 0.05
"""Answers are taken to have so many tokens until some are over, and the latest twenty say most."""
_SHOWN_DIGITS = 12
"""A draft's digest is shown by so many of its first digits."""
_PROMPT_ROWS = 512
"""The time of a prompt's token is that of a step of so many rows, by each."""
_ALWAYS_SECONDS = 0.1
"""A proposal is waited for so long where it is to be used whether that pays or not."""
_DRAFT_SHARE = 0.25
"""A draft is taken to compute prompts in this share of the target's time until it says how long its steps take."""


@dataclass(slots=True)
class _Rounds:
    """What rounds with proposals were like."""

    rest: float = 0.0
    """Smoothed time that neither the verifier's step nor the draft's steps explain; a stall counts only in part."""
    ready: float = 0.0
    """Smoothed share of proposals that were there in time."""


class Planner:
    """Decides for all sequences at once. It belongs to the engine's thread. Times are in seconds."""

    def __init__(
        self,
        speculation: Speculation = Speculation.MEASURED,
        known: abc.Iterable[Load] = (),
        *,
        suffix_drafting: bool = True,
    ) -> None:
        """`known` is what an earlier process found."""
        self.decider = Decider(known)
        self.way = Way.DRAFT if speculation is Speculation.ALWAYS else Way.OFF
        """How the next round goes on."""
        self.opening_seconds = 0.0
        """Smoothed time from wanting a sequence's first proposal to having it."""
        self.answer_tokens = float(_UNKNOWN_ANSWER)
        """Smoothed length of answers."""
        self.off_seconds = self.off_planning = 0.0
        """Of rounds without speculation, and what of them deciding took."""
        self._speculation = speculation
        self._suffix_drafting = suffix_drafting
        self._step_seconds = 0.0
        """Of the draft, as it said last."""
        self._rounds: dict[int, _Rounds] = {}
        """By bucket of rows: what is between draft and target grows with the number of streams."""
        self._rows = 0
        """Sequences that decode; 0 when the round will not say anything about speculation."""
        self._streams = 0
        """Sequences that decode, in any case."""
        self._advanced_at = 0.0
        self._mixed = True
        """Whether prompts were computed, or nothing at all, since the last round: its time says nothing."""

    def ended(self, num_tokens: int) -> None:
        """An answer of so many tokens is over."""
        self.answer_tokens += _ANSWER_SMOOTHING * (max(1, num_tokens) - self.answer_tokens)

    def mix(self) -> None:
        """The round's time is not to count."""
        self._mixed = True

    def plan(self, targets: abc.Collection[TargetSequence], step_times: StepTimes) -> Allocation | None:
        """Decides how the next round goes on, and notes what each sequence wants of its draft.

        Returns what a step would take if every sequence had as many proposed tokens as it may; None without a draft.
        """
        started = time.perf_counter()
        decoding = [target for target in targets if target.num_due <= 1]
        self._streams = len(decoding)
        self.way = self._decide(decoding, step_times)
        allocation = None
        if self.way is Way.DRAFT:
            allocation = self._allocate(decoding, step_times, computes=len(decoding) < len(targets))
        else:
            for target in decoding:
                target.wanted = 0
        if self.way is Way.OFF:
            self.off_planning += time.perf_counter() - started
        return allocation

    def wait(self, target: TargetSequence, allocation: Allocation | None, plain: float, now: float) -> None:
        """Lets a sequence wait for its proposal as long as that may pay; `plain` is the time of a step without any."""
        worth = 0.0
        if target.wanted and allocation is not None:
            tokens = target.expected_tokens
            worth = worth_waiting(tokens, target.acceptance.typical, allocation.seconds)
            if not target.draft_is_apart:
                worth = max(worth, affordable_wait(tokens, allocation.seconds, plain))
            if self._speculation is Speculation.ALWAYS:
                worth = max(worth, _ALWAYS_SECONDS)
        target.waiting_until = target.pacing.wait_until(now, worth)

    def arrived(self, target: TargetSequence, step_seconds: float, now: float) -> None:
        """A proposal came that continues a sequence; the draft says how long its steps take, or 0."""
        self._step_seconds = step_seconds or self._step_seconds
        if target.pacing.asked_at is not None:
            self.opening_seconds += _SMOOTHING * (now - target.pacing.asked_at - self.opening_seconds)

    def record(self, num_tokens: int, taken: abc.Sequence[TargetSequence], rows: int, step_times: StepTimes) -> None:
        """A step of so many rows is over. It committed so many tokens, of sequences that had `taken` something."""
        now = time.monotonic()
        seconds, self._advanced_at = now - self._advanced_at, now
        mixed, self._mixed = self._mixed, False
        if mixed:
            return
        drafted = [target for target in taken if target.taken.origin is Origin.DRAFT]
        if self._rows:
            most = 2 * len(drafted) >= len(taken)
            self.decider.record(self._rows, num_tokens, seconds, step_times.seconds, drafted=most)
        if self.way is Way.OFF:
            self.off_seconds += seconds
        if drafted:
            was, step = self._rounds_of(self._streams), step_times.seconds(rows)
            if bucket(self._streams) not in self._rounds:
                was = self._rounds[bucket(self._streams)] = replace(was)
            was.ready += _SMOOTHING * (sum(t.was_ready for t in drafted) / len(drafted) - was.ready)
            steps = max(len(target.taken.token_ids) for target in drafted)
            rest = seconds - step - (1 - was.ready) * self._step_seconds * steps
            was.rest += _SMOOTHING * (min(max(rest, 0.0), 2 * was.rest + step) - was.rest)

    def readings(self) -> Readings:
        """What was decided, and what was measured to decide it."""
        decider = self.decider
        loads = [(load, _attributes(load)) for load in decider.loads.values()]
        ratios = [(ratio, {**of, "way": way.value}) for load, of in loads for way, ratio in load.ratios.items()]
        return {
            "speculation_on": tuple(Reading(load.way is not Way.OFF, of) for load, of in loads),
            "speculation_ratio": tuple(
                Reading(value, {**of, "bound": bound})
                for ratio, of in ratios
                for bound, value in zip(("low", "mean", "high"), ratio.bounds, strict=True)
            ),
            "speculation_seconds": (
                Reading(decider.seconds, {"of": "rounds"}),
                Reading(decider.lost, {"of": "lost_by_trials"}),
            ),
            "speculation_account": (Reading(decider.account),),
            "speculation_off_tax": (Reading(self.off_tax),),
        }

    @property
    def off_tax(self) -> float:
        """Share of the time of rounds without speculation that deciding about it took."""
        return self.off_planning / self.off_seconds if self.off_seconds else 0.0

    def _decide(self, decoding: abc.Sequence[TargetSequence], step_times: StepTimes) -> Way:
        self._rows = 0
        if self._speculation is not Speculation.MEASURED:
            return Way.DRAFT if self._speculation is Speculation.ALWAYS else Way.OFF
        drafts = {target.draft for target in decoding if target.room}
        if not drafts:
            return Way.OFF
        draft = max(drafts)  # Any, but always the same; empty where there is none.
        ways = [way for way, is_there in ((Way.DRAFT, draft), (Way.TEXT, self._suffix_drafting)) if is_there]
        if not ways:
            return Way.OFF
        self._rows = len(decoding)
        return self.decider.decide(self._rows, draft, ways, lambda: self._prospect(decoding, step_times))

    def _allocate(self, decoding: abc.Sequence[TargetSequence], step_times: StepTimes, *, computes: bool) -> Allocation:
        """What each sequence wants. A draft on the same cores stands still while prompts are computed."""
        must = self._speculation is Speculation.ALWAYS or self.decider.is_trying
        allocation = self._best(decoding, step_times, must * len(decoding))
        for target, count in zip(decoding, allocation.num_tokens, strict=True):
            target.wanted = count if target.draft_is_apart or not computes else 0
        return allocation

    def _best(self, decoding: abc.Sequence[TargetSequence], step_times: StepTimes, least: int) -> Allocation:
        offers = [target.acceptance.of_next(target.room) for target in decoding]
        return allocate(offers, step_times.curve, 0, self._drafting(len(decoding)), least)

    def _drafting(self, rows: int) -> Drafting:
        was = self._rounds_of(rows)
        return Drafting(was.rest, (1 - was.ready) * self._step_seconds / max(1, rows))

    def _rounds_of(self, rows: int) -> _Rounds:
        """Those of this bucket, or of the nearest that had rounds with a draft."""
        top = bucket(rows)
        if (known := self._rounds.get(top)) is not None:
            return known
        nearest = min(self._rounds, key=lambda other: abs(math.log(other / top)), default=None)
        return _Rounds() if nearest is None else self._rounds[nearest]

    def _prospect(self, decoding: abc.Sequence[TargetSequence], step_times: StepTimes) -> Prospect:
        """What the draft would cost and give, by what rounds with one took at the nearest number of rows."""
        rows = len(decoding)
        best, drafting = self._best(decoding, step_times, rows), self._drafting(rows)
        seconds = best.seconds + drafting.first + drafting.each * sum(best.num_tokens)
        ratio = best.tokens / rows * step_times.seconds(rows) / seconds if self._rounds and seconds else math.nan
        return Prospect(self._opening(decoding, step_times), ratio, self.answer_tokens)

    def _opening(self, decoding: abc.Iterable[TargetSequence], step_times: StepTimes) -> float:
        """What the draft takes from the verifier for the texts that it does not know yet."""
        unknown = sum(t.committed for t in decoding if not (t.pacing.has_arrived or t.draft_is_apart))
        step = step_times.seconds(1)
        share = min(1.0, self._step_seconds / step) if self._step_seconds and step else _DRAFT_SHARE
        return unknown * share * step_times.seconds(_PROMPT_ROWS) / _PROMPT_ROWS


def _attributes(load: Load) -> dict[str, Attribute]:
    return {"rows": load.rows, "draft": load.draft[:_SHOWN_DIGITS]}
