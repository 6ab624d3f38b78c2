"""The draft's role: it follows its own picks, ahead of what the target has decided, and proposes them.

The committed text (the root) is followed by the draft's own path. While a proposal is being verified the draft goes on
along that path and prepares branches: other ways that the target's picks may take. A commit moves the root to where the
target went; the path or branch that goes the same way stays, and what fell away is freed.
"""

import time
from collections import abc

from services.draft.brancher import Brancher
from services.draft.confidence import NUM_RUNNERS_UP, Confidence
from services.draft.draft_sequence import NEVER, DraftSequence, Event
from services.draft.path import Path
from services.engine.engine import Engine
from services.engine.model_runner import Result
from services.engine.outbox import Outbox
from services.engine.readings import Reading, Readings, by_state
from services.engine.sequence import Sequence
from services.model_server.failures import to_error

_MIN_SURVIVAL = 0.02, 0.5
_MIN_SURVIVAL_AHEAD = 0.05
_FIRST_STEP_TOKENS = 0.05
"""Tokens that the target decides in the time of one draft step, until it is measured."""


class DraftRole:
    """Turns picks into proposals. Runs on the engine's thread."""

    def __init__(
        self, engine: Engine, outbox: Outbox[Event], max_branches: int = 16, confidence: Confidence | None = None
    ) -> None:
        self.engine = engine
        self.num_branches_taken = 0
        """Branches that the target's picks went along."""
        self._outbox = outbox
        self._confidence = confidence or Confidence()
        self._brancher = Brancher(engine, self._confidence, max_branches)
        self._drafts: dict[DraftSequence, None] = {}
        self._by_sequence: dict[Sequence, tuple[DraftSequence, Path]] = {}
        self._eos = frozenset(engine.facts.description.eos_token_ids)
        self._vocab_size = engine.facts.description.vocab_size
        self._context = engine.facts.max_context_tokens

    @property
    def is_awaited(self) -> bool:
        """A verifier waits for proposals."""
        return True

    def open(self, draft: DraftSequence) -> None:
        """Takes a sequence in. Limits have been checked."""
        draft.opened.num_runners_up = NUM_RUNNERS_UP
        draft.begin()
        self.engine.add(draft.opened)
        self._drafts[draft] = None
        self._by_sequence[draft.opened] = draft, draft.path

    def commit(self, draft: DraftSequence, position: int, token_ids: abc.Sequence[int], wanted: int) -> None:
        """Moves the root to the end of the committed tokens [position, position + len(token_ids)).

        `wanted` is how many proposed tokens the verifier would take in its next round. A text that has got as long as
        it may here is let go: there is nothing left to propose, and no room for it.
        """
        if draft not in self._drafts or position > draft.root:
            return
        if position + len(token_ids) >= draft.end:
            self.close(draft)
            return
        if any(token_id >= self._vocab_size for token_id in token_ids):
            return
        if position + len(token_ids) >= self._context:
            # The text has left what this model takes: there is nothing more to propose.
            self.close(draft)
            return
        draft.wanted = min(wanted, draft.max_draft_tokens)
        if fresh := list(token_ids[draft.root - position :]):
            now = time.monotonic()
            self._learn(draft, fresh)
            draft.learn_times(len(fresh), now)
            self._follow(draft, fresh)
            draft.move_root(fresh, now)
        self._go_on(draft)

    def close(self, draft: DraftSequence) -> None:
        """Lets a sequence go."""
        if draft in self._drafts:
            del self._drafts[draft]
            for path in draft.paths:
                self._drop(path)
            draft.branches.clear()

    def prepare(self, now: float) -> None:
        """Begins branches as far as there is time for them."""
        for draft, path in self._brancher.pace(self._drafts, now):
            self._by_sequence[path.sequence] = draft, path

    def advance(self, results: list[Result]) -> None:
        """Extends paths by the step's picks and proposes what is long enough."""
        for result in results:
            found = self._by_sequence.get(result.sequence)
            if found is None:  # Closed a moment ago.
                continue
            draft, path = found
            guess = self._confidence.guess(result.token_ids[-1], result.runners_up[-1], result.sequence.params)
            path.guesses[result.first + len(result.token_ids) - 1] = guess
            if path is draft.path:
                self._go_on(draft)
            else:
                path.append_pending()
                if len(path.sequence) >= path.until or path.ends_at_eos(path.start, self._eos):
                    path.done, path.sequence.hold_until = True, NEVER
                    self._propose(draft, path)

    def end(self, sequence: Sequence, error: Exception) -> None:
        """Ends the text that has a way that cannot be computed."""
        if (found := self._by_sequence.get(sequence)) is not None:  # Else another of its ways has ended it.
            draft, _ = found
            self._outbox.put(draft.emit, to_error(sequence, error))
            self.close(draft)

    def fail(self, error: BaseException) -> None:
        """Ends every sequence with the error."""
        for draft in self._drafts:
            self._outbox.put(draft.emit, error)

    def readings(self) -> Readings:
        """How many branches it began, how many of them texts took, and its sequences by what they do."""
        begun, taken = self._brancher.num_begun, self.num_branches_taken
        num_running = sum(1 for draft in self._drafts if draft.path.sequence.block_table)
        return {
            "branches": (Reading(begun, {"state": "begun"}), Reading(taken, {"state": "taken"})),
            "sequences": by_state(num_running, len(self._drafts) - num_running),
        }

    def _learn(self, draft: DraftSequence, fresh: list[int]) -> None:
        """Compares what was guessed with what came."""
        for at, token_id in enumerate(fresh, draft.root):
            guess = draft.path.guesses.get(at)
            if guess is None:
                break
            self._confidence.observe(guess, token_id, draft.opened.params)
            if guess.token_id != token_id:
                break

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
        self._drop(draft.path)
        draft.path = path
        self.engine.scheduler.prioritise(path.sequence, draft.opened.priority)

    def _go_on(self, draft: DraftSequence) -> None:
        """Appends the path's next token as far as that may pay, and proposes."""
        path, sequence = draft.path, draft.path.sequence
        if path.pending is not None and not self._is_over(draft):
            path.append_pending()
        stops = self._is_over(draft) or not self._pays(draft)
        sequence.hold_until = NEVER if stops and len(sequence) > draft.root else 0.0
        enough = draft.wanted if draft.is_awaited else max(1, draft.wanted // 2)
        unsent = len(sequence) - max(path.sent, draft.root)
        if unsent > 0 and draft.wanted and (stops or unsent >= enough):
            self._propose(draft, path)

    def _is_over(self, draft: DraftSequence) -> bool:
        """Whether the path may not grow."""
        return draft.is_far_enough or draft.path.ends_at_eos(draft.root, self._eos)

    def _propose(self, draft: DraftSequence, path: Path) -> None:
        if path is draft.path and draft.is_awaited:
            draft.verifying_since = time.monotonic()
        if len(path.sequence) > path.sent:
            step_seconds = self.engine.step_times.seconds(len(self._drafts))
            self._outbox.put(draft.emit, path.take_unsent()._replace(step_seconds=step_seconds))

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

    def _drop(self, path: Path) -> None:
        del self._by_sequence[path.sequence]
        self.engine.remove(path.sequence)
