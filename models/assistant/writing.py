"""The target writes conversations, questions too: `python -m models.assistant.writing`. On a GPU if there is one.

Thousands are written at once. Who is done begins another at once, so that every row of every step is some text's.
"""

import argparse
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM

from models.assistant.chats import Chats, save_chats
from models.assistant.decoding import Decoder
from models.assistant.openings import draw_opening
from models.assistant.target import device_here, load_target, target_folder

SEED = 20_26
ROWS = 3072
"""Conversations that are written at once."""
MAX_TOKENS = 384
"""Of a conversation."""
_NUM_OPENINGS = 1 << 14
_MAX_QUESTION_TOKENS, _MAX_ANSWER_TOKENS = 64, 256
_GREEDY_SHARE, _COOLEST = 0.45, 0.3
"""Answers are greedy, or at a temperature between this and 1. Questions are at 1."""
_SECOND_TURN_SHARE = 0.25
_MIN_P = 0.01
"""Less likely than the likeliest by so much is never said: a small model's tail is not language."""
_SECONDS_BETWEEN_REPORTS = 20.0
_END = "<|im_end|>"
# What stands between two turns, to the assistant and to the user, when the turn was ended and when it was cut off.
_JOINS = [f"{end}\n<|im_start|>{role}\n" for role in ("assistant", "user") for end in ("", _END)]

logger = logging.getLogger(__name__)


class Writer:
    """Rows of conversations, each with what is to be said next: given tokens first, then the target's own."""

    def __init__(self, target: LlamaForCausalLM, tokenizer: Any, rows: int, seed: int) -> None:
        self._device = target.device
        self._decoder = Decoder(target, rows, MAX_TOKENS)
        self._end = int(tokenizer.eos_token_id)
        self._random = torch.Generator(self._device).manual_seed(seed)
        numbers = np.random.default_rng(seed)
        openings = [draw_opening(numbers) for _ in range(_NUM_OPENINGS)]
        starts = [f"<|im_start|>system\n{o.system}{_END}\n<|im_start|>user\n{o.words}" for o in openings]
        given = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (*starts, *_JOINS)]
        self._kinds = torch.tensor([o.kind for o in openings], dtype=torch.int8, device=self._device)
        self._lengths = torch.tensor([len(ids) for ids in given], device=self._device)
        filled = [ids + [self._end] * (int(self._lengths.max()) - len(ids)) for ids in given]
        self._given = torch.tensor(filled, device=self._device)
        self._token, self._place, self._given_from, self._num_given, self._turn, self._num_turns, self._left = (
            torch.zeros(rows, dtype=torch.long, device=self._device) for _ in range(7)
        )
        self._heat = torch.zeros(rows, device=self._device)
        self._is_answer, self._is_last = (torch.zeros(rows, dtype=torch.bool, device=self._device) for _ in range(2))
        self._begin(~self._is_last)

    def _begin(self, those: Tensor) -> None:
        """Begins new conversations in those rows, [rows]."""
        count, device, random = len(those), self._device, self._random
        opening = torch.randint(_NUM_OPENINGS, (count,), device=device, generator=random)
        drawn = torch.rand(3, count, device=device, generator=random)
        heat = torch.where(drawn[0] < _GREEDY_SHARE, 0.0, _COOLEST + (1 - _COOLEST) * drawn[1])
        self._token = torch.where(those, self._given[opening, 0], self._token)
        self._place = self._place.masked_fill(those, 0)
        self._given_from = torch.where(those, opening, self._given_from)
        self._num_given = self._num_given.masked_fill(those, 1)
        self._turn = self._turn.masked_fill(those, 0)
        self._num_turns = torch.where(those, torch.where(drawn[2] < _SECOND_TURN_SHARE, 4, 2), self._num_turns)
        self._left = self._left.masked_fill(those, _MAX_QUESTION_TOKENS)
        self._heat = torch.where(those, heat, self._heat)
        self._is_answer = self._is_answer & ~those
        self._is_last = self._is_last & ~those

    def _step(self, longest: int) -> None:
        """Reads every row's token and decides on the next."""
        ended_before, answering = self._is_last, self._turn % 2 == 1
        logits = self._decoder.step(self._token, self._place, longest)
        own = self._draw(logits.float(), torch.where(answering, self._heat, 1.0))
        given = self._num_given < self._lengths[self._given_from]
        following = torch.where(
            given, self._given[self._given_from, self._num_given.clamp_max(self._given.shape[1] - 1)], own
        )
        self._num_given += given
        self._left -= (~given).long()
        was_ended = following == self._end
        turn_over = ~given & (was_ended | (self._left <= 0))
        is_over = turn_over & ((self._turn + 1 == self._num_turns) | (answering & ~was_ended))
        goes_on = turn_over & ~is_over
        join = _NUM_OPENINGS + 2 * answering.long() + (~was_ended).long()
        self._given_from = torch.where(goes_on, join, self._given_from)
        self._num_given = self._num_given.masked_fill(goes_on, 0)
        self._turn += goes_on
        longest_turn = torch.where(answering, _MAX_QUESTION_TOKENS, _MAX_ANSWER_TOKENS)
        self._left = torch.where(goes_on, longest_turn, self._left)
        self._token, self._place = following, self._place + 1
        self._is_answer = ~given & answering
        self._is_last = is_over | (self._place == MAX_TOKENS - 1)
        self._begin(ended_before)

    def _draw(self, scores: Tensor, heat: Tensor) -> Tensor:
        """A token of each row of scores [rows, vocab], at the row's temperature."""
        best, greedy = scores.max(-1)
        noise = torch.empty_like(scores).exponential_(generator=self._random).log_()
        drawn = (scores / heat.clamp_min(1e-3)[:, None]).sub_(noise)
        drawn.masked_fill_(scores < best[:, None] + math.log(_MIN_P), -torch.inf)
        return torch.where(heat > 0, drawn.argmax(-1), greedy)

    def write(self, num_steps: int, seconds: float = math.inf) -> Chats:
        """What is written in so many steps, or so long; the last conversation of each row may end anywhere."""
        rows, began, told = len(self._token), time.monotonic(), 0.0
        token_ids = torch.empty(num_steps, rows, dtype=torch.int32, device=self._device)
        is_answer, is_first = (torch.empty(num_steps, rows, dtype=torch.bool, device=self._device) for _ in range(2))
        kinds = torch.empty(num_steps, rows, dtype=torch.int8, device=self._device)
        for step in range(num_steps):
            token_ids[step], is_answer[step], is_first[step] = self._token, self._is_answer, self._place == 0
            kinds[step] = self._kinds[self._given_from.clamp_max(_NUM_OPENINGS - 1)]
            self._step(step + 1)
            passed = time.monotonic() - began
            if passed > told + _SECONDS_BETWEEN_REPORTS:
                told = passed
                logger.info("step %d, %.0f tokens/s", step, step * rows / passed)
            if passed > seconds:
                num_steps = step + 1
                break
        flat = [each[:num_steps].T.flatten().cpu().numpy() for each in (token_ids, is_answer, is_first, kinds)]
        starts = np.flatnonzero(flat[2])
        return Chats(flat[0].astype(np.uint16), flat[1], np.append(starts, len(flat[0])), flat[3][starts])


def main() -> None:
    """Writes conversations into a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/assistant/chats.npz"), help="default: %(default)s")
    parser.add_argument("--target", type=Path, help="folder; default: the one that `paceline get smollm2` fetched")
    parser.add_argument("--rows", type=int, default=ROWS, help="at once; default: %(default)s")
    parser.add_argument("--steps", type=int, default=8192, help="tokens of each row at most; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=math.inf, help="how long at most; default: no limit")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    folder = arguments.target or target_folder()
    writer = Writer(load_target(folder, device_here()), AutoTokenizer.from_pretrained(folder), arguments.rows, SEED)
    chats = writer.write(arguments.steps, arguments.seconds)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    save_chats(arguments.output, chats)
    logger.info("%d conversations, %d tokens, %d in answers", len(chats), len(chats.token_ids), chats.is_answer.sum())


if __name__ == "__main__":
    main()
