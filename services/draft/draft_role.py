"""The draft's role: it follows its own picks, ahead of what the target has decided, and proposes them.

The sequence in the engine is the committed text (the root), then the draft's own path. The draft never waits: while a
proposal is being verified it goes on along its path, up to a bound. A commit moves the root; where the path departs
from what the target decided, the path is cut and drafting goes on from the target's token.
"""

from collections.abc import Callable
from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from typing import NamedTuple

from services.common.digest import EMPTY_DIGEST, extend_digest
from services.engine.engine import Engine
from services.engine.engine_loop import Outbox
from services.engine.model_runner import Result
from services.engine.sequence import Sequence


class Proposed(NamedTuple):
    """Tokens that the draft expects after an anchor. See `Proposal` in speculation.proto."""

    position: int
    digest: int
    token_ids: list[int]


@dataclass(slots=True, eq=False)
class DraftSequence:
    """A sequence that the draft runs ahead of. Owned by the engine's thread."""

    sequence: Sequence
    emit: Callable[[object], None]
    """Delivers a Proposed, or the exception that ended the sequence."""
    max_draft_tokens: int
    """Tokens of one proposal."""
    end: int
    """Length that the text cannot exceed."""
    ahead: bool = True
    """Whether drafting goes on while a proposal is being verified."""
    root: int = 0
    """Committed length."""
    root_digest: int = EMPTY_DIGEST
    sent: int = 0
    """Length up to which the path has been proposed."""
    sent_digest: int = EMPTY_DIGEST
    pending: int | None = None
    """The next token of the path, held back while the path is as far ahead as it may be."""

    @property
    def max_ahead(self) -> int:
        """Tokens that the path may be ahead of the root: the block under verification, then its bonus and the next."""
        return 2 * self.max_draft_tokens + 2 if self.ahead else self.max_draft_tokens


class DraftRole:
    """Turns picks into proposals. Runs on the engine's thread."""

    def __init__(self, engine: Engine, outbox: Outbox) -> None:
        self.engine = engine
        self._outbox = outbox
        self._by_sequence: dict[Sequence, DraftSequence] = {}
        self._eos = frozenset(engine.description.eos_token_ids)
        self._vocab_size = engine.description.vocab_size

    def open(self, draft: DraftSequence) -> None:
        """Takes a sequence in. Limits have been checked."""
        sequence = draft.sequence
        draft.root = draft.sent = len(sequence)
        draft.root_digest = draft.sent_digest = extend_digest(EMPTY_DIGEST, sequence.token_ids)
        self._by_sequence[sequence] = draft
        self.engine.add(sequence)

    def commit(self, draft: DraftSequence, position: int, token_ids: Tokens[int]) -> None:
        """Moves the root to the end of the committed tokens [position, position + len(token_ids))."""
        sequence = draft.sequence
        if sequence not in self._by_sequence or position > draft.root:
            return
        if any(token_id >= self._vocab_size for token_id in token_ids):
            return
        fresh = token_ids[draft.root - position :]
        path = sequence.token_ids[draft.root :]
        if draft.pending is not None:
            path.append(draft.pending)
        same = 0
        while same < min(len(fresh), len(path)) and fresh[same] == path[same]:
            same += 1
        at = draft.root
        draft.root += len(fresh)
        draft.root_digest = extend_digest(draft.root_digest, fresh)
        agrees = same == len(fresh)
        if not agrees:
            sequence.truncate(at + same)
            sequence.token_ids.extend(fresh[same:])
            draft.pending = None
        elif draft.root > len(sequence) and draft.pending is not None:
            sequence.token_ids.append(draft.pending)
            draft.pending = None
        sequence.first_logits = len(sequence) - 1
        sequence.num_settled = draft.root
        if not agrees or draft.root > draft.sent:
            draft.sent, draft.sent_digest = draft.root, draft.root_digest
        self._go_on(draft)

    def close(self, draft: DraftSequence) -> None:
        """Lets a sequence go."""
        if self._by_sequence.pop(draft.sequence, None) is not None:
            self.engine.remove(draft.sequence)

    def advance(self, results: list[Result]) -> None:
        """Extends paths by the step's picks and proposes what is long enough."""
        for result in results:
            draft = self._by_sequence[result.sequence]
            draft.pending = result.token_ids[-1]
            self._go_on(draft)

    def fail(self, error: BaseException) -> None:
        """Ends every sequence with the error."""
        for draft in self._by_sequence.values():
            self._outbox.put(draft.emit, error)

    def _go_on(self, draft: DraftSequence) -> None:
        """Appends the pending token as far as the bounds allow, and proposes."""
        sequence = draft.sequence
        if draft.pending is not None and not self._far_enough(draft):
            sequence.token_ids.append(draft.pending)
            sequence.first_logits = len(sequence) - 1
            draft.pending = None
        unsent = len(sequence) - draft.sent
        if unsent >= draft.max_draft_tokens or (unsent > 0 and self._far_enough(draft)):
            token_ids = sequence.token_ids[draft.sent :]
            self._outbox.put(draft.emit, Proposed(draft.sent, draft.sent_digest, token_ids))
            draft.sent_digest = extend_digest(draft.sent_digest, token_ids)
            draft.sent = len(sequence)

    def _far_enough(self, draft: DraftSequence) -> bool:
        """Whether the path may not grow: at its bound, or past the root at an end-of-sequence token."""
        sequence = draft.sequence
        if len(sequence) >= min(draft.end, draft.root + draft.max_ahead):
            return True
        return len(sequence) > draft.root and not sequence.params.ignore_eos and sequence.token_ids[-1] in self._eos
