"""The target writes conversations: questions too, through Paceline's own engine in full batches.

`python -m models.assistant.writing` adds files to a folder until there are as many conversations as asked for. Beside
every token that the target wrote stand the likeliest tokens with their log-probabilities: what the draft learns from.
A conversation is a pure function of its number.
"""

import argparse
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoTokenizer

from models.assistant.chats import NUM_TOP, Chats, joined, save_chats
from models.assistant.openings import Opening, draw_opening
from models.assistant.target import target_folder
from services.common.sampling_params import SamplingParams
from services.engine.config import Dtype, EngineConfig
from services.engine.engine import Engine
from services.engine.forward import Batch
from services.engine.sequence import Sequence

SEED = 20_26
NUM_CHATS = 6144
ROWS = 96
"""Conversations that are written at once."""
CHATS_A_FILE = 256
_MAX_QUESTION_TOKENS = 96
_MAX_ANSWER_TOKENS = 320
_GREEDY_SHARE = 0.45
_SECOND_TURN_SHARE = 0.25
_LOGITS_ONLY = SamplingParams(temperature=0.0)
_SECONDS_BETWEEN_REPORTS = 20.0

logger = logging.getLogger(__name__)


class _Turn(Enum):
    QUESTION = auto()
    ANSWER = auto()


@dataclass(slots=True, eq=False)
class _Chat:
    """A conversation that is being written."""

    number: int
    generator: np.random.Generator
    opening: Opening
    temperature: float
    """Of the answers; questions are drawn at 1."""
    turns: list[_Turn]
    sequence: Sequence
    left: int
    """Tokens that the turn may still have."""
    written: list["_Written"] = field(default_factory=list)


class _Written(NamedTuple):
    """A token that the target wrote: where, whether in an answer, and what was likeliest there."""

    at: int
    is_answer: bool
    ids: NDArray[np.uint16]
    logprobs: NDArray[np.float16]


class Writer:
    """Writes conversations with the target."""

    def __init__(self, folder: Path, threads: int) -> None:
        config = EngineConfig(
            model=str(folder), dtype=Dtype.BFLOAT16, num_threads=threads, max_sequences=ROWS, kv_bytes=5 << 28
        )
        self._engine = Engine(config)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._end = int(self._tokenizer.eos_token_id)
        self._rows: tuple[list[Sequence], Tensor] = ([], torch.empty(0))
        run = self._engine.runner.forward.run

        def kept(batch: Batch) -> Tensor:
            logits = run(batch)
            self._rows = [work.sequence for work in batch.works], logits
            return logits

        self._engine.runner.forward.run = kept  # type: ignore[method-assign]

    def write(self, numbers: Iterator[int], *, questions_only: bool = False) -> Iterator[tuple[int, Chats]]:
        """The conversations of these numbers, each with its number, as they get done; or their first questions."""
        chats: dict[Sequence, _Chat] = {}
        while True:
            while len(chats) < ROWS and (number := next(numbers, None)) is not None:
                chat = self._begin(number)
                if questions_only:
                    chat.turns = chat.turns[:1]
                chats[chat.sequence] = chat
                self._engine.add(chat.sequence)
            if not chats:
                return
            results = self._engine.step()
            sequences, logits = self._rows
            top = logits.topk(NUM_TOP, dim=-1)
            logprobs = (top.values - logits.logsumexp(-1, keepdim=True)).half().numpy()
            ids = top.indices.numpy().astype(np.uint16)
            row_of = {sequence: row for row, sequence in enumerate(sequences)}
            for result in results:
                chat, row = chats[result.sequence], row_of[result.sequence]
                if self._go_on(chat, ids[row], logprobs[row]):
                    del chats[chat.sequence]
                    self._engine.remove(chat.sequence)
                    yield chat.number, _done(chat)

    def _begin(self, number: int) -> _Chat:
        generator = np.random.default_rng([SEED, number])
        opening = draw_opening(generator)
        greedy = generator.random() < _GREEDY_SHARE
        temperature = 0.0 if greedy else float(generator.uniform(0.3, 1.0))
        turns = [_Turn.QUESTION, _Turn.ANSWER]
        if generator.random() < _SECOND_TURN_SHARE:
            turns *= 2
        text = f"<|im_start|>system\n{opening.system}<|im_end|>\n<|im_start|>user\n{opening.words}"
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        sequence = Sequence(ids, len(ids), _LOGITS_ONLY)
        return _Chat(number, generator, opening, temperature, turns, sequence, _MAX_QUESTION_TOKENS)

    def _go_on(self, chat: _Chat, ids: NDArray[np.uint16], logprobs: NDArray[np.float16]) -> bool:
        """Adds the next token, drawn from the likeliest; whether the conversation is done."""
        sequence, is_answer = chat.sequence, chat.turns[0] is _Turn.ANSWER
        token_id = int(ids[_draw(logprobs, chat.temperature if is_answer else 1.0, chat.generator)])
        chat.written.append(_Written(len(sequence), is_answer, ids, logprobs))
        sequence.token_ids.append(token_id)
        chat.left -= 1
        if token_id == self._end or (chat.left <= 0 and not is_answer):
            del chat.turns[0]
            if not chat.turns:
                return True
            role = "assistant" if chat.turns[0] is _Turn.ANSWER else "user"
            ended = "" if token_id == self._end else "<|im_end|>"
            text = f"{ended}\n<|im_start|>{role}\n"
            sequence.token_ids.extend(self._tokenizer(text, add_special_tokens=False)["input_ids"])
            chat.left = _MAX_QUESTION_TOKENS if role == "user" else _MAX_ANSWER_TOKENS
        sequence.first_logits, sequence.num_settled = len(sequence) - 1, len(sequence)
        return chat.left <= 0


def _done(chat: _Chat) -> Chats:
    ids = np.array(chat.sequence.token_ids, np.uint16)
    is_answer = np.zeros(len(ids), np.bool_)
    tops, logprobs = np.zeros((len(ids), NUM_TOP), np.uint16), np.zeros((len(ids), NUM_TOP), np.float16)
    for written in chat.written:
        is_answer[written.at], tops[written.at], logprobs[written.at] = written[1:]
    return Chats(
        ids, np.array([0, len(ids)]), np.array([chat.opening.kind], np.int8),
        np.array([chat.temperature], np.float32), is_answer, tops, logprobs,
    )  # fmt: skip


def _draw(logprobs: NDArray[np.float16], temperature: float, generator: np.random.Generator) -> int:
    """Which of the likeliest is taken; they come in order."""
    if temperature == 0:
        return 0
    sums = np.exp((logprobs.astype(np.float64) - float(logprobs[0])) / temperature).cumsum()
    return int(np.searchsorted(sums, generator.random() * sums[-1]))


def write_files(writer: Writer, numbers: Iterator[int], folder: Path) -> None:
    """Writes files of CHATS_A_FILE conversations, each once all of its are done."""
    parts: dict[int, dict[int, Chats]] = {}
    began, told, num_tokens = time.monotonic(), 0.0, 0
    for number, chat in writer.write(numbers):
        first = number - number % CHATS_A_FILE
        part = parts.setdefault(first, {})
        part[number] = chat
        num_tokens += len(chat.token_ids)
        seconds = time.monotonic() - began
        if seconds > told + _SECONDS_BETWEEN_REPORTS:
            told = seconds
            logger.info("chat %d, %d tokens, %.0f tokens/s", number, num_tokens, num_tokens / seconds)
        if len(part) == CHATS_A_FILE:
            save_chats(folder / f"{first:06}.npz", joined([part[n] for n in sorted(part)]))
            del parts[first]


def main() -> None:
    """Writes the files that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/assistant/chats"), help="default: %(default)s")
    parser.add_argument("--first", type=int, default=0, help="number of the first; default: %(default)s")
    parser.add_argument("--num-chats", type=int, default=NUM_CHATS, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="several processes with one each are the fastest")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arguments.output.mkdir(parents=True, exist_ok=True)
    writer = Writer(target_folder(), arguments.threads)
    missing = (
        number
        for first in range(arguments.first, arguments.first + arguments.num_chats, CHATS_A_FILE)
        if not (arguments.output / f"{first:06}.npz").exists()
        for number in range(first, first + CHATS_A_FILE)
    )
    write_files(writer, missing, arguments.output)


if __name__ == "__main__":
    main()
