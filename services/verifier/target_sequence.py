"""A sequence under verification, and what is on offer to continue it."""

from collections import abc
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from services.common.digest import EMPTY_DIGEST
from services.engine.sampler import RowLogprobs
from services.engine.sequence import Sequence
from services.verifier.accept import Finish
from services.verifier.acceptance import Acceptance
from services.verifier.pacing import Pacing
from services.verifier.proposals import ProposalIndex
from services.verifier.suffix_index import SuffixIndex

_MAX_INDEXED_TOKENS = 32_768
"""Tokens of a text in which its end is looked for; the older half is forgotten at once."""


class Origin(StrEnum):
    """Where the proposed tokens of a round came from."""

    NONE = "none"
    DRAFT = "draft"
    SUFFIX = "suffix"


class Offer(NamedTuple):
    """Tokens that may continue a sequence."""

    origin: Origin
    token_ids: list[int]
    survival: list[float]
    """Probability that the first 1, 2, ... of them are all accepted."""
    confidences: list[float | None]
    """What the draft says of each token; None where it says nothing."""
    match_length: int

    def first(self, count: int) -> "Offer":
        """The offer cut to so many tokens."""
        if not count:
            return NO_OFFER
        return self._replace(token_ids=self.token_ids[:count], confidences=self.confidences[:count])


NO_OFFER = Offer(Origin.NONE, [], [], [], 0)


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
    num_wanted: int
    origin: Origin
    was_ready: bool
    """Whether its proposal was there when the round could begin."""
    waited_seconds: float
    """How long the round was put off for a proposal."""
    adapter: str = ""
    """Digest of the adapter, or empty."""


Event = Committed | BaseException
"""What a sequence emits: commits, or the error that ended it."""


@dataclass(slots=True, eq=False)
class TargetSequence:
    """A sequence under verification. Owned by the engine's thread."""

    sequence: Sequence
    emit: abc.Callable[[Event], None]
    max_draft_tokens: int
    end: int
    """Length at which it ends."""
    adapter: str = ""
    """Digest of the adapter that it is computed with; empty for the base model."""
    ends: dict[int, Finish] = field(default_factory=dict)
    """Tokens behind which it ends, and why it then does."""
    draft: str = ""
    """Digest of the revision of the draft that may propose; empty: none is there."""
    draft_is_apart: bool = False
    """Whether that draft takes nothing from the target: it runs on another machine or device."""
    digest: int = EMPTY_DIGEST
    """Digest of the committed tokens. What is known when the sequence is opened, the engine's thread is spared."""
    committed: int = 0
    wanted: int = 0
    """Proposed tokens that its next round would take."""
    proposals: ProposalIndex = field(default_factory=ProposalIndex)
    suffixes: SuffixIndex = field(default_factory=SuffixIndex)
    acceptance: Acceptance = field(default_factory=Acceptance)
    pacing: Pacing = field(default_factory=Pacing)
    waiting_until: float = 0.0
    taken: Offer = NO_OFFER
    """What the next step verifies."""
    undecided: bool = True
    """Whether nothing was prepared yet since the last commit."""
    was_ready: bool = False
    waiting_since: float | None = None
    waited_seconds: float = 0.0
    """So long its next round was put off for a proposal until now."""
    done: bool = False

    @property
    def num_due(self) -> int:
        """Committed tokens that are not computed yet: 1 while it decodes."""
        return self.committed - self.sequence.num_computed

    @property
    def room(self) -> int:
        """Most proposed tokens that its next round may verify."""
        return max(0, min(self.max_draft_tokens, self.end - self.committed - 1))

    @property
    def expected_tokens(self) -> float:
        """Tokens that a round with as many proposed tokens as it wants is expected to commit."""
        return 1 + sum(self.acceptance.of_next(self.wanted))

    def wait(self, now: float) -> None:
        """Puts its next round off for a proposal."""
        if self.waiting_since is None:
            self.waiting_since = now
        self.sequence.hold_until = self.waiting_until

    def go_on(self, now: float) -> None:
        """Puts it off no longer."""
        if self.waiting_since is not None:
            self.waited_seconds += now - self.waiting_since
            self.waiting_since = None
        self.sequence.hold_until = 0.0

    def take(self, offer: Offer) -> None:
        """Puts proposed tokens behind the committed ones, in place of those that were there."""
        self.sequence.truncate(self.committed)
        self.sequence.token_ids.extend(offer.token_ids)
        self.taken = offer

    def catch_up(self, most: int) -> bool:
        """Indexes committed tokens, at most so many at once. True when all are that are remembered."""
        if self.committed - self.suffixes.start > _MAX_INDEXED_TOKENS:
            self.suffixes = SuffixIndex(self.committed - _MAX_INDEXED_TOKENS // 2)
        done = self.suffixes.start + len(self.suffixes)
        if done < self.committed:
            self.suffixes.extend(self.sequence.token_ids[done : min(self.committed, done + most)])
        return self.committed <= done + most

    def produced(self) -> abc.Sequence[int]:
        """The tokens behind the prompt."""
        return self.sequence.token_ids[self.sequence.num_prompt_tokens : self.committed]
