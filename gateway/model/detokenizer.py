"""Text from tokens as they come: whole characters only, each as soon as it is complete."""

from collections.abc import Sequence

from tokenizers import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_HELD = 64
"""Tokens without one complete character among them that are waited for; only noise has as many."""
_MAX_CHARACTER = 4
"""Bytes, so tokens, of one character in UTF-8."""


class Detokenizer:
    """Turns the token ids of one text into deltas whose concatenation is the decoded text.

    How the tokens are grouped into calls changes nothing.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Handed out already, decoded again before what follows: a token's text may depend on the one before it.
        self._context: list[int] = []
        self._num_told = 0
        """Characters of the decoded context."""
        self._held: list[int] = []

    def push(self, token_ids: Sequence[int]) -> str:
        """New text that these tokens complete."""
        return "".join(map(self._push_one, token_ids))

    def flush(self) -> str:
        """What is left: incomplete bytes become U+FFFD."""
        return self._tell(len(self._held))

    def _push_one(self, token_id: int) -> str:
        self._held.append(token_id)
        if not self._decode(self._context + self._held).endswith(_REPLACEMENT):
            return self._tell(len(self._held))
        if len(self._held) >= _MAX_HELD:
            return self._tell(len(self._held) - _MAX_CHARACTER)
        return ""

    def _tell(self, count: int) -> str:
        """Text of the first held tokens, which become the context of those after them."""
        told, self._held = self._held[:count], self._held[count:]
        delta = self._decode(self._context + told)[self._num_told :]
        if told:
            self._context, self._num_told = told, len(self._decode(told))
        return delta

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return text
