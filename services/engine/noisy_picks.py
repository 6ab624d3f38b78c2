"""The tokens whose score / temperature and noise come to most: of a row's scores, as few as can win are looked at.

Where top-k, top-p and min-p cut, those that are kept; else, on a CPU, those that may come to more than what a few of
the likeliest come to (`services.engine.cpu.challengers`). A token's numbers are the same however many are looked at.
"""

from collections import abc
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from services.common.sampling_params import SamplingParams
from services.engine.cpu.challengers import challengers
from services.engine.noise import gumbel, row_state, signed
from services.engine.reduced_head import HeadTokens
from services.engine.truncation import Kept, likeliest

CANDIDATES = (256, 4096)
"""What is kept is looked for among so many of the likeliest tokens, one number after the other, and then among all."""
_LIKELIEST = (1, 256)
"""By so many of the likeliest tokens the others are judged; by more where these leave too many."""
_MORE = 8
"""Where several tokens are looked for: by so many of the likeliest for each behind the first."""
_FEW = 1 << 16
"""Scores of which all noise is computed as fast as it is found out which of them can win."""
_ALL = slice(None)


class Draw(NamedTuple):
    """Rows of which a token is drawn."""

    scores: torch.Tensor
    """Processed logits [rows, vocab] in float32, or [rows, columns] of a `head`."""
    temperatures: torch.Tensor
    """[rows, 1] in float64."""
    states: torch.Tensor
    """Of the noise, [rows]."""
    params: list[SamplingParams]
    head: HeadTokens | None

    @classmethod
    def of(
        cls, scores: torch.Tensor, drawn: abc.Sequence[tuple[SamplingParams, int]], head: HeadTokens | None
    ) -> "Draw":
        """Of scores, and the parameters and positions of their rows."""
        device = scores.device
        temperatures = torch.tensor([[params.temperature] for params, _ in drawn], dtype=torch.float64, device=device)
        states = torch.tensor([signed(row_state(params.seed, position)) for params, position in drawn], device=device)
        return cls(scores, temperatures, states, [params for params, _ in drawn], head)

    def take(self, rows: torch.Tensor) -> "Draw":
        """Those of these numbers, in order."""
        if len(rows) == len(self.scores):
            return self
        params = [self.params[row] for row in rows.tolist()]
        return Draw(self.scores[rows], self.temperatures[rows], self.states[rows], params, self.head)

    def noise(self, columns: torch.Tensor | None = None, rows: torch.Tensor | slice = _ALL) -> torch.Tensor:
        """Of these columns [rows, some], or of all; of these rows."""
        token_ids = columns
        if self.head is not None:
            token_ids = self.head.ids if columns is None else self.head.ids[columns]
        return gumbel(self.states[rows], self.scores.shape[-1], token_ids)


def noisy_top(draw: Draw, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` highest of each row, highest first, in float64, and their columns, [rows, count] each. What is cut
    off, or is not there, is -inf.
    """
    rest = _rows(draw, truncates=False)
    if len(rest) == len(draw.scores):
        return _of_all(draw, count)
    values = draw.scores.new_empty((len(draw.scores), count), dtype=torch.float64)
    columns = draw.states.new_empty(values.shape)
    if len(rest):
        values[rest], columns[rest] = _of_all(draw.take(rest), count)
    for rows, kept in kept_of(draw):
        values[rows], columns[rows] = _highest(kept.scaled + draw.noise(kept.columns, rows), count, kept.columns)
    return values, columns


def kept_of(draw: Draw) -> abc.Iterator[tuple[torch.Tensor, Kept]]:
    """Numbers of rows of which something is cut off, and what is kept. Rows of which not all was found come again."""
    left = _rows(draw, truncates=True)
    for count in (*CANDIDATES, draw.scores.shape[-1]):
        if not len(left):
            return
        mine = draw.take(left)
        kept = likeliest(mine.scores, mine.temperatures, mine.params, count)
        yield left, kept
        left = left[~kept.are_all]


def _rows(draw: Draw, *, truncates: bool) -> torch.Tensor:
    """Numbers of the rows of which something is cut off, or nothing."""
    rows = [number for number, params in enumerate(draw.params) if params.truncates == truncates]
    return torch.tensor(rows, dtype=torch.long, device=draw.states.device)


def _of_all(draw: Draw, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of rows of which nothing is cut off."""
    if draw.scores.device.type != "cpu" or draw.head is not None or draw.scores.numel() <= _FEW:
        return _highest((draw.scores / draw.temperatures).add_(draw.noise()), count)
    values = draw.scores.new_empty((len(draw.scores), count), dtype=torch.float64)
    columns = draw.states.new_empty(values.shape)
    left = torch.arange(len(draw.scores))
    for some in _LIKELIEST:
        mine = draw.take(left)
        _, likeliest = _highest(mine.scores, min(max(some, _MORE * (count - 1)), mine.scores.shape[-1]))
        first = likeliest[:, :1]
        bounds = _highest(_noisy(mine, likeliest), count)[0][:, -1]
        named, are_all = challengers(mine.scores, mine.temperatures, mine.states, bounds, likeliest[:, 0])
        # What is left over is filled up with the first.
        noisy = torch.cat((_noisy(mine, first), _noisy(mine, named).masked_fill(named == first, -torch.inf)), 1)
        values[left], columns[left] = _highest(noisy, count, torch.cat((first, named), 1))
        left = left[~(are_all & (bounds != -torch.inf))]
        if not len(left):
            return values, columns
    mine = draw.take(left)
    values[left], columns[left] = _highest((mine.scores / mine.temperatures).add_(mine.noise()), count)
    return values, columns


def _noisy(draw: Draw, columns: torch.Tensor) -> torch.Tensor:
    return draw.scores.gather(1, columns) / draw.temperatures + draw.noise(columns)


def _highest(
    values: torch.Tensor, count: int, columns: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` highest of each row [rows, some], highest first, and where they are, or what `columns` says there."""
    if count == 1:
        found, at = values.max(dim=-1, keepdim=True)
    else:
        found, at = values.topk(min(count, values.shape[-1]), dim=-1)
    if columns is not None:
        at = columns.gather(1, at)
    if missing := count - found.shape[-1]:
        found, at = pad(found, (0, missing), value=-torch.inf), pad(at, (0, missing))
    return found, at
