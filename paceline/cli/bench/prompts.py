"""What is asked: prompts of a file, or made-up ones, each of them once."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

Prompt = str | Sequence[int]


class PromptsError(ValueError):
    """A file's prompts cannot be used. The message is one sentence for the user."""


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file, one a line: text, or a JSON object whose "prompt" is text or token ids.

    Raises PromptsError, which names the line.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise PromptsError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PromptsError(f"{path} is no text in UTF-8") from None
    prompts = [_read(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise PromptsError(f"{path} holds no prompt")
    return prompts


def made_up(count: int, num_tokens: int, vocab_size: int, seed: int) -> list[Prompt]:
    """Prompts of random token ids, the same ones for the same seed."""
    rng = random.Random(seed)
    return [[rng.randrange(1, vocab_size) for _ in range(num_tokens)] for _ in range(count)]


def _read(place: str, line: str) -> Prompt:
    if not line.lstrip().startswith("{"):
        return line
    try:
        prompt = json.loads(line).get("prompt")
    except json.JSONDecodeError as error:
        raise PromptsError(f"{place} is no JSON: {error}") from None
    if isinstance(prompt, str) and prompt:
        return prompt
    if isinstance(prompt, list) and prompt and all(type(each) is int and each >= 0 for each in prompt):
        return prompt
    raise PromptsError(f'{place} has no "prompt" that is text or token ids')
