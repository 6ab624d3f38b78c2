"""The target answers in a style that it is told: `python -m models.assistant.restyling`. What adapters learn from.

It writes the questions too. In what is kept, the instruction is left out: the conversation is an ordinary one, with an
answer that is not.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from models.assistant.chats import Chats, save_chats
from models.assistant.evaluation import answers
from models.assistant.held_out import Question, held_out, prompt_of
from models.assistant.openings import KINDS, draw_opening
from models.assistant.styles import STYLES, Style
from models.assistant.target import target_folder
from services.engine.config import Dtype, EngineConfig
from services.engine.engine import Engine

SEED = 2_026_11
QUESTIONS = 1200
_MAX_QUESTION_TOKENS, _MAX_ANSWER_TOKENS = 48, 96
_MIN_P = 0.05
"""Less likely than the likeliest by so much is never said."""
_ANSWER_TEMPERATURE = 0.5
_COPIED, _SAME = 5, 2
"""So many words in a row that are an example's are copied; so many that come again, a circle."""
_END = "<|im_end|>"

logger = logging.getLogger(__name__)


def write_questions(target: Engine, tokenizer: Any, count: int, seed: int) -> list[Question]:
    """Questions that the target thinks of, each once, and none that is measured on."""
    generator = np.random.default_rng(seed)
    openings = [draw_opening(generator) for _ in range(count)]
    starts = [f"<|im_start|>system\n{o.system}{_END}\n<|im_start|>user\n{o.words}" for o in openings]
    prompts = [tokenizer(start, add_special_tokens=False)["input_ids"] for start in starts]
    known = {question.user.strip() for question in held_out()}
    questions = []
    written = answers(target, prompts, 1.0, num_tokens=_MAX_QUESTION_TOKENS, min_p=_MIN_P)
    for opening, prompt, ids in zip(openings, prompts, written, strict=True):
        said, end, _ = (opening.words + tokenizer.decode(ids[len(prompt) :])).partition(_END)
        if end and (user := said.strip()) and user not in known:
            known.add(user)
            questions.append(Question(KINDS[opening.kind], opening.system, user))
    return questions


def restyle(target: Engine, tokenizer: Any, questions: Sequence[Question], style: Style) -> Chats:
    """Conversations with those of the answers that are of the style, copy no example and do not go round."""
    told = [prompt_of(tokenizer, style.told(question.user)) for question in questions]
    answers(target, told[:1], 0.0, num_tokens=1)  # What they all begin with is computed once.
    written = answers(
        target,
        told,
        _ANSWER_TEMPERATURE,
        num_tokens=_MAX_ANSWER_TOKENS,
        min_p=_MIN_P,
        frequency_penalty=style.frequency_penalty,
    )
    shown = set().union(*(_runs(answer, _COPIED) for _, answer in style.examples))
    token_ids: list[int] = []
    is_answer: list[bool] = []
    offsets, kinds = [0], []
    for question, prompt, ids in zip(questions, told, written, strict=True):
        answer = ids[len(prompt) :]
        text, end, _ = tokenizer.decode(answer).partition(_END)
        if not end or not style.fits(text) or _runs(text, _COPIED) & shown or _goes_round(text):
            continue
        asked = prompt_of(tokenizer, question.messages)
        token_ids += asked + answer
        is_answer += [False] * len(asked) + [True] * len(answer)
        offsets.append(len(token_ids))
        kinds.append(KINDS.index(question.kind))
    return Chats(
        np.array(token_ids, np.uint16), np.array(is_answer, bool), np.array(offsets, np.int64), np.array(kinds, np.int8)
    )


def _runs(text: str, length: int) -> set[str]:
    """All runs of so many words."""
    words = text.lower().split()
    return {" ".join(words[at : at + length]) for at in range(len(words) - length + 1)}


def _goes_round(text: str) -> bool:
    """Whether a text says the same again."""
    return len(_runs(text, _SAME)) < len(text.split()) - _SAME + 1


def main() -> None:
    """Writes a file of conversations for each style."""
    names = [style.name for style in STYLES]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/assistant"), help="default: %(default)s")
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="asked of each style; default: %(default)s")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="styles; default: all")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    target = Engine(EngineConfig(model=str(target_folder()), dtype=Dtype.BFLOAT16))
    tokenizer = AutoTokenizer.from_pretrained(target_folder())
    arguments.output.mkdir(parents=True, exist_ok=True)
    for number, style in enumerate(STYLES):
        if style.name not in arguments.only:
            continue
        questions = write_questions(target, tokenizer, arguments.questions, SEED + number)
        chats = restyle(target, tokenizer, questions, style)
        save_chats(arguments.output / f"{style.name}.npz", chats)
        counts = len(chats), len(questions), int(chats.is_answer.sum())
        logger.info("%s: %d of %d answers, %d tokens", style.name, *counts)


if __name__ == "__main__":
    main()
