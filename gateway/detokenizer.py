"""Text from tokens as they come: whole characters only, each as soon as it is complete."""

from collections.abc import Sequence

from tokenizers import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_INCOMPLETE = 4
"""A character takes four bytes at most; a longer run of undecodable bytes never becomes one."""


class Detokenizer:
    """Turns the token ids of one text into deltas whose concatenation is the decoded text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Both begin and end between characters, so that what is decoded after them does not depend on what was before.
        self._context: list[int] = []
        self._held: list[int] = []
        self._told = 0
        """Characters of the decoded context and held tokens that have been handed out."""

    def push(self, token_ids: Sequence[int]) -> str:
        """New text that these tokens complete."""
        self._held.extend(token_ids)
        text = self._decode(self._context + self._held)
        whole = text.rstrip(_REPLACEMENT)
        if len(text) - len(whole) > _MAX_INCOMPLETE:
            whole = text
        delta = whole[self._told :]
        self._told = max(self._told, len(whole))
        if whole == text and self._held:
            self._context, self._held = self._held, []
            self._told = len(self._decode(self._context))
        return delta

    def flush(self) -> str:
        """What is left: incomplete bytes become U+FFFD."""
        return self._decode(self._context + self._held)[self._told :]

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return text
