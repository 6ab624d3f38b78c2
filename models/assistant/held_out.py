"""Questions that the draft never learnt from: `python -m models.assistant.held_out` has the target write them.

They are the beginnings of conversations with other numbers than those that are learnt from. What is measured, is
measured on them: they lie beside the recipe.
"""

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoTokenizer

from models.assistant.openings import KINDS
from models.assistant.target import device_here, load_target, target_folder
from models.assistant.writing import Writer
from paceline import Message

NUM_QUESTIONS = 200
FILE = Path(__file__).with_name("held_out.json")
_SEED = 1_000_000
_STEPS = 160
_USER, _END, _ANSWER = "<|im_start|>user\n", "<|im_end|>", "<|im_start|>assistant\n"
_SYSTEM = "<|im_start|>system\n"


class Question(NamedTuple):
    """The beginning of a conversation."""

    kind: str
    """One of KINDS."""
    system: str
    user: str

    @property
    def messages(self) -> list[Message]:
        """As clients send it."""
        return [{"role": "system", "content": self.system}, {"role": "user", "content": self.user}]


def held_out() -> list[Question]:
    """All of them, in an order that mixes kinds."""
    return [Question(*each) for each in json.loads(FILE.read_text())]


def held_out_prompts(tokenizer: Any) -> list[list[int]]:
    """Token ids of these conversations, ending where the answer begins."""
    return [prompt_of(tokenizer, question.messages) for question in held_out()]


def prompt_of(tokenizer: Any, messages: list[Message]) -> list[int]:
    """Token ids of a conversation, ending where the answer begins."""
    ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    return ids


def main() -> None:
    """Writes the file."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tokenizer: Any = AutoTokenizer.from_pretrained(target_folder())
    chats = Writer(load_target(target_folder(), device_here()), tokenizer, NUM_QUESTIONS, _SEED).write(_STEPS)
    questions = []
    for start, end, kind in zip(chats.offsets, chats.offsets[1:], chats.kinds, strict=False):
        text, _, answer = str(tokenizer.decode(chats.token_ids[start:end].tolist())).partition(_ANSWER)
        system, _, question = text.removeprefix(_SYSTEM).partition(f"{_END}\n{_USER}")
        if answer:
            questions.append(Question(KINDS[int(kind)], system, question.removesuffix(f"{_END}\n")))
    FILE.write_text(json.dumps(questions[:NUM_QUESTIONS], ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
