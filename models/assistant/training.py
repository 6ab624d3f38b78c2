"""Trains the draft: `python -m models.assistant.training`. Interrupted, the same command resumes."""

import argparse
import logging
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.assistant.chats import Chats, load_chats, split
from models.assistant.draft import HEAD_TOKENS, Draft, commonest_tokens, load_target, matching_scales
from models.assistant.target import target_folder

SEED = 20_26
BATCH_TOKENS = 2048
RATE, HEAD_RATE = 2e-3, 5e-4
"""Learning rates at their peak, of what is in the layers and of the head."""
WARM_UP_TOKENS = 10 * BATCH_TOKENS
DECAY_SHARE = 0.9
"""Of the budget, at the end, in which learning rates fall to zero."""
MATCHED_TEXTS, MATCHED_TOKENS = 8, 160
"""What the sizes of layers are measured on."""
_REPORT_EVERY = 10
_POOLED_BATCHES = 48
"""Conversations of so many batches are sorted by length, so that a batch has little padding."""
_MAX_TOKENS = 640

logger = logging.getLogger(__name__)


class Lesson(NamedTuple):
    """A batch: texts, where the draft is to guess, and what the target thinks there."""

    token_ids: Tensor
    """[texts, length], filled up with the token that ends a text."""
    wanted: Tensor
    """Whether the token behind is the target's own, in an answer, [texts, length]."""
    top: Tensor
    """Columns of the head, [wanted, NUM_TOP]; 0 for tokens that it lacks."""
    probabilities: Tensor
    """What the target gives them, [wanted, NUM_TOP]; 0 for tokens that the head lacks."""
    picks: Tensor
    """The target's likeliest tokens, [wanted]."""


class Lessons:
    """Batches in an order that is a pure function of the seed."""

    def __init__(self, chats: Chats, column_of: NDArray[np.int64], seed: int) -> None:
        """`column_of` says for each token id which column of the head it is, or -1."""
        self._chats = chats
        self._column_of = column_of
        self._seed = seed
        self._lengths = np.minimum(np.diff(chats.offsets), _MAX_TOKENS)

    def epoch(self, number: int) -> list[NDArray[np.int64]]:
        """Numbers of the conversations of each batch of an epoch."""
        generator = np.random.default_rng([self._seed, number])
        order = generator.permutation(len(self._chats))
        pool = max(1, int(_POOLED_BATCHES * BATCH_TOKENS / self._lengths.mean()))
        batches: list[NDArray[np.int64]] = []
        for start in range(0, len(order), pool):
            pooled = order[start : start + pool]
            batches += self._by_length(pooled[np.argsort(self._lengths[pooled], kind="stable")])
        return [batches[at] for at in generator.permutation(len(batches))]

    def _by_length(self, numbers: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        batches, batch = [], list[int]()
        for number in numbers:
            if batch and (len(batch) + 1) * self._lengths[number] > BATCH_TOKENS:
                batches.append(np.array(batch))
                batch = []
            batch.append(int(number))
        return [*batches, np.array(batch)] if batch else batches

    def lesson(self, numbers: NDArray[np.int64]) -> Lesson:
        """The batch of these conversations."""
        chats, length = self._chats, int(self._lengths[numbers].max())
        token_ids = np.full((len(numbers), length), 2, np.int64)
        wanted = np.zeros((len(numbers), length), np.bool_)
        at: list[NDArray[np.int64]] = []
        for row, number in enumerate(numbers):
            start, size = int(chats.offsets[number]), int(self._lengths[number])
            token_ids[row, :size] = chats.token_ids[start : start + size]
            wanted[row, : size - 1] = chats.is_answer[start + 1 : start + size]
            at.append(start + 1 + np.flatnonzero(wanted[row, : size - 1]))
        rows = np.concatenate(at)
        top = self._column_of[chats.top_ids[rows]]
        probabilities = np.exp(chats.top_logprobs[rows].astype(np.float32)) * (top >= 0)
        return Lesson(
            torch.from_numpy(token_ids), torch.from_numpy(wanted), torch.from_numpy(top.clip(0)),
            torch.from_numpy(probabilities), torch.from_numpy(chats.top_ids[rows, 0].astype(np.int64)),
        )  # fmt: skip


def distillation_loss(logits: Tensor, lesson: Lesson) -> Tensor:
    """Mean cross entropy in nats of the draft [wanted, head tokens] under what the target gives the likeliest."""
    logits = logits.float()
    expected = (logits.gather(1, lesson.top) * lesson.probabilities).sum(1)
    return (logits.logsumexp(1) * lesson.probabilities.sum(1) - expected).mean()


class Progress(NamedTuple):
    """What a checkpoint holds beside the weights."""

    tokens_seen: int
    epoch: int
    batch: int


class Trainer:
    """The draft, its optimizer and how far both are."""

    def __init__(self, draft: Draft, checkpoint: Path, budget: int) -> None:
        self.draft = draft
        self.progress = Progress(0, 0, 0)
        self._checkpoint = checkpoint
        self._budget = budget
        self._optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in draft.body.parameters() if p.requires_grad], "peak": RATE},
                {"params": list(draft.head.parameters()), "peak": HEAD_RATE},
            ],
            betas=(0.9, 0.98), weight_decay=0.0, fused=True,
        )  # fmt: skip
        if checkpoint.exists():
            state: dict[str, Any] = torch.load(checkpoint, weights_only=True)
            draft.load_state_dict(state["draft"])
            self._optimizer.load_state_dict(state["optimizer"])
            self.progress = Progress(*state["progress"])

    def run(self, lessons: Lessons) -> None:
        """Trains until the budget is used up."""
        began, first, steps = time.monotonic(), self.progress.tokens_seen, 0
        losses, agreed = list[float](), list[float]()
        while self.progress.tokens_seen < self._budget:
            batches = lessons.epoch(self.progress.epoch)
            for number in range(self.progress.batch, len(batches)):
                loss, agreement, size = self._step(lessons.lesson(batches[number]))
                losses.append(loss)
                agreed.append(agreement)
                steps += 1
                self.progress = Progress(self.progress.tokens_seen + size, self.progress.epoch, number + 1)
                if steps % _REPORT_EVERY == 0:
                    speed = (self.progress.tokens_seen - first) / (time.monotonic() - began)
                    logger.info(
                        "epoch %d tokens %d: loss %.3f, agreement %.3f, %.0f tokens/s", self.progress.epoch,
                        self.progress.tokens_seen, np.mean(losses), np.mean(agreed), speed,
                    )  # fmt: skip
                    losses, agreed = [], []
                if steps % (6 * _REPORT_EVERY) == 0:
                    self.save()
                if self.progress.tokens_seen >= self._budget:
                    break
            else:
                self.progress = Progress(self.progress.tokens_seen, self.progress.epoch + 1, 0)
        self.save()

    def save(self) -> None:
        """Replaces the checkpoint in one move."""
        self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self._checkpoint.with_suffix(".partial")
        state = {"draft": self.draft.state_dict(), "optimizer": self._optimizer.state_dict()}
        torch.save({**state, "progress": tuple(self.progress)}, partial)
        partial.replace(self._checkpoint)

    def _step(self, lesson: Lesson) -> tuple[float, float, int]:
        """One update: the loss before it, the share of picks that agree, and the tokens read."""
        seen = self.progress.tokens_seen
        left = (self._budget - seen) / (DECAY_SHARE * self._budget)
        scale = min(1.0, (seen + BATCH_TOKENS) / WARM_UP_TOKENS, max(left, 0.0))
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * scale
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.draft(lesson.token_ids, lesson.wanted)
        loss = distillation_loss(logits, lesson)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.draft.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.item(), agreement(self.draft, logits, lesson), lesson.token_ids.numel()


@torch.no_grad()
def calm(draft: Draft, lesson: Lesson) -> None:
    """Scales the last norm so that logits have the spread that fits them best: layers out of their place shout."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = draft(lesson.token_ids, lesson.wanted)
    scales = 2.0 ** -torch.arange(0, 8, 0.5)
    losses = torch.stack([distillation_loss(logits * scale, lesson) for scale in scales])
    draft.body.norm.weight.mul_(scales[losses.argmin()])


def agreement(draft: Draft, logits: Tensor, lesson: Lesson) -> float:
    """Share of positions at which both pick the same token, greedily."""
    said = draft.head_ids[logits.detach().argmax(1)]
    return float((said == lesson.picks).float().mean())


@torch.inference_mode()
def held_out_agreement(draft: Draft, lessons: Lessons) -> tuple[float, float]:
    """Loss and agreement over conversations that were never learnt from."""
    losses, agreed, counts = list[float](), list[float](), list[int]()
    for numbers in lessons.epoch(0):
        lesson = lessons.lesson(numbers)
        with torch.autocast("cpu", torch.bfloat16):
            logits = draft(lesson.token_ids, lesson.wanted)
        losses.append(distillation_loss(logits, lesson).item())
        agreed.append(agreement(draft, logits, lesson))
        counts.append(len(lesson.picks))
    return float(np.average(losses, weights=counts)), float(np.average(agreed, weights=counts))


def main() -> None:
    """Trains, and tells how the draft fares on conversations that were held out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chats", type=Path, default=Path("build/assistant/chats"), help="default: %(default)s")
    parser.add_argument("--checkpoint", type=Path, default=Path("build/assistant/draft.pt"))
    parser.add_argument("--tokens", type=int, default=6_000_000, help="budget; default: %(default)s")
    parser.add_argument("--head-tokens", type=int, default=HEAD_TOKENS, help="default: %(default)s")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(SEED)
    target = load_target(target_folder())
    learnt, held_out = split(load_chats(arguments.chats))
    vocab_size = int(target.config.vocab_size)
    head_ids = commonest_tokens(learnt, arguments.head_tokens, vocab_size)
    texts = [learnt.token_ids[start : start + MATCHED_TOKENS] for start in learnt.offsets[: 4 * MATCHED_TEXTS]]
    whole = np.stack([text for text in texts if len(text) == MATCHED_TOKENS][:MATCHED_TEXTS])
    scales = matching_scales(target, torch.from_numpy(whole.astype(np.int64)))
    draft = Draft(target, torch.from_numpy(head_ids), scales)
    del target
    trainer = Trainer(draft, arguments.checkpoint, arguments.tokens)
    column_of = np.full(vocab_size, -1)
    column_of[draft.head_ids.numpy()] = np.arange(len(draft.head_ids))
    logger.info("%d chats of %d tokens; %d held out", len(learnt), len(learnt.token_ids), len(held_out))
    lessons = Lessons(learnt, column_of, SEED)
    if not arguments.checkpoint.exists():
        calm(draft, lessons.lesson(lessons.epoch(0)[0]))
    trainer.run(lessons)
    logger.info("held out: loss %.3f, agreement %.3f", *held_out_agreement(draft, Lessons(held_out, column_of, SEED)))


if __name__ == "__main__":
    main()
