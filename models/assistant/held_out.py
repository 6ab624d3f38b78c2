"""Questions that the draft never learnt from: `python -m models.assistant.held_out` has the target write them.

They are the beginnings of conversations with other numbers than those that are learnt from. What is measured, is
measured on them: they lie beside the recipe.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoTokenizer

from models.assistant.openings import KINDS
from models.assistant.target import target_folder
from models.assistant.writing import Writer
from paceline import Message

NUM_QUESTIONS = 200
FILE = Path(__file__).with_name("held_out.json")
_FIRST = 1_000_000
_USER, _END = "<|im_start|>user\n", "<|im_end|>"
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


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    tokenizer: Any = AutoTokenizer.from_pretrained(target_folder())
    writer = Writer(target_folder(), arguments.threads)
    numbers = iter(range(_FIRST, _FIRST + NUM_QUESTIONS))
    written = dict(writer.write(numbers, questions_only=True))
    questions = []
    for number in sorted(written):
        text = str(tokenizer.decode(written[number].token_ids.tolist())).removesuffix(_END)
        system, _, question = text.removeprefix(_SYSTEM).partition(f"{_END}\n{_USER}")
        questions.append(Question(KINDS[int(written[number].kinds[0])], system, question))
    FILE.write_text(json.dumps(questions, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
