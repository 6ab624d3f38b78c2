"""The tokens whose score / temperature and noise come to most: of a row's scores, as few as can win are looked at.

Where top-k, top-p and min-p cut, those that are kept; else, on a CPU, those that may come to more than what a few of
the likeliest come to (`services.engine.cpu.challengers`). A token's numbers are the same however many are looked at.
"""

from collections import abc
from typing import NamedTuple

import torch

from services.common.sampling_params import SamplingParams
from services.engine.cpu.challengers import challengers
from services.engine.noise import gumbel, row_state, signed
from services.engine.reduced_head import HeadTokens
from services.engine.truncation import Kept, likeliest

CANDIDATES = (256, 4096)
"""What is kept is looked for among so many of the likeliest tokens, one number after the other, and then among all."""
_LIKELIEST = (1, 256)
"""By so many of the likeliest tokens the others are judged; by more where these leave too many."""
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


def perturbed(draw: Draw) -> torch.Tensor:
    """Scores / temperature + noise [rows, vocab] in float64, cut-off tokens at -inf."""
    rest, found = _rows(draw, truncates=False), draw.scores / draw.temperatures
    if len(rest) == len(found):
        return found.add_(draw.noise())
    found[rest] += draw.noise(rows=rest)
    for rows, kept in kept_of(draw):
        noisy = kept.scaled + draw.noise(kept.columns, rows)
        found[rows] = torch.full_like(found[rows], -torch.inf).scatter_(1, kept.columns, noisy)
    return found


def noisy_picks(draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest of each row of them, and its column, [rows] each."""
    rest = _rows(draw, truncates=False)
    if len(rest) == len(draw.scores):
        return _of_all(draw)
    best = draw.scores.new_empty(len(draw.scores), dtype=torch.float64)
    columns = draw.states.new_empty(len(draw.scores))
    if len(rest):
        best[rest], columns[rest] = _of_all(draw.take(rest))
    for rows, kept in kept_of(draw):
        best[rows], at = (kept.scaled + draw.noise(kept.columns, rows)).max(dim=-1)
        columns[rows] = kept.columns.gather(1, at[:, None]).squeeze(1)
    return best, columns


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


def _of_all(draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of rows of which nothing is cut off."""
    if draw.scores.device.type != "cpu" or draw.head is not None or draw.scores.numel() <= _FEW:
        best, columns = (draw.scores / draw.temperatures).add_(draw.noise()).max(dim=-1)
        return best, columns
    best = draw.scores.new_empty(len(draw.scores), dtype=torch.float64)
    columns = draw.states.new_empty(len(draw.scores))
    left = torch.arange(len(draw.scores))
    for count in _LIKELIEST:
        mine = draw.take(left)
        if count == 1:
            likeliest = mine.scores.max(dim=-1, keepdim=True).indices
        else:
            likeliest = mine.scores.topk(min(count, mine.scores.shape[-1]), dim=-1).indices
        bounds = _noisy(mine, likeliest).max(dim=-1).values
        named, are_all = challengers(mine.scores, mine.temperatures, mine.states, bounds, likeliest[:, 0])
        best[left], at = _noisy(mine, named).max(dim=-1)
        columns[left] = named.gather(1, at[:, None]).squeeze(1)
        left = left[~are_all]
        if not len(left):
            return best, columns
    mine = draw.take(left)
    best[left], columns[left] = (mine.scores / mine.temperatures).add_(mine.noise()).max(dim=-1)
    return best, columns


def _noisy(draw: Draw, columns: torch.Tensor) -> torch.Tensor:
    return draw.scores.gather(1, columns) / draw.temperatures + draw.noise(columns)
