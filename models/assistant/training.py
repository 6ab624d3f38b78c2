"""Trains drafts beside each other, one a shape: `python -m models.assistant.training`. On a GPU if there is one.

The target thinks of every batch once, for all of them. Which shape ships is chosen by what it is worth when served.
"""

import argparse
import logging
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaForCausalLM

from models.assistant.chats import Chats, load_chats, split, without
from models.assistant.draft import HEAD_TOKENS, LAYERS, RANK, Draft, commonest_tokens, matching_scales
from models.assistant.held_out import held_out_prompts
from models.assistant.lessons import Judged, Lesson, Lessons, agreement, distillation_loss, judged
from models.assistant.target import device_here, load_target, target_folder

SEED = 20_26
BATCH_TOKENS = 32_768
RATE, HEAD_RATE = 1.5e-3, 7e-4
"""Learning rates at their peak, of what is in the layers and of the head."""
WARM_UP_SHARE = 0.02
"""Of the time, in which learning rates rise; then they fall to zero."""
MATCHED_TEXTS, MATCHED_TOKENS = 8, 160
"""What the sizes of layers are measured on."""
_REPORT_EVERY = 50
_HELD_OUT_BATCHES = 24

logger = logging.getLogger(__name__)


class Shape(NamedTuple):
    """What tells drafts apart."""

    layers: tuple[int, ...]
    rank: int

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """From LAYER,LAYER,...:RANK."""
        layers, _, rank = text.partition(":")
        return cls(tuple(map(int, layers.split(","))), int(rank))

    def __str__(self) -> str:
        return f"{'-'.join(map(str, self.layers))}-rank-{self.rank}"


class Trainer:
    """A draft and its optimizer."""

    def __init__(self, draft: Draft, shape: Shape) -> None:
        self.draft, self.shape = draft, shape
        self._told: list[tuple[Tensor, Tensor]] = []
        self._optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in draft.body.parameters() if p.requires_grad], "peak": RATE},
                {"params": list(draft.head.parameters()), "peak": HEAD_RATE},
            ],
            betas=(0.9, 0.98), weight_decay=0.0, fused=True,
        )  # fmt: skip

    def step(self, lesson: Lesson, target: Judged, share: float) -> None:
        """One update, after this share of all the time there is."""
        scale = min(share / WARM_UP_SHARE, (1.0 - share) / (1.0 - WARM_UP_SHARE))
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * max(scale, 0.0)
        logits = guesses(self.draft, lesson)
        loss = distillation_loss(logits, target)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.draft.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._told.append((loss.detach(), agreement(logits, target)))

    def report(self) -> str:
        """Mean loss and agreement since the last report."""
        losses, agreed = (float(torch.stack(each).mean()) for each in zip(*self._told, strict=True))
        self._told.clear()
        return f"{self.shape}: loss {losses:.3f}, agreement {agreed:.3f}"

    def save(self, folder: Path) -> None:
        """Writes the weights, in one move."""
        partial = folder / f"{self.shape}.partial"
        torch.save({"draft": self.draft.state_dict(), "layers": list(self.shape.layers)}, partial)
        partial.replace(folder / f"{self.shape}.pt")


def guesses(draft: Draft, lesson: Lesson) -> Tensor:
    """Logits [wanted, head tokens] of a draft, in bfloat16."""
    with torch.autocast(lesson.token_ids.device.type, torch.bfloat16):
        logits: Tensor = draft(lesson.token_ids, lesson.wanted)
    return logits


@torch.no_grad()
def calm(draft: Draft, lesson: Lesson, target: Judged) -> None:
    """Scales the last norm so that logits have the spread that fits them best: layers out of their place shout."""
    logits = guesses(draft, lesson)
    scales = 2.0 ** -torch.arange(0, 8, 0.5)
    losses = torch.stack([distillation_loss(logits * scale, target) for scale in scales])
    draft.body.norm.weight.mul_(float(scales[losses.argmin()]))


@torch.no_grad()
def held_out_agreement(draft: Draft, target: LlamaForCausalLM, lessons: Lessons) -> tuple[float, float]:
    """Loss and agreement over conversations that were never learnt from."""
    found = []
    for numbers in lessons.epoch(0)[:_HELD_OUT_BATCHES]:
        lesson = lessons.lesson(numbers)
        thought = judged(target, lesson, draft.head_ids)
        logits = guesses(draft, lesson)
        found.append((float(distillation_loss(logits, thought)), float(agreement(logits, thought)), len(logits)))
    losses, agreed, counts = zip(*found, strict=True)
    return float(np.average(losses, weights=counts)), float(np.average(agreed, weights=counts))


def train(target: LlamaForCausalLM, trainers: list[Trainer], lessons: Lessons, seconds: float) -> int:
    """Trains them for so long, and says how many tokens they read."""
    head_ids = trainers[0].draft.head_ids
    began, steps, seen, epoch = time.monotonic(), 0, 0, 0
    while True:
        for numbers in lessons.epoch(epoch):
            if (passed := time.monotonic() - began) >= seconds:
                return seen
            lesson = lessons.lesson(numbers)
            thought = judged(target, lesson, head_ids)
            for trainer in trainers:
                trainer.step(lesson, thought, passed / seconds)
            steps, seen = steps + 1, seen + lesson.token_ids.numel()
            if steps % _REPORT_EVERY == 0:
                logger.info("epoch %d, %d tokens, %.0f tokens/s", epoch, seen, seen / (time.monotonic() - began))
                for trainer in trainers:
                    logger.info(trainer.report())
        epoch += 1


def main() -> None:
    """Trains, and tells how the drafts fare on conversations that were held out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chats", type=Path, default=Path("build/assistant/chats.npz"), help="default: %(default)s")
    parser.add_argument("--target", type=Path, help="folder; default: the one that `paceline get smollm2` fetched")
    parser.add_argument("--output", type=Path, default=Path("build/assistant"), help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=300.0, help="how long; default: %(default)s")
    parser.add_argument("--batch-tokens", type=int, default=BATCH_TOKENS, help="default: %(default)s")
    parser.add_argument("--head-tokens", type=int, default=HEAD_TOKENS, help="default: %(default)s")
    parser.add_argument(
        "--shape", type=Shape.parse, action="append", help="LAYER,...:RANK; several are trained at once"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(SEED)
    device, folder = device_here(), arguments.target or target_folder()
    target, tokenizer = load_target(folder, device), AutoTokenizer.from_pretrained(folder)
    learnt, held_out = split(without(load_chats(arguments.chats), held_out_prompts(tokenizer)))
    logger.info("%d conversations of %d tokens; %d held out", len(learnt), len(learnt.token_ids), len(held_out))
    head_ids = torch.from_numpy(commonest_tokens(learnt, arguments.head_tokens, int(target.config.vocab_size)))
    shapes = arguments.shape or [Shape(LAYERS, RANK)]
    trainers = [Trainer(_draft(target, head_ids.to(device), learnt, shape), shape) for shape in shapes]
    end = int(tokenizer.eos_token_id)
    lessons, kept = (Lessons(chats, arguments.batch_tokens, device, end, SEED) for chats in (learnt, held_out))
    first = lessons.lesson(lessons.epoch(0)[0])
    for trainer in trainers:
        calm(trainer.draft, first, judged(target, first, trainer.draft.head_ids))
    seen = train(target, trainers, lessons, arguments.seconds)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for trainer in trainers:
        trainer.save(arguments.output)
    for trainer in trainers:
        found = held_out_agreement(trainer.draft, target, kept)
        logger.info("%s, %d tokens: held out: loss %.3f, agreement %.3f", trainer.shape, seen, *found)


def _draft(target: LlamaForCausalLM, head_ids: Tensor, chats: Chats, shape: Shape) -> Draft:
    """A draft of this shape that has learnt nothing."""
    starts = [int(a) for a, b in zip(chats.offsets, chats.offsets[1:], strict=False) if b - a >= MATCHED_TOKENS]
    whole = np.stack([chats.token_ids[start : start + MATCHED_TOKENS] for start in starts[:MATCHED_TEXTS]])
    scales = matching_scales(target, torch.from_numpy(whole.astype(np.int64)).to(head_ids.device), shape.layers)
    return Draft(target, head_ids, scales.to(head_ids.device), shape.layers, shape.rank)


if __name__ == "__main__":
    main()
