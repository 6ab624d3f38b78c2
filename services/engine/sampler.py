"""Picks tokens: argmax(processed logits / temperature + shared noise), or the plain argmax at temperature 0.

Processing, in this order: repetition penalty (over prompt and output, as in transformers), presence and frequency
penalty (over the output, as in the OpenAI API), logit bias, barred tokens, temperature, top-k, top-p, min-p (the kept
tokens are those that transformers keeps). A row's pick depends on its own row alone.
"""

from collections import Counter, abc
from typing import NamedTuple

import numpy as np
import torch

from services.common.sampling_params import SamplingParams
from services.engine.noisy_picks import Draw, noisy_top
from services.engine.reduced_head import HeadTokens

BROKEN = -1
"""Instead of a token id: the row's logits are not numbers."""


class NonFiniteLogitsError(ValueError):
    """A model produced NaN, so there is nothing to pick."""


class Row(NamedTuple):
    """A row of logits: the distribution of the token at `position` of a sequence."""

    params: SamplingParams
    position: int
    """Absolute position that the token will take: the number of tokens before it."""
    token_ids: abc.Sequence[int]
    """The sequence's tokens; those before `position` are the history."""
    num_prompt_tokens: int
    num_runners_up: int = 0


class RunnerUp(NamedTuple):
    """A token that was not picked, and by how much: the pick's score minus its own."""

    token_id: int
    gap: float


class RowLogprobs(NamedTuple):
    """Natural-log probabilities under the unprocessed distribution."""

    logprob: float
    top: list[tuple[int, float]]


class Picks(NamedTuple):
    """One pick a row, or BROKEN; `logprobs` and `runners_up` are empty when no row asked for any."""

    token_ids: list[int]
    logprobs: list[RowLogprobs | None]
    runners_up: list[list[RunnerUp]]


def sample(logits: torch.Tensor, rows: abc.Sequence[Row], head: HeadTokens | None = None) -> Picks:
    """Picks a token for each row of logits [rows, vocab] (any float dtype, any device). One transfer to the host,
    and one more where tokens are cut off.

    Where there is a `head`, logits are those of its tokens alone, [rows, columns]: all others are impossible.
    """
    if head is not None and any(not row.params.keeps_logits or row.params.logprobs is not None for row in rows):
        logits, head = head.widened(logits), None  # Parameters name tokens that it may not have.
    scores = logits.float()
    if any(not row.params.keeps_logits for row in rows):
        scores = _penalise(scores, rows)
    values, columns = _top(scores, rows, 1 + max(row.num_runners_up for row in rows), head)
    token_ids = columns if head is None else head.ids[columns]
    picks = token_ids[:, 0].masked_fill(values[:, 0].isnan(), BROKEN).tolist()
    logprobs = _logprobs(logits, rows, columns[:, 0]) if any(row.params.logprobs is not None for row in rows) else []
    return Picks(picks, logprobs, _runners_up(token_ids, values))


def _top(
    scores: torch.Tensor, rows: abc.Sequence[Row], count: int, head: HeadTokens | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` highest of each row, noise included, highest first, in float64, and their columns, [rows, count]."""
    count = min(count, scores.shape[-1])
    sampled = [index for index, row in enumerate(rows) if row.params.temperature > 0]
    if not sampled:
        return _greedy(scores, count)
    drawn = [(rows[index].params, rows[index].position) for index in sampled]
    if len(sampled) == len(rows):
        return noisy_top(Draw.of(scores, drawn, head), count)
    values, columns = _greedy(scores, count)
    at = torch.tensor(sampled, device=scores.device)
    values[at], columns[at] = noisy_top(Draw.of(scores[at], drawn, head), count)
    return values, columns


def _greedy(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of equal scores the pick is the one that `max` finds, however many are asked for."""
    best, picks = scores.max(dim=-1, keepdim=True)
    if count > 1:
        others, columns = scores.scatter(1, picks, -torch.inf).topk(count - 1, dim=-1)
        best, picks = torch.cat((best, others), 1), torch.cat((picks, columns), 1)
    return best.double(), picks


def _penalise(scores: torch.Tensor, rows: abc.Sequence[Row]) -> torch.Tensor:
    """Scores after penalties and bias. Work grows with the history of the rows that have them."""
    scores = scores.clone()
    for index, row in enumerate(rows):
        params = row.params
        if params.needs_history:
            _penalise_row(scores[index], row)
        if params.logit_bias:
            ids = torch.tensor(list(params.logit_bias), device=scores.device)
            bias = torch.tensor(list(params.logit_bias.values()), dtype=scores.dtype, device=scores.device)
            scores[index].index_add_(0, ids, bias)
        if params.bars and (barred := _barred(row)):
            scores[index, barred] = -torch.inf
    return scores


def _barred(row: Row) -> list[int]:
    """Tokens that are not to be picked here: what would end a text that is too short yet, and the ends of bad words."""
    params, ids, position = row.params, row.token_ids, row.position
    barred = {word[-1] for word in params.bad_words if _ends_with(ids, position, word[:-1])}
    if position - row.num_prompt_tokens < params.min_tokens:
        barred |= params.barred_at_first
    return sorted(barred)


def _ends_with(token_ids: abc.Sequence[int], position: int, word: tuple[int, ...]) -> bool:
    """Whether the tokens before a position end with these."""
    return len(word) <= position and tuple(token_ids[position - len(word) : position]) == word


def _penalise_row(scores: torch.Tensor, row: Row) -> None:
    params = row.params
    if params.repetition_penalty != 1:
        # One that comes again is given the same score again.
        count = min(row.position, len(row.token_ids))
        seen = torch.from_numpy(np.fromiter(row.token_ids, np.int64, count)).to(scores.device)
        values = scores[seen]
        scores[seen] = torch.where(values < 0, values * params.repetition_penalty, values / params.repetition_penalty)
    counts = Counter(row.token_ids[row.num_prompt_tokens : row.position])
    if counts and (params.presence_penalty or params.frequency_penalty):
        ids = torch.tensor(list(counts), device=scores.device)
        times = torch.tensor(list(counts.values()), dtype=scores.dtype, device=scores.device)
        scores[ids] -= params.presence_penalty + params.frequency_penalty * times


def _runners_up(token_ids: torch.Tensor, values: torch.Tensor) -> list[list[RunnerUp]]:
    """The tokens [rows, 1 + some] behind each row's pick, highest first; none at all where there is only the pick."""
    if values.shape[1] == 1:
        return []
    gaps = values[:, :1] - values[:, 1:]
    return [
        [RunnerUp(*entry) for entry in zip(row_ids, row_gaps, strict=True)]
        for row_ids, row_gaps in zip(token_ids[:, 1:].tolist(), gaps.tolist(), strict=True)
    ]


def _logprobs(logits: torch.Tensor, rows: abc.Sequence[Row], picks: torch.Tensor) -> list[RowLogprobs | None]:
    """Log-probabilities of the picks and of the likeliest tokens, for the rows that asked."""
    logprobs = logits.float().log_softmax(dim=-1)
    count = max(row.params.logprobs or 0 for row in rows)
    chosen = logprobs.gather(1, picks.unsqueeze(1)).squeeze(1).tolist()
    values, ids = logprobs.topk(min(max(count, 1), logits.shape[-1]), dim=-1)
    table = list(zip(ids.tolist(), values.tolist(), strict=True))
    return [
        None
        if row.params.logprobs is None
        else RowLogprobs(chosen[index], list(zip(*table[index], strict=True))[: row.params.logprobs])
        for index, row in enumerate(rows)
    ]
