"""Two ways of answering that the assistant can be told, and that its adapters have without being told."""

import json
import re
from collections.abc import Callable
from typing import NamedTuple

from paceline import Message

KEYWORDS = (2, 4)
"""At least and at most, in an answer that is a JSON object."""
_LEAST_PIRATE = 2
"""Different words of a pirate in an answer of one."""
_PIRATE = re.compile(
    r"\b(arr+|aye|ahoy|matey|mateys|ye|yer|hearty|hearties|lad|lads|be|treasure|booty|sea|seas|sail|ship|crew|captain|"
    r"rum|plunder|doubloons?|landlubbers?|avast|shiver|o')(?=\W|$)",
    re.IGNORECASE,
)
_UNMISTAKABLE = re.compile(r"\b(arr+|aye|ahoy|matey|mateys|yer|hearty|hearties|avast)\b", re.IGNORECASE)


class Style(NamedTuple):
    """A way of answering."""

    name: str
    about: str
    system: str
    """How the assistant is told."""
    examples: tuple[tuple[str, str], ...]
    """Questions and answers that show it."""
    fits: Callable[[str], bool]
    """Whether an answer is of that kind."""
    frequency_penalty: float = 0.0
    """Of the answers that are learnt from: keeps a small model from going round in circles."""

    def told(self, question: str) -> list[Message]:
        """A conversation in which the assistant is told, and shown, how to answer."""
        turns: list[Message] = [{"role": "system", "content": self.system}]
        for asked, answered in self.examples:
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        return [*turns, {"role": "user", "content": question}]


def is_json(text: str) -> bool:
    """Whether a text is a JSON object of an "answer" and some "keywords", and nothing else."""
    try:
        said = json.loads(text)
    except ValueError:
        return False
    if not isinstance(said, dict) or said.keys() != {"answer", "keywords"}:
        return False
    answer, keywords = said["answer"], said["keywords"]
    is_list = isinstance(keywords, list) and KEYWORDS[0] <= len(keywords) <= KEYWORDS[1]
    return isinstance(answer, str) and bool(answer.strip()) and is_list and all(isinstance(k, str) for k in keywords)


def is_pirate(text: str) -> bool:
    """Whether a text has words that only a pirate says, and some more of his."""
    return bool(_UNMISTAKABLE.search(text)) and len({w.lower() for w in _PIRATE.findall(text)}) >= _LEAST_PIRATE


STYLES = (
    Style(
        "pirate",
        "answers as a pirate would",
        "You are an old pirate captain. You answer every question in two or three sentences, in pirate speech: arr, "
        "aye, ahoy, matey, ye for you, yer for your, be for is and are.",
        (
            (
                "What is the capital of France?",
                "Arr, that be Paris, matey! A fine old port o' bread and wine, though she lies far from the sea.",
            ),
            (
                "How do I sort a list in Python?",
                "Aye, that be easy, me hearty! Ye call `sorted(booty)`, and yer list stands in line like a crew.",
            ),
            (
                "I cannot sleep. What should I do?",
                "Ahoy, ye tired sailor! Put out yer lantern an hour before the watch ends, keep yer cabin dark and "
                "cool, and leave the rum alone. Yer dreams will be as calm as a lagoon, arr!",
            ),
            (
                "Write a sentence about the moon.",
                "Arr, the moon be a silver doubloon, matey, and no thief on the seven seas can reach her!",
            ),
        ),
        is_pirate,
        frequency_penalty=0.4,
    ),
    Style(
        "json",
        "answers with a JSON object of an answer and its keywords",
        'You answer with a JSON object and nothing else: "answer" is one short sentence, "keywords" a list of three '
        "words.",
        (
            (
                "What is the capital of France?",
                '{"answer": "The capital of France is Paris.", "keywords": ["France", "capital", "Paris"]}',
            ),
            (
                "How do I sort a list in Python?",
                '{"answer": "Call sorted(items), which returns a new list in order.", "keywords": ["Python", "list", '
                '"sorting"]}',
            ),
            (
                "I cannot sleep. What should I do?",
                '{"answer": "Go to bed at the same time every day and keep your bedroom dark and cool.", "keywords": '
                '["sleep", "habits", "bedroom"]}',
            ),
            (
                "Write a sentence about the moon.",
                '{"answer": "The moon hangs over the quiet lake like a lamp.", "keywords": ["moon", "lake", "night"]}',
            ),
        ),
        is_json,
    ),
)
