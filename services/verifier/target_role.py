"""The verifier's role: a row's pick is the truth, and proposed tokens that equal it are accepted.

The sequence in the engine is the committed text, then the proposed tokens of the round. After a step the longest prefix
of proposed tokens equal to the target's picks is accepted and the pick after it is committed too (recovered after a
rejection, bonus after full acceptance). A proposal can only ever save steps: it never reaches a pick.
"""

import time
from collections import abc

from services.common.digest import EMPTY_DIGEST, extend_digest
from services.engine.engine import Engine
from services.engine.model_runner import Result
from services.engine.outbox import Outbox
from services.engine.readings import Readings, by_state
from services.engine.sequence import Sequence
from services.model_server.failures import to_error
from services.verifier.accept import Accepted, Finish, accept
from services.verifier.acceptance import Acceptance, TypicalAcceptance
from services.verifier.governor import Pending, allocate, best_start
from services.verifier.load import Way
from services.verifier.offers import Offers
from services.verifier.own_draft import OwnDraft
from services.verifier.planner import Planner
from services.verifier.settings import Speculation
from services.verifier.target_sequence import NO_OFFER, Committed, Event, Offer, Origin, TargetSequence

_GOOD_ENOUGH = 0.8
"""Share of a draft's expected tokens from which on others are taken without waiting for it."""


class TargetRole:
    """Turns picks into commits. Runs on the engine's thread."""

    def __init__(
        self,
        engine: Engine,
        outbox: Outbox[Event],
        planner: Planner | None = None,
        own_draft: OwnDraft | None = None,
        *,
        suffix_drafting: bool = True,
    ) -> None:
        """Without a planner it always speculates; without a draft in this process, proposals come from services."""
        self.engine = engine
        self._outbox = outbox
        self._by_sequence: dict[Sequence, TargetSequence] = {}
        self._offers = Offers(suffix_drafting=suffix_drafting)
        self.planner = planner or Planner(Speculation.ALWAYS)
        self.acceptance = TypicalAcceptance()
        self.own_draft = own_draft
        self._together_until = 0.0
        """Sequences of the latest step wait for each other until then, and for no newer one."""
        self._eos = engine.facts.description.eos_token_ids
        self._vocab_size = engine.facts.description.vocab_size

    @property
    def is_awaited(self) -> bool:
        """A draft waits for commits where it is to propose what follows."""
        return self.planner.way is Way.DRAFT and self.own_draft is None

    def open(self, target: TargetSequence) -> None:
        """Takes a sequence in. Limits have been checked."""
        sequence = target.sequence
        target.committed = len(sequence)
        if self.own_draft is not None:
            target.draft, target.draft_is_apart = self.own_draft.digest, False
        if target.digest == EMPTY_DIGEST:
            target.digest = extend_digest(EMPTY_DIGEST, sequence.token_ids)
        target.ends = dict.fromkeys(sequence.params.stop_token_ids, Finish.STOP)
        if not sequence.params.ignore_eos:
            target.ends |= dict.fromkeys(self._eos, Finish.EOS)
        target.acceptance = Acceptance(self.acceptance.of(target.adapter))
        target.pacing.arrival_seconds = self.planner.opening_seconds
        if not self._by_sequence:
            self.planner.mix()
        self.engine.add(sequence)
        self._by_sequence[sequence] = target

    def propose(
        self,
        target: TargetSequence,
        position: int,
        digest: int,
        token_ids: abc.Sequence[int],
        confidences: abc.Sequence[int] = (),
        step_seconds: float = 0.0,
    ) -> None:
        """Takes a proposal; whatever does not fit is dropped in silence. `step_seconds` is what the draft's take."""
        if target.done or not target.max_draft_tokens:
            return
        if any(token_id >= self._vocab_size for token_id in token_ids):
            return
        target.proposals.add(position, digest, token_ids, target.committed, confidences)
        if target.proposals.following(target.committed, target.digest, 1):
            now = time.monotonic()
            self.planner.arrived(target, step_seconds, now)
            target.pacing.proposal_arrived(now)
            target.waiting_until = 0.0

    def close(self, target: TargetSequence) -> None:
        """Lets a sequence go, finished or not."""
        target.done = True
        if self._by_sequence.pop(target.sequence, None) is not None:
            self.engine.remove(target.sequence)
            if self.own_draft is not None:
                self.own_draft.close(target)
            self.planner.ended(target.committed - target.sequence.num_prompt_tokens)
            self._offers.remember(target)

    def prepare(self, now: float) -> None:
        """Chooses how many proposed tokens each sequence puts into the next step, and when that starts."""
        if self.planner.way is Way.OFF:
            self._prepare_plain(now)
            return
        ready: list[tuple[TargetSequence, Offer]] = []
        waiting: list[TargetSequence] = []
        other_rows = 0
        most_rows = self.engine.config.max_step_tokens
        front, rest = self._split()
        for target in rest:
            target.take(NO_OFFER)
            target.go_on(now)
        for target in front:
            other_rows += target.num_due - 1
            if target.num_due > most_rows // 2:
                target.take(NO_OFFER)
                target.go_on(now)
                continue
            offer = self._offers.best(target, self.planner.way)
            if target.undecided:
                target.undecided, target.was_ready = False, bool(offer.token_ids) and self.own_draft is None
                if offer.origin is Origin.DRAFT:
                    target.pacing.waiting_since = None
            if self._waits(target, offer, now):
                waiting.append(target)
                target.wait(now)
            else:
                target.go_on(now)
                ready.append((target, offer))
        if not ready:
            return
        seconds = self.engine.step_times.seconds
        if other_rows:
            self.planner.mix()
        other_rows = min(other_rows, most_rows)
        allocation = allocate([offer.survival for _, offer in ready], self.engine.step_times.curve, other_rows)
        start = now
        if waiting and not other_rows:
            rows = len(ready) + sum(allocation.num_tokens)
            start = best_start(now, allocation, rows, [self._pending(t) for t in waiting if t.draft_is_apart], seconds)
            # A step meanwhile would keep a draft on the same cores from its work, and be one more for fewer sequences.
            latest = max((t.waiting_until for t in waiting if not t.draft_is_apart), default=start)
            start = max(start, min(latest, self._together_until))
        for (target, offer), count in zip(ready, allocation.num_tokens, strict=True):
            target.take(offer.first(count))
            target.sequence.hold_until = start

    def advance(self, results: list[Result]) -> None:
        """Commits what the step decided and lets each sequence wait for its proposal as long as that may pay."""
        if not results:
            return
        rounds: list[tuple[TargetSequence, Result, Accepted]] = []
        for result in results:
            target = self._by_sequence[result.sequence]
            rounds.append((target, result, self._accept(target, result)))
        step_times, (front, rest) = self.engine.step_times, self._split()
        of_front = [(one, accepted) for one, _, accepted in rounds if not (rest and one.sequence.is_background)]
        if not of_front:
            self.planner.mix()
        self.planner.record(
            sum(len(accepted.token_ids) for _, accepted in of_front),
            [target for target, _ in of_front],
            sum(len(result.token_ids) for _, result, _ in rounds),
            step_times,
        )
        allocation = self.planner.plan(front, step_times)
        for target in rest:
            target.wanted = 0
        now, plain = time.monotonic(), step_times.seconds(len(front))
        for target, result, accepted in rounds:
            self._commit(target, result, accepted)
            if target.done:
                self.close(target)
                continue
            target.undecided = True
            self.planner.wait(target, allocation, plain, now)
            self._together_until = max(self._together_until, target.waiting_until)
        if self.own_draft is not None:
            self._together_until = 0.0
            for target, proposed in self.own_draft.run(self._by_sequence.values(), self._outbox):
                self.propose(target, *proposed)

    def end(self, sequence: Sequence, error: Exception) -> None:
        """Ends a sequence that cannot be computed."""
        target = self._by_sequence[sequence]
        self._outbox.put(target.emit, to_error(sequence, error))
        self.close(target)

    def fail(self, error: BaseException) -> None:
        """Ends every sequence with the error."""
        for target in self._by_sequence.values():
            self._outbox.put(target.emit, error)

    def readings(self) -> Readings:
        """What it decided, what it measured to decide it, and its sequences by what they do."""
        num_running = sum(1 for sequence in self._by_sequence if sequence.block_table)
        own = {} if self.own_draft is None else self.own_draft.readings()
        states = by_state(num_running, len(self._by_sequence) - num_running)
        return {**self.planner.readings(), **own, "sequences": states}

    def _split(self) -> tuple[list[TargetSequence], list[TargetSequence]]:
        """Those that speculation is for, and the others: what runs in the background while there is anything else."""
        front = [target for target in self._by_sequence.values() if not target.sequence.is_background]
        rest = [target for target in self._by_sequence.values() if target.sequence.is_background]
        return (front, rest) if front else (rest, [])

    def _prepare_plain(self, now: float) -> None:
        """Has every sequence go on at once with its own next token: nothing is looked up, and nothing is waited for."""
        for target in self._by_sequence.values():
            if target.taken.token_ids:
                target.take(NO_OFFER)
            if target.num_due > 1:
                self.planner.mix()
            target.undecided, target.was_ready = False, False
            target.go_on(now)

    def _waits(self, target: TargetSequence, offer: Offer, now: float) -> bool:
        """Whether a sequence waits for its draft rather than going on with what is on offer."""
        if target.waiting_until <= now or offer.origin is Origin.DRAFT:
            return False
        return sum(offer.survival) < _GOOD_ENOUGH * (target.expected_tokens - 1)

    def _pending(self, target: TargetSequence) -> Pending:
        since = target.pacing.waiting_since or 0.0
        return Pending(since + target.pacing.arrival_seconds, target.expected_tokens, 1 + target.wanted)

    def _accept(self, target: TargetSequence, result: Result) -> Accepted:
        start = target.committed
        proposed = target.sequence.token_ids[start : start + len(result.token_ids) - 1]
        return accept(proposed, result.token_ids, target.ends, target.end - start)

    def _commit(self, target: TargetSequence, result: Result, accepted: Accepted) -> None:
        sequence, start, taken = target.sequence, target.committed, target.taken
        token_ids, num_accepted, finish = accepted
        num_drafted = len(result.token_ids) - 1
        committed = Committed(
            start,
            target.digest,
            token_ids,
            num_accepted,
            num_drafted,
            finish,
            result.logprobs[: len(token_ids)],
            sequence.num_cached,
            target.wanted if self.own_draft is None else 0,
            taken.origin,
            target.was_ready and num_drafted > 0,
            target.waited_seconds,
            target.adapter,
        )
        target.waited_seconds = 0.0
        sequence.truncate(start + num_accepted)
        sequence.token_ids.extend(token_ids[num_accepted:])
        target.committed = sequence.num_settled = len(sequence)
        sequence.first_logits = len(sequence) - 1
        target.digest = extend_digest(target.digest, token_ids)
        target.proposals.forget_before(target.committed)
        target.done = finish is not None
        self._learn(target, num_drafted, num_accepted)
        self._outbox.put(target.emit, committed)

    def _learn(self, target: TargetSequence, num_drafted: int, num_accepted: int) -> None:
        taken = target.taken
        if taken.origin is Origin.DRAFT:
            target.acceptance.observe_draft(taken.confidences[:num_drafted], num_accepted)
            self.acceptance.observe(target.adapter, target.acceptance.typical)
        elif taken.origin is Origin.SUFFIX:
            target.acceptance.observe_match(taken.match_length, num_drafted, num_accepted)
            target.pacing.waiting_since = None
        target.pacing.committed(num_drafted if taken.origin is Origin.DRAFT else 0)
        target.taken = NO_OFFER
