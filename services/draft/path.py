"""One way that a text may go on: a sequence in the draft's engine with what the draft thinks of each position."""

import math
from collections import abc
from dataclasses import dataclass, field
from typing import NamedTuple

from services.common.digest import extend_digest
from services.draft.confidence import Guess
from services.engine.sequence import Sequence


class Proposed(NamedTuple):
    """Tokens that the draft expects after an anchor. See `Proposal` in speculation.proto."""

    position: int
    digest: int
    token_ids: list[int]
    confidences: bytes
    step_seconds: float = 0.0


@dataclass(slots=True, eq=False)
class Path:
    """The committed text, then tokens that the draft picked. A branch has a runner-up before its own picks."""

    sequence: Sequence
    start: int
    """Length from which on its tokens are the draft's own picks."""
    sent: int
    """Length up to which its tokens have been proposed."""
    sent_digest: int
    probability: float = 1.0
    """That the text goes as far as `start` along it."""
    guesses: dict[int, Guess] = field(default_factory=dict)
    """Guesses are found by position."""
    until: int = 0
    """Length at which a branch stops."""
    done: bool = False
    """Whether a branch has stopped."""

    @property
    def pending(self) -> int | None:
        """The next token, known and not appended yet."""
        guess = self.guesses.get(len(self.sequence))
        return None if guess is None else guess.token_id

    def survival(self, length: int) -> float:
        """Probability that the text goes along it for so many tokens."""
        confidences = (self.guesses[at].confidence for at in range(self.start, length) if at in self.guesses)
        return self.probability * math.prod(confidences)

    def ends_at_eos(self, length: int, eos_token_ids: abc.Collection[int]) -> bool:
        """Whether its last token, behind so many others, is one that ends the text."""
        sequence = self.sequence
        if len(sequence) <= length:
            return False
        last, params = sequence.token_ids[-1], sequence.params
        return last in params.stop_token_ids or (not params.ignore_eos and last in eos_token_ids)

    def agreement(self, position: int, token_ids: list[int]) -> int:
        """How many of the tokens that follow a position are its own, the pending one included."""
        own = self.sequence.token_ids[position : position + len(token_ids)]
        if len(own) < len(token_ids) and self.pending is not None:
            own.append(self.pending)
        same = 0
        while same < len(own) and own[same] == token_ids[same]:
            same += 1
        return same

    def append_pending(self) -> None:
        """Takes the next token in; it has to be computed."""
        if self.pending is not None:
            self.sequence.token_ids.append(self.pending)
            self.sequence.first_logits = len(self.sequence) - 1

    def cut(self, length: int) -> None:
        """Forgets everything from a length on."""
        self.sequence.truncate(length)
        self.guesses = {at: guess for at, guess in self.guesses.items() if at < length}

    def settle(self, root: int, root_digest: int) -> None:
        """The text is decided up to a length."""
        sequence = self.sequence
        sequence.num_settled = root
        sequence.first_logits = len(sequence) - 1
        self.start, self.probability = root, 1.0
        self.guesses = {at: guess for at, guess in self.guesses.items() if at >= root}
        if self.sent < root:
            self.sent, self.sent_digest = root, root_digest

    def take_unsent(self) -> Proposed:
        """What was not proposed yet; counts as proposed from now on."""
        position, digest = self.sent, self.sent_digest
        token_ids = self.sequence.token_ids[position:]
        confidences = bytes(round(255 * self.guesses[at].confidence) for at in range(position, len(self.sequence)))
        self.sent, self.sent_digest = len(self.sequence), extend_digest(digest, token_ids)
        return Proposed(position, digest, token_ids, confidences)
