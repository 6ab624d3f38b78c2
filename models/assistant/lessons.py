"""Batches of conversations, what the target thinks of them, and how far a draft is from that."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from models.assistant.chats import Chats

_POOLED_BATCHES = 48
"""Conversations of so many batches are sorted by length, so that a batch has little padding."""
_PICK_SHARE = 0.5
"""Of the loss: that of the target's likeliest token alone, which is all that counts greedily."""
_MIN_TOKENS = 16


class Lesson(NamedTuple):
    """A batch: texts, and where the draft is to guess."""

    token_ids: Tensor
    """[texts, length], filled up with the token that ends a text."""
    wanted: Tensor
    """Whether the token behind is the target's own, in an answer, [texts, length]."""


class Judged(NamedTuple):
    """What the target thinks where the draft is to guess."""

    probabilities: Tensor
    """What it gives the head's tokens, [wanted, head tokens]."""
    columns: Tensor
    """Columns of its likeliest tokens, -1 for one that the head lacks, [wanted]."""


class Lessons:
    """Batches in an order that is a pure function of the seed."""

    def __init__(self, chats: Chats, batch_tokens: int, device: torch.device, end: int, seed: int) -> None:
        """Raises ValueError where there is nothing to learn from."""
        self._batch_tokens, self._device, self._end, self._seed = batch_tokens, device, end, seed
        self._token_ids = torch.from_numpy(chats.token_ids.astype(np.int32)).to(device)
        self._is_answer = torch.from_numpy(chats.is_answer).to(device)
        self._starts = chats.offsets[:-1]
        self._lengths = np.diff(chats.offsets)
        if not (self._lengths >= _MIN_TOKENS).any():
            raise ValueError(f"no conversation has {_MIN_TOKENS} tokens: have more written")

    def epoch(self, number: int) -> list[NDArray[np.int64]]:
        """Numbers of the conversations of each batch of an epoch."""
        generator = np.random.default_rng([self._seed, number])
        order = generator.permutation(np.flatnonzero(self._lengths >= _MIN_TOKENS))
        pool = max(1, int(_POOLED_BATCHES * self._batch_tokens / self._lengths.mean()))
        batches: list[NDArray[np.int64]] = []
        for start in range(0, len(order), pool):
            pooled = order[start : start + pool]
            batches += self._by_length(pooled[np.argsort(self._lengths[pooled], kind="stable")])
        return [batches[at] for at in generator.permutation(len(batches))]

    def _by_length(self, numbers: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        batches, batch = [], list[int]()
        for number in numbers:
            if batch and (len(batch) + 1) * self._lengths[number] > self._batch_tokens:
                batches.append(np.array(batch))
                batch = []
            batch.append(int(number))
        return [*batches, np.array(batch)] if batch else batches

    def lesson(self, numbers: NDArray[np.int64]) -> Lesson:
        """The batch of these conversations."""
        starts, lengths = (torch.from_numpy(each[numbers]).to(self._device) for each in (self._starts, self._lengths))
        places = torch.arange(int(self._lengths[numbers].max()), device=self._device)
        is_there = places < lengths[:, None]
        at = torch.where(is_there, starts[:, None] + places, 0)
        token_ids = torch.where(is_there, self._token_ids[at].long(), self._end)
        behind = torch.where(places + 1 < lengths[:, None], at + 1, 0)
        return Lesson(token_ids, self._is_answer[behind] & (places + 1 < lengths[:, None]))


@torch.no_grad()
def judged(target: LlamaForCausalLM, lesson: Lesson, head_ids: Tensor) -> Judged:
    """What the target thinks of a batch, of a head of these tokens."""
    hidden = target.model(input_ids=lesson.token_ids, use_cache=False).last_hidden_state[lesson.wanted]
    logits = target.lm_head(hidden).float()
    picks = logits.argmax(1)
    probabilities = (logits[:, head_ids] - logits.logsumexp(1, keepdim=True)).exp_()
    column_of = torch.full((logits.shape[1],), -1, device=logits.device)
    column_of[head_ids] = torch.arange(len(head_ids), device=logits.device)
    return Judged(probabilities, column_of[picks])


def distillation_loss(logits: Tensor, target: Judged) -> Tensor:
    """Mean cross entropy in nats of a draft [wanted, head tokens] under what the target gives, and under its picks."""
    logits = logits.float()
    mass = target.probabilities.sum(1)
    soft = (logits.logsumexp(1) * mass - (logits * target.probabilities).sum(1)).mean()
    hard = cross_entropy(logits, target.columns, ignore_index=-1)
    return (1 - _PICK_SHARE) * soft + _PICK_SHARE * hard


def agreement(logits: Tensor, target: Judged) -> Tensor:
    """Share of positions at which both pick the same token, greedily."""
    return (logits.detach().argmax(1) == target.columns).float().mean()
