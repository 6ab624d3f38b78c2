"""A sequence that the draft runs ahead of: what is committed, the draft's own path, and branches."""

import math
from collections import abc
from dataclasses import dataclass, field

from services.common.digest import EMPTY_DIGEST, extend_digest
from services.draft.branching import Outcome, outcomes
from services.draft.confidence import Confidence
from services.draft.path import Path, Proposed
from services.engine.sequence import Sequence

Event = Proposed | BaseException
"""What a sequence emits: proposals, or the error that ended it."""
NEVER = math.inf
_MAX_WANTED_AT_FIRST = 6
_SMOOTHING = 0.2


@dataclass(slots=True, eq=False)
class DraftSequence:
    """Owned by the engine's thread."""

    opened: Sequence
    """As it was opened: parameters and priority. Its path may have become a fork of it."""
    emit: abc.Callable[[Event], None]
    max_draft_tokens: int
    """Most tokens of one proposal."""
    end: int
    """Length that the text cannot exceed."""
    ahead: bool = True
    """Whether drafting goes on while a proposal is being verified."""
    root: int = 0
    """Committed length."""
    root_digest: int = EMPTY_DIGEST
    """Digest of the committed tokens. What is known when the sequence is opened, the engine's thread is spared."""
    path: Path = field(init=False)
    branches: dict[tuple[int, int], Path] = field(default_factory=dict)
    """Branches are found by the position and the token that begin them."""
    wanted: int = field(init=False)
    """Tokens that the verifier would take in one round."""
    verifying_since: float | None = None
    verify_seconds: float = 0.0
    """Smoothed time from a proposal to the commit that answers it."""
    committed_at: float | None = None
    tokens_per_second: float = 0.0

    def __post_init__(self) -> None:
        self.wanted = min(self.max_draft_tokens, _MAX_WANTED_AT_FIRST)

    def begin(self) -> None:
        """Begins the path behind the text as it was opened."""
        self.root = len(self.opened)
        if self.root_digest == EMPTY_DIGEST:
            self.root_digest = extend_digest(EMPTY_DIGEST, self.opened.token_ids)
        self.path = Path(self.opened, self.root, self.root, self.root_digest)

    @property
    def paths(self) -> abc.Iterable[Path]:
        """Its own path, then the branches."""
        return self.path, *self.branches.values()

    @property
    def max_ahead(self) -> int:
        """Tokens that the path may be ahead of the root: the block under verification, then its bonus and the next."""
        return 2 * self.wanted + 2 if self.ahead and self.wanted else self.wanted

    @property
    def is_awaited(self) -> bool:
        """Whether the verifier has nothing of this sequence to verify."""
        return self.wanted > 0 and self.path.sent <= self.root

    @property
    def is_far_enough(self) -> bool:
        """Whether the path is as long as it may be."""
        return len(self.path.sequence) >= min(self.end, self.root + self.max_ahead)

    def move_root(self, fresh: list[int], now: float) -> None:
        """The text was decided further; the path goes along it already."""
        self.root_digest = extend_digest(self.root_digest, fresh)
        self.root += len(fresh)
        self.path.settle(self.root, self.root_digest)
        for path in self.branches.values():
            path.sequence.num_settled = self.root
        self.path.sequence.hold_until = 0.0
        if self.path.sent > self.root:
            self.verifying_since = now

    def learn_times(self, num_fresh: int, now: float) -> None:
        """A commit of so many tokens came."""
        if self.verifying_since is not None:
            self.verify_seconds = _smooth(self.verify_seconds, now - self.verifying_since)
            self.verifying_since = None
        if self.committed_at is not None and now > self.committed_at:
            self.tokens_per_second = _smooth(self.tokens_per_second, num_fresh / (now - self.committed_at))
        self.committed_at = now

    def outcomes(self, confidence: Confidence) -> list[Outcome]:
        """Other ways that the block under verification may turn out, likeliest first."""
        guesses = []
        for at in range(self.root, min(self.path.sent, self.root + self.wanted) + 1):
            if at not in self.path.guesses:
                break
            guesses.append(self.path.guesses[at])
        return outcomes(guesses, self.root, 1.0, lambda rank: confidence.share(rank, self.opened.params))


def _smooth(old: float, new: float) -> float:
    return old + _SMOOTHING * (new - old) if old else new
