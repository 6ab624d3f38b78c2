"""Which tokens a row of an attention layer sees, read from the mask that a model makes for it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

_ROWS = (0, 1, 6, 63, 1000, 4097, 33_333, 131_071, 262_144)
"""Positions of rows at which a mask is looked at."""
_BEYOND = 8


class Reach(NamedTuple):
    """A row sees itself and tokens before it: all of them, or as many as there are here."""

    window: int | None = None
    """A window is how many tokens a row sees, its own included."""
    chunk: int | None = None
    """A text is cut into chunks of so many tokens, of which a row sees its own."""

    def first(self, position: int) -> int:
        """The first token that the row at a position sees."""
        least = 0 if self.window is None else position - self.window + 1
        return max(0, least, 0 if self.chunk is None else position // self.chunk * self.chunk)


class ReachError(ValueError):
    """A mask of another kind. The message is the end of a sentence about the model."""


def read_reach(mask_function: Callable[..., torch.Tensor]) -> Reach:
    """What a mask function of `transformers` (batch, head, row, key -> visible) lets rows see. Raises ReachError."""
    firsts = {row: _first_seen(mask_function, row) for row in _ROWS}
    widths = {row - first + 1 for row, first in firsts.items() if first > 0}
    if not widths:
        return Reach()
    candidates = [Reach(window=max(widths))]
    last, first = max(firsts.items())
    if (before := _first_seen(mask_function, first - 1) if first else None) is not None:
        candidates.append(Reach(chunk=first - before))
    for reach in candidates:
        if all(reach.first(row) == seen for row, seen in firsts.items()) and reach.first(last) == first:
            return reach
    raise ReachError("masks its attention in a way that is neither causal nor by windows or chunks")


def _first_seen(mask_function: Callable[..., Any], row: int) -> int:
    """The first token that a row sees, if it sees all from there to itself and none behind."""
    keys = torch.arange(row + _BEYOND)
    zero = torch.zeros((), dtype=torch.long)
    try:
        seen = torch.broadcast_to(mask_function(zero, zero, torch.tensor(row), keys), keys.shape)
    except Exception as error:
        raise ReachError(f"masks its attention in a way that cannot be read ({type(error).__name__})") from error
    visible = seen.nonzero().flatten()
    if not len(visible) or int(visible[-1]) != row or int(visible[0]) != row - len(visible) + 1:
        raise ReachError("has rows that do not see all tokens from some one on to themselves, and no others")
    return int(visible[0])
