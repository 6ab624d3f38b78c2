"""What becomes of proposed tokens: those that equal the target's own picks are accepted, and a pick follows them.

The target picked every token by itself, knowing only the tokens before it. A proposal says which of these picks it may
make in one step; it never changes one (design, section 3: accept if equal).
"""

from collections import abc
from enum import Enum, auto
from typing import NamedTuple


class Finish(Enum):
    """Why a sequence ended."""

    EOS = auto()
    """It came to an end-of-sequence token."""
    STOP = auto()
    """It came to a token that was to end it."""
    LENGTH = auto()
    """It is as long as it may be."""


class Accepted(NamedTuple):
    """What a round decided."""

    token_ids: list[int]
    """These tokens were decided, all of them picks of the target."""
    num_accepted: int
    """So many of them, from the first on, were proposed."""
    finish: Finish | None


def accept(
    proposed: abc.Sequence[int], picks: abc.Sequence[int], ends: abc.Mapping[int, Finish], room: int
) -> Accepted:
    """Decides a round that verified `proposed`.

    `picks[j]` is what the target picks behind the first j proposed tokens; there are at most one more of them than of
    those. The sequence ends behind a token of `ends`, and when it has `room` more tokens, one at least.
    """
    token_ids: list[int] = []
    num_accepted = 0
    finish: Finish | None = None
    for index, pick in enumerate(picks):
        token_ids.append(pick)
        matches = index < len(proposed) and proposed[index] == pick
        num_accepted += matches
        finish = ends.get(pick)
        if finish is None and len(token_ids) >= room:
            finish = Finish.LENGTH
        if finish is not None or not matches:
            break
    return Accepted(token_ids, num_accepted, finish)
