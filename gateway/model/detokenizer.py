"""Text from tokens as they come: whole characters only, each as soon as it is complete."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_HELD = 64
"""Tokens without one complete character among them that are waited for; only noise has as many."""
_MAX_CHARACTER = 4
"""Bytes, so tokens, of one character in UTF-8."""
_MAX_CONTEXT = 64
"""Tokens without any text that are remembered; only noise has as many."""
_MAX_LOOKED_AT = 1024
"""Tokens of a prompt, from its end, among which those with text are looked for."""
_MAY_BE_CLEANED = " 'nvr"
"""Characters that what a tokenizer cleans up has before its last one."""


class Decoding(NamedTuple):
    """How a tokenizer makes text of tokens."""

    decode: Callable[[list[int]], str]
    """The text of tokens, of which it depends on the ones before what a token's text is."""
    is_silent: Callable[[int], bool]
    """Whether a token is left out of the text before it is decoded."""
    clean_up: Callable[[str], str] | None = None
    """What removes spaces before punctuation from a decoded text; None where the tokenizer removes none."""


class Detokenizer:
    """Turns the token ids of one text into deltas whose concatenation is the decoded text.

    How the tokens are grouped into calls changes nothing. Behind a prompt the deltas are what the text of prompt and
    tokens has behind that of the prompt.
    """

    def __init__(self, decoding: Decoding, prompt_ids: Sequence[int] = ()) -> None:
        self._decoding = decoding
        # Handed out already, decoded again before what follows: a token's text may depend on those before it, up to the
        # last one that has any.
        self._context = self._end_of(prompt_ids)
        self._told = decoding.decode(self._context)
        """Text of the context."""
        self._held: list[int] = []
        self._unclean = ""
        """Text that is not handed out before it is known what follows it."""

    def push(self, token_ids: Sequence[int]) -> str:
        """New text that these tokens complete."""
        return self._clean("".join(map(self._push_one, token_ids)))

    def flush(self) -> str:
        """What is left: incomplete bytes become U+FFFD."""
        rest = self._clean(self._tell(len(self._held)))
        if self._decoding.clean_up is not None:
            rest += self._decoding.clean_up(self._unclean)
            self._unclean = ""
        return rest

    def _push_one(self, token_id: int) -> str:
        if self._decoding.is_silent(token_id):
            return ""
        self._held.append(token_id)
        if not self._decoding.decode(self._context + self._held).endswith(_REPLACEMENT):
            return self._tell(len(self._held))
        if len(self._held) >= _MAX_HELD:
            return self._tell(len(self._held) - _MAX_CHARACTER)
        return ""

    def _tell(self, count: int) -> str:
        """Text of the first held tokens, which become the context of those after them."""
        told, self._held = self._held[:count], self._held[count:]
        if not told:
            return ""
        text = self._decoding.decode(self._context + told)
        delta = text[_num_common(self._told, text) :]
        if delta:
            self._context = told
            self._told = self._decoding.decode(told)
        else:
            self._context = (self._context + told)[-_MAX_CONTEXT:]
            self._told = self._decoding.decode(self._context)
        return delta

    def _end_of(self, prompt_ids: Sequence[int]) -> list[int]:
        """The last tokens of a prompt on which the text of those after it may depend: they have text, and begin with
        a whole character.
        """
        end: list[int] = []
        for token_id in reversed(prompt_ids[-_MAX_LOOKED_AT:]):
            if self._decoding.is_silent(token_id):
                continue
            end.insert(0, token_id)
            text = self._decoding.decode(end)
            if (text.strip(_REPLACEMENT) and not text.startswith(_REPLACEMENT)) or len(end) >= _MAX_CONTEXT:
                break
        return end

    def _clean(self, text: str) -> str:
        """Text as far as nothing that follows can change how it is cleaned up."""
        if self._decoding.clean_up is None:
            return text
        text = self._unclean + text
        sure = len(text.rstrip(_MAY_BE_CLEANED))
        self._unclean = text[sure:]
        return self._decoding.clean_up(text[:sure])


def _num_common(told: str, text: str) -> int:
    """Characters with which both begin: of an incomplete one that was told the rest may have come."""
    if text.startswith(told):
        return len(told)
    return next(at for at in range(len(told)) if at >= len(text) or told[at] != text[at])
