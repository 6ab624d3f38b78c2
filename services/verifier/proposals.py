"""Proposals of one sequence, found by the place that they continue.

Every proposed token is indexed by the anchor (position, digest) before it, so whichever proposal a sequence's new end
falls into, or follows, is found in one look-up: continuations, proposals drafted ahead and branches are all the same.
Stale, repeated or reordered proposals need no special case: no look-up ever reaches them.
"""

from collections import abc
from typing import NamedTuple

from services.common.digest import extend_digest

MAX_AHEAD = 256
"""Tokens past the committed end that are kept; a proposal that reaches further is cut."""
MAX_INDEXED = 4096
"""Most proposed tokens kept of a sequence; the oldest go first."""


class _Next(NamedTuple):
    """A proposed token and the digest after it."""

    token_id: int
    digest: int
    confidence: float | None


class ProposalIndex:
    """Proposed next tokens by anchor. Bounded, whatever a draft sends."""

    def __init__(self) -> None:
        self._next: dict[tuple[int, int], _Next] = {}

    def add(
        self, position: int, digest: int, token_ids: abc.Sequence[int], end: int, confidences: abc.Sequence[int] = ()
    ) -> None:
        """Takes tokens that follow (position, digest). `end` is the committed length.

        `confidences` says of each token how sure the draft is, in 255ths; unless there is one a token they are ignored.
        """
        if not end - MAX_AHEAD <= position <= end + MAX_AHEAD:
            return
        has_confidences = len(confidences) == len(token_ids)
        for index, token_id in enumerate(token_ids[: end + MAX_AHEAD - position]):
            after = extend_digest(digest, (token_id,))
            if position >= end:
                self._next.pop((position, digest), None)
                self._next[position, digest] = _Next(
                    token_id, after, confidences[index] / 255 if has_confidences else None
                )
            position += 1
            digest = after
        while len(self._next) > MAX_INDEXED:
            del self._next[next(iter(self._next))]

    def following(self, position: int, digest: int, limit: int) -> list[tuple[int, float | None]]:
        """At most `limit` proposed tokens, with confidences, that continue the text from (position, digest) on."""
        tokens: list[tuple[int, float | None]] = []
        while len(tokens) < limit:
            found = self._next.get((position, digest))
            if found is None:
                break
            tokens.append((found.token_id, found.confidence))
            position, digest = position + 1, found.digest
        return tokens

    def forget_before(self, position: int) -> None:
        """Drops what lies before the committed end."""
        for anchor in [anchor for anchor in self._next if anchor[0] < position]:
            del self._next[anchor]

    def __len__(self) -> int:
        return len(self._next)
