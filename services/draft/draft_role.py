"""The draft's role: it follows its own picks, ahead of what the target has decided, and proposes them.

The committed text (the root) is followed by the draft's own path. While a proposal is being verified the draft goes on
along that path and prepares branches: other ways that the target's picks may take. A commit moves the root to where the
target went; the path or branch that goes the same way stays, and what fell away is freed.
"""

import math
import time
from collections.abc import Callable
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field

from services.common.digest import EMPTY_DIGEST, extend_digest
from services.draft.branching import Outcome, affordable_rows, outcomes
from services.draft.confidence import NUM_RUNNERS_UP, Confidence
from services.draft.path import Path
from services.engine.engine import Engine
from services.engine.engine_loop import Outbox
from services.engine.model_runner import Result
from services.engine.sequence import Sequence

_MAX_WANTED_AT_FIRST = 6
_BRANCH_TOKENS = 4
_BRANCH_PRIORITY = -(1 << 31)
"""Below every request's: branches are computed last, and lose their blocks first."""
_SMOOTHING = 0.2
_MIN_SURVIVAL = 0.02, 0.5
_MIN_SURVIVAL_AHEAD = 0.05
_FIRST_STEP_TOKENS = 0.05
"""Tokens that the target decides in the time of one draft step, until it is measured."""
_URGENT_FACTOR = 1.2
"""How much longer branches may make a step that a verifier is waiting for."""
_NEVER = math.inf


@dataclass(slots=True, eq=False)
class DraftSequence:
    """A sequence that the draft runs ahead of. Owned by the engine's thread."""

    sequence: Sequence
    emit: Callable[[object], None]
    """Delivers a Proposed, or the exception that ended the sequence."""
    max_draft_tokens: int
    """Most tokens of one proposal."""
    end: int
    """Length that the text cannot exceed."""
    ahead: bool = True
    """Whether drafting goes on while a proposal is being verified."""
    root: int = 0
    """Committed length."""
    root_digest: int = EMPTY_DIGEST
    path: Path = field(init=False)
    branches: dict[tuple[int, int], Path] = field(default_factory=dict)
    """By the position and the token that begin them."""
    wanted: int = field(init=False)
    """Tokens that the verifier would take in one round."""
    verifying_since: float | None = None
    verify_seconds: float = 0.0
    """Smoothed time from a proposal to the commit that answers it."""
    committed_at: float | None = None
    tokens_per_second: float = 0.0

    def __post_init__(self) -> None:
        self.wanted = min(self.max_draft_tokens, _MAX_WANTED_AT_FIRST)

    @property
    def max_ahead(self) -> int:
        """Tokens that the path may be ahead of the root: the block under verification, then its bonus and the next."""
        return 2 * self.wanted + 2 if self.ahead and self.wanted else self.wanted

    @property
    def is_awaited(self) -> bool:
        """Whether the verifier has nothing of this sequence to verify."""
        return self.wanted > 0 and self.path.sent <= self.root


class DraftRole:
    """Turns picks into proposals. Runs on the engine's thread."""

    def __init__(
        self, engine: Engine, outbox: Outbox, max_branches: int = 16, confidence: Confidence | None = None
    ) -> None:
        self.engine = engine
        self.num_branches = 0
        """Branches begun since the start."""
        self.num_branches_taken = 0
        """Branches that the target's picks went along."""
        self._outbox = outbox
        self._max_branches = max_branches
        self._confidence = confidence or Confidence()
        self._drafts: dict[DraftSequence, None] = {}
        self._by_sequence: dict[Sequence, tuple[DraftSequence, Path]] = {}
        self._eos = frozenset(engine.description.eos_token_ids)
        self._vocab_size = engine.description.vocab_size

    def open(self, draft: DraftSequence) -> None:
        """Takes a sequence in. Limits have been checked."""
        sequence = draft.sequence
        sequence.num_runners_up = NUM_RUNNERS_UP
        draft.root = len(sequence)
        draft.root_digest = extend_digest(EMPTY_DIGEST, sequence.token_ids)
        draft.path = Path(sequence, draft.root, draft.root, draft.root_digest)
        self._drafts[draft] = None
        self._by_sequence[sequence] = draft, draft.path
        self.engine.add(sequence)

    def commit(self, draft: DraftSequence, position: int, token_ids: Tokens[int], wanted: int) -> None:
        """Moves the root to the end of the committed tokens [position, position + len(token_ids)).

        `wanted` is how many proposed tokens the verifier would take in its next round.
        """
        if draft not in self._drafts or position > draft.root:
            return
        if any(token_id >= self._vocab_size for token_id in token_ids):
            return
        fresh = list(token_ids[draft.root - position :])
        self._learn(draft, fresh)
        draft.wanted = min(wanted, draft.max_draft_tokens)
        self._follow(draft, fresh)
        draft.root_digest = extend_digest(draft.root_digest, fresh)
        draft.root += len(fresh)
        draft.path.settle(draft.root, draft.root_digest)
        for path in draft.branches.values():
            path.sequence.num_settled = draft.root
        draft.path.sequence.hold_until = 0.0
        if draft.path.sent > draft.root:
            draft.verifying_since = time.monotonic()
        self._go_on(draft)

    def close(self, draft: DraftSequence) -> None:
        """Lets a sequence go."""
        if draft in self._drafts:
            del self._drafts[draft]
            self._drop(draft.path)
            self._drop_branches(draft)

    def prepare(self, now: float) -> None:
        """Begins branches as far as there is time for them, and holds back those for which there is none."""
        ahead = [draft for draft in self._drafts if draft.ahead and draft.verifying_since is not None and draft.wanted]
        if not ahead:
            return
        rows = self._branch_rows(ahead, now)
        running = [path for draft in ahead for path in draft.branches.values() if not path.done]
        running.sort(key=lambda path: -path.probability)
        for index, path in enumerate(running):
            path.sequence.hold_until = 0.0 if index < rows else _NEVER
        rows = min(rows - len(running), self.engine.pool.num_available // 2)
        if rows <= 0:
            return
        found = [
            (outcome, draft)
            for draft in ahead
            for outcome in self._outcomes(draft)
            if (outcome.position, outcome.token_id) not in draft.branches
        ]
        found.sort(key=lambda pair: -pair[0].probability)
        for (probability, position, token_id), draft in found[:rows]:
            self._branch(draft, position, token_id, probability)

    def advance(self, results: list[Result]) -> None:
        """Extends paths by the step's picks and proposes what is long enough."""
        for result in results:
            draft, path = self._by_sequence[result.sequence]
            guess = self._confidence.guess(result.token_ids[-1], result.runners_up[-1], result.sequence.params)
            path.guesses[result.first + len(result.token_ids) - 1] = guess
            if path is draft.path:
                self._go_on(draft)
            else:
                path.append_pending()
                if len(path.sequence) >= min(path.until, draft.end) or self._has_ended(path, path.start):
                    path.done, path.sequence.hold_until = True, _NEVER
                    self._propose(draft, path)

    def fail(self, error: BaseException) -> None:
        """Ends every sequence with the error."""
        for draft in self._drafts:
            self._outbox.put(draft.emit, error)

    def _learn(self, draft: DraftSequence, fresh: list[int]) -> None:
        """Compares what was guessed with what came, and how long it took."""
        now = time.monotonic()
        for at, token_id in enumerate(fresh, draft.root):
            guess = draft.path.guesses.get(at)
            if guess is None:
                break
            self._confidence.observe(guess, token_id, draft.sequence.params)
            if guess.token_id != token_id:
                break
        if draft.verifying_since is not None:
            draft.verify_seconds = _smooth(draft.verify_seconds, now - draft.verifying_since)
            draft.verifying_since = None
        if draft.committed_at is not None and now > draft.committed_at:
            draft.tokens_per_second = _smooth(draft.tokens_per_second, len(fresh) / (now - draft.committed_at))
        draft.committed_at = now

    def _follow(self, draft: DraftSequence, fresh: list[int]) -> None:
        """Makes the way that the text went the path; drops all others."""
        root, size = draft.root, len(fresh)
        kept = draft.path
        if kept.agreement(root, fresh) < size:
            taken = [path for path in draft.branches.values() if path.agreement(root, fresh) == size]
            if taken:
                kept = max(taken, key=lambda path: len(path.sequence))
                self._take_branch(draft, kept)
        agreed = kept.agreement(root, fresh)
        if agreed == size and root + size > len(kept.sequence):
            kept.append_pending()
        elif agreed < size:
            kept.cut(root + agreed)
            kept.sequence.token_ids.extend(fresh[agreed:])
            kept.sent = min(kept.sent, root)
        for key, path in list(draft.branches.items()):
            if key[0] < root + size or path.agreement(root, fresh) < size:
                del draft.branches[key]
                self._drop(path)

    def _take_branch(self, draft: DraftSequence, path: Path) -> None:
        self.num_branches_taken += 1
        draft.branches = {key: other for key, other in draft.branches.items() if other is not path}
        priority = draft.sequence.priority
        self._drop(draft.path)
        draft.path, draft.sequence = path, path.sequence
        self.engine.scheduler.prioritise(path.sequence, priority)

    def _go_on(self, draft: DraftSequence) -> None:
        """Appends the path's next token as far as that may pay, and proposes."""
        path, sequence = draft.path, draft.path.sequence
        if path.pending is not None and not self._far_enough(draft):
            path.append_pending()
        stops = self._far_enough(draft) or not self._pays(draft)
        sequence.hold_until = _NEVER if stops and len(sequence) > draft.root else 0.0
        enough = draft.wanted if draft.is_awaited else max(1, draft.wanted // 2)
        unsent = len(sequence) - max(path.sent, draft.root)
        if unsent > 0 and draft.wanted and (stops or unsent >= enough):
            self._propose(draft, path)

    def _propose(self, draft: DraftSequence, path: Path) -> None:
        if path is draft.path and draft.is_awaited:
            draft.verifying_since = time.monotonic()
        if len(path.sequence) > path.sent:
            self._outbox.put(draft.emit, path.take_unsent())

    def _far_enough(self, draft: DraftSequence) -> bool:
        """Whether the path may not grow: at its bound, or past the root at an end-of-sequence token."""
        size = len(draft.path.sequence)
        return size >= min(draft.end, draft.root + draft.max_ahead) or self._has_ended(draft.path, draft.root)

    def _has_ended(self, path: Path, root: int) -> bool:
        sequence = path.sequence
        return len(sequence) > root and not sequence.params.ignore_eos and sequence.token_ids[-1] in self._eos

    def _pays(self, draft: DraftSequence) -> bool:
        """Whether one more token is likely enough to be worth its time.

        While the verifier waits, a step of the draft and a row of the verifier cost about twice a draft's step, in
        which time the target decides so many tokens anyway. Ahead, time is free until the commit comes.
        """
        size = len(draft.path.sequence)
        survival = draft.path.survival(size)
        if not draft.is_awaited:
            return survival >= _MIN_SURVIVAL_AHEAD
        step_seconds = self.engine.step_times.seconds(1)
        tokens = 2 * step_seconds * draft.tokens_per_second or _FIRST_STEP_TOKENS
        low, high = _MIN_SURVIVAL
        return survival >= min(high, max(low, tokens))

    def _outcomes(self, draft: DraftSequence) -> list[Outcome]:
        path = draft.path
        end = min(path.sent, draft.root + draft.wanted) + 1
        guesses = []
        for at in range(draft.root, end):
            if at not in path.guesses:
                break
            guesses.append(path.guesses[at])
        params = draft.sequence.params
        return outcomes(guesses, draft.root, 1.0, lambda rank: self._confidence.share(rank, params))

    def _branch(self, draft: DraftSequence, position: int, token_id: int, probability: float) -> None:
        """Begins the way on which the target picks this token at this position."""
        tokens = draft.path.sequence.token_ids[draft.root : position]
        digest = extend_digest(draft.root_digest, [*tokens, token_id])
        sequence = self.engine.scheduler.fork(draft.path.sequence, position, _BRANCH_PRIORITY)
        sequence.token_ids.append(token_id)
        sequence.first_logits = position
        path = Path(sequence, position + 1, position + 1, digest, probability)
        path.until = position + 1 + min(draft.wanted, _BRANCH_TOKENS)
        if position + 1 >= draft.end or (token_id in self._eos and not sequence.params.ignore_eos):
            path.done, sequence.hold_until = True, _NEVER
        draft.branches[position, token_id] = path
        self._by_sequence[sequence] = draft, path
        self.num_branches += 1

    def _branch_rows(self, ahead: list[DraftSequence], now: float) -> int:
        """Branches that the next steps may compute beside the paths."""
        seconds = self.engine.step_times.seconds
        running = [draft for draft in self._drafts if draft.path.sequence.num_uncomputed
                   and draft.path.sequence.hold_until <= now]  # fmt: skip
        mains = len(running)
        if any(draft.is_awaited for draft in running):
            limit = _URGENT_FACTOR * seconds(mains)
        else:
            left = max(draft.verify_seconds - (now - (draft.verifying_since or now)) for draft in ahead)
            limit = max(left, 0.0) / _BRANCH_TOKENS
        return affordable_rows(lambda rows: seconds(mains + rows) if rows else 0.0, limit, self._max_branches)

    def _drop(self, path: Path) -> None:
        del self._by_sequence[path.sequence]
        self.engine.remove(path.sequence)

    def _drop_branches(self, draft: DraftSequence) -> None:
        for path in draft.branches.values():
            self._drop(path)
        draft.branches.clear()


def _smooth(old: float, new: float) -> float:
    return old + _SMOOTHING * (new - old) if old else new
