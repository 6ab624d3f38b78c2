"""Begins branches as far as there is time for them, and holds back those for which there is none."""

from collections import abc

from services.common.digest import extend_digest
from services.draft.branching import Outcome, affordable_rows
from services.draft.confidence import Confidence
from services.draft.draft_sequence import NEVER, DraftSequence
from services.draft.path import Path
from services.engine.engine import Engine

_BRANCH_TOKENS = 4
_BRANCH_PRIORITY = -(1 << 31)
"""This is below every request's priority: branches are computed last, and lose their blocks first."""
_URGENT_FACTOR = 1.2
"""How much longer branches may make a step that a verifier is waiting for."""


class Brancher:
    """Shares the rows of the next steps among the branches of all sequences, likeliest first."""

    def __init__(self, engine: Engine, confidence: Confidence, max_branches: int) -> None:
        self.num_begun = 0
        """Branches begun since the start."""
        self._engine = engine
        self._confidence = confidence
        self._max_branches = max_branches

    def pace(self, drafts: abc.Collection[DraftSequence], now: float) -> abc.Iterator[tuple[DraftSequence, Path]]:
        """Holds back and lets go those that there are; yields those newly begun."""
        ahead = [draft for draft in drafts if draft.ahead and draft.verifying_since is not None and draft.wanted]
        if not ahead:
            return
        rows = self._affordable(drafts, ahead, now)
        running = [path for draft in ahead for path in draft.branches.values() if not path.done]
        running.sort(key=lambda path: -path.probability)
        for index, path in enumerate(running):
            path.sequence.hold_until = 0.0 if index < rows else NEVER
        rows = min(rows - len(running), self._engine.pool.num_available // 2)
        if rows <= 0:
            return
        found = [
            (outcome, draft)
            for draft in ahead
            for outcome in draft.outcomes(self._confidence)
            if (outcome.position, outcome.token_id) not in draft.branches
        ]
        found.sort(key=lambda pair: -pair[0].probability)
        for outcome, draft in found[:rows]:
            yield draft, self._begin(draft, outcome)

    def _begin(self, draft: DraftSequence, outcome: Outcome) -> Path:
        """Begins the way on which the target picks this token at this position."""
        probability, position, token_id = outcome
        tokens = draft.path.sequence.token_ids[draft.root : position]
        digest = extend_digest(draft.root_digest, [*tokens, token_id])
        sequence = self._engine.scheduler.fork(draft.path.sequence, position, _BRANCH_PRIORITY)
        sequence.token_ids.append(token_id)
        sequence.first_logits = position
        path = Path(sequence, position + 1, position + 1, digest, probability)
        path.until = min(draft.end, position + 1 + min(draft.wanted, _BRANCH_TOKENS))
        if position + 1 >= draft.end or path.ends_at_eos(position, self._engine.facts.description.eos_token_ids):
            path.done, sequence.hold_until = True, NEVER
        draft.branches[position, token_id] = path
        self.num_begun += 1
        return path

    def _affordable(
        self, drafts: abc.Collection[DraftSequence], ahead: abc.Collection[DraftSequence], now: float
    ) -> int:
        """Branches that the next steps may compute beside the paths."""
        seconds = self._engine.step_times.seconds
        running = [
            draft for draft in drafts if draft.path.sequence.num_uncomputed and draft.path.sequence.hold_until <= now
        ]
        mains = len(running)
        if any(draft.is_awaited for draft in running):
            limit = _URGENT_FACTOR * seconds(mains)
        else:
            left = max(draft.verify_seconds - (now - (draft.verifying_since or now)) for draft in ahead)
            limit = max(left, 0.0) / _BRANCH_TOKENS
        return affordable_rows(lambda rows: seconds(mains + rows) if rows else 0.0, limit, self._max_branches)
