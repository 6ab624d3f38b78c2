"""The verifier's role: a row's pick is the truth, and proposed tokens that equal it are accepted.

The sequence in the engine is the committed text, then the proposed tokens of the round. After a step the longest prefix
of proposed tokens equal to the target's picks is accepted and the pick after it is committed too (recovered after a
rejection, bonus after full acceptance). A proposal can only ever save steps: it never reaches a pick.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from services.common.digest import EMPTY_DIGEST, extend_digest
from services.engine.engine import Engine
from services.engine.engine_loop import Outbox
from services.engine.model_runner import Result
from services.engine.sampler import RowLogprobs
from services.engine.sequence import Sequence
from services.verifier.pacing import Pacing
from services.verifier.proposals import ProposalIndex


class Finish(NamedTuple):
    """Why a sequence ended: an end-of-sequence token, or else the limit of its length."""

    eos: bool


class Committed(NamedTuple):
    """Tokens that the target decided in one round. See `Commit` in speculation.proto."""

    position: int
    digest: int
    token_ids: list[int]
    num_accepted: int
    num_drafted: int
    finish: Finish | None
    logprobs: list[RowLogprobs | None]
    num_cached_tokens: int


@dataclass(slots=True, eq=False)
class TargetSequence:
    """A sequence under verification. Owned by the engine's thread."""

    sequence: Sequence
    emit: Callable[[object], None]
    """Delivers a Committed, or the exception that ended the sequence."""
    max_draft_tokens: int
    end: int
    """Length at which it ends."""
    digest: int = EMPTY_DIGEST
    committed: int = 0
    proposals: ProposalIndex = field(default_factory=ProposalIndex)
    pacing: Pacing = field(default_factory=Pacing)
    done: bool = False


class TargetRole:
    """Turns picks into commits. Runs on the engine's thread."""

    def __init__(self, engine: Engine, outbox: Outbox) -> None:
        self.engine = engine
        self._outbox = outbox
        self._by_sequence: dict[Sequence, TargetSequence] = {}
        self._eos = frozenset(engine.description.eos_token_ids)
        self._vocab_size = engine.description.vocab_size

    def open(self, target: TargetSequence) -> None:
        """Takes a sequence in. Limits have been checked."""
        sequence = target.sequence
        target.committed = len(sequence)
        target.digest = extend_digest(EMPTY_DIGEST, sequence.token_ids)
        self._by_sequence[sequence] = target
        self.engine.add(sequence)

    def propose(self, target: TargetSequence, position: int, digest: int, token_ids: list[int]) -> None:
        """Takes a proposal; whatever does not fit is dropped in silence."""
        if target.done or not target.max_draft_tokens:
            return
        if any(token_id >= self._vocab_size for token_id in token_ids):
            return
        target.proposals.add(position, digest, token_ids, target.committed)
        if self._attach(target):
            target.pacing.proposal_arrived(time.monotonic())
            target.sequence.hold_until = 0.0

    def close(self, target: TargetSequence) -> None:
        """Lets a sequence go, finished or not."""
        target.done = True
        if self._by_sequence.pop(target.sequence, None) is not None:
            self.engine.remove(target.sequence)

    def advance(self, results: list[Result]) -> None:
        """Commits what the step decided and prepares the next round of each sequence."""
        for result in results:
            target = self._by_sequence[result.sequence]
            self._commit(target, result)
            if target.done:
                self.close(target)
            elif not self._attach(target) and target.max_draft_tokens:
                now = time.monotonic()
                target.sequence.hold_until = target.pacing.hold_until(now, self.engine.step_seconds)

    def fail(self, error: BaseException) -> None:
        """Ends every sequence with the error."""
        for target in self._by_sequence.values():
            self._outbox.put(target.emit, error)

    def _commit(self, target: TargetSequence, result: Result) -> None:
        sequence, start = target.sequence, target.committed
        proposed = sequence.token_ids[start:]
        token_ids: list[int] = []
        num_accepted = 0
        finish: Finish | None = None
        for index, pick in enumerate(result.token_ids):
            token_ids.append(pick)
            matched = index < len(proposed) and proposed[index] == pick
            num_accepted += matched
            if pick in self._eos and not sequence.params.ignore_eos:
                finish = Finish(eos=True)
            elif start + len(token_ids) >= target.end:
                finish = Finish(eos=False)
            if finish or not matched:
                break
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
        )
        sequence.truncate(start + num_accepted)
        sequence.token_ids.extend(token_ids[num_accepted:])
        target.committed = sequence.num_settled = len(sequence)
        sequence.first_logits = len(sequence) - 1
        target.digest = extend_digest(target.digest, token_ids)
        target.proposals.forget_before(target.committed)
        target.done = finish is not None
        target.pacing.committed(num_drafted, num_accepted)
        self._outbox.put(target.emit, committed)

    def _attach(self, target: TargetSequence) -> bool:
        """Puts proposed tokens behind the committed ones, as far as they go. True when there are any."""
        sequence = target.sequence
        limit = min(target.max_draft_tokens, target.end - target.committed - 1)
        if limit > 0 and sequence.num_uncomputed <= self.engine.config.max_step_tokens // 2:
            sequence.truncate(target.committed)
            sequence.token_ids.extend(target.proposals.following(target.committed, target.digest, limit))
        return len(sequence) > target.committed
