"""The assistant as `transformers` has it: the model that tests of a real one compare with."""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from paceline import Message
from services.engine.gguf_conversion import convert
from services.local.model_files import gguf_of
from services.local.pair import ASSISTANT

NUM_TOKENS = 40


class Said(NamedTuple):
    """An answer."""

    token_ids: list[int]
    """With the token that ends it, where it came so far."""
    text: str


def user(*texts: str, system: str = "") -> list[Message]:
    """A conversation: what the user says, what was answered, and so on."""
    first: list[Message] = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant")
    return [*first, *({"role": roles[at % 2], "content": text} for at, text in enumerate(texts))]


CHATS: Sequence[list[Message]] = (
    user("Write a haiku about the sea."),
    user("Was ist die Hauptstadt von Frankreich?"),
    user("日本の首都はどこですか?"),
    user("Answer only with emoji: how is the weather in summer? 🌞"),
    user("Write a Python function that adds two numbers."),
    user("What is 12 times 12?"),
    user("List three fruits."),
    user('Return {"name": "Ada"} as JSON and nothing else.'),
    user("Who are you?", system="You are a pirate who answers in one sentence."),
    user("My name is Ada.", "Nice to meet you, Ada!", "What is my name?"),
    user("¿Cómo estás? Grüße, café, naïve, 你好 👩‍👩‍👧‍👦"),
    user("Say yes."),
    user("Translate to French: the cat sleeps.\n\n\tThank you!  "),
    user("<b>What is this?</b> & why"),
)


@cache
def reference() -> tuple[Any, Any]:
    """Model in float32 and tokenizer. Raises LaunchError, in a sentence, where `paceline get` was not run."""
    file = gguf_of(ASSISTANT)
    assert file is not None
    folder = convert(file)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.train(False), AutoTokenizer.from_pretrained(folder)


def prompt_of(messages: list[Message]) -> list[int]:
    """The ids that `apply_chat_template` makes of a conversation."""
    ids: list[int] = reference()[1].apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    return ids


@cache
def _said(prompt: tuple[int, ...], answer: tuple[int, ...]) -> Said:
    model, tokenizer = reference()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*prompt, *answer[:-1]]]), use_cache=False).logits[0]
    picks = logits[len(prompt) - 1 :].argmax(-1).tolist()
    return Said(picks, tokenizer.decode(picks, skip_special_tokens=True))


def expected(messages: list[Message], answer: list[int]) -> Said:
    """What `transformers` picks greedily behind a prompt and each token of an answer: that answer, if it is its own.

    One forward over all of it is faster than to generate, and the same.
    """
    return _said(tuple(prompt_of(messages)), tuple(answer))
