"""Top-k, top-p and min-p: which tokens of a row can be picked at all. What is kept is what transformers keeps.

To sort a vocabulary takes longer than a small model's step, and nearly always few tokens are kept: they are looked for
among the likeliest. What is found depends on the row alone.
"""

from collections import abc
from typing import NamedTuple

import torch

from services.common.sampling_params import SamplingParams


class Kept(NamedTuple):
    """What is kept of rows, as far as it was looked for."""

    columns: torch.Tensor
    """The likeliest tokens, likeliest first, [rows, candidates]."""
    scaled: torch.Tensor
    """Their scores / temperature, cut-off tokens at -inf, [rows, candidates], in float64."""
    are_all: torch.Tensor
    """Whether no other token is kept, [rows]."""


def likeliest(
    scores: torch.Tensor, temperatures: torch.Tensor, params: abc.Sequence[SamplingParams], count: int
) -> Kept:
    """What is kept of so many of the likeliest tokens of scores [rows, vocab] in float32, at temperatures [rows, 1] in
    float64.
    """
    vocab_size = scores.shape[-1]
    count = min(count, vocab_size)
    # In order of their numbers first: of equal scores the smaller number comes first, as where all are sorted.
    columns = scores.topk(count, dim=-1, sorted=False).indices.sort(dim=-1).values
    found, order = (scores.gather(1, columns) / temperatures).sort(dim=-1, descending=True, stable=True)
    columns = columns.gather(1, order)
    top_k, top_p, min_p = _limits(params, found, vocab_size)
    has_top_k = top_k < vocab_size
    # Ties with the k-th score stay, as in transformers.
    kth, last = found.gather(1, top_k.clamp(max=count) - 1), found[:, -1:]
    scaled = found.masked_fill(has_top_k & (found < kth), -torch.inf)
    probs = scaled.softmax(dim=-1)
    if not has_top_k.all():  # Tokens that are no candidates count, too.
        of_all = (scores / temperatures.to(scores.dtype)).softmax(dim=-1).gather(1, columns)
        probs = torch.where(has_top_k, probs, of_all.to(probs.dtype))
    before = probs.cumsum(dim=-1) - probs
    scaled = scaled.masked_fill((before >= top_p) & (top_p < 1), -torch.inf)
    scaled = scaled.masked_fill((scaled - scaled[:, :1]).exp() < min_p, -torch.inf)
    # Others are at most as likely as the last candidate: they are cut where it is, and whatever is as likely.
    are_cut = ((scaled == -torch.inf) | (found > last)).all(dim=-1)
    are_all = are_cut & (~has_top_k | (kth > last)).squeeze(1)
    return Kept(columns, scaled, are_all | (count == vocab_size))


def _limits(
    params: abc.Sequence[SamplingParams], like: torch.Tensor, vocab_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Top-k, top-p and min-p, [rows, 1] each; a top-k that cuts nothing is the size of the vocabulary."""
    device, dtype = like.device, like.dtype
    top_k = torch.tensor([[min(p.top_k or vocab_size, vocab_size)] for p in params], device=device)
    top_p = torch.tensor([[p.top_p] for p in params], dtype=dtype, device=device)
    min_p = torch.tensor([[p.min_p] for p in params], dtype=dtype, device=device)
    return top_k, top_p, min_p
