"""Drafting without a model: what followed when the last tokens occurred before.

Answers that repeat their prompt, or themselves, are guessed well by what came after the longest earlier occurrence of
their end (Saxena 2023, "Prompt lookup decoding"; Hu et al. 2024, arXiv 2411.04975, for suffix structures). Occurrences
are found by their last `MIN_MATCH` tokens and compared backwards.
"""

from collections import abc
from typing import NamedTuple

MIN_MATCH = 3
_MAX_MATCH = 32
_MAX_COMPARED = 8


class Match(NamedTuple):
    """The longest earlier occurrence found: how many tokens it has in common, and what came after it."""

    length: int
    token_ids: list[int]


NO_MATCH = Match(0, [])


class SuffixIndex:
    """A text and where its runs of MIN_MATCH tokens end. Memory grows with the text: 100 bytes a token or so."""

    def __init__(self, start: int = 0) -> None:
        """`start` is where its text begins in that of a sequence."""
        self.start = start
        self._text: list[int] = []
        self._last: dict[tuple[int, ...], int] = {}
        self._before: list[int] = []
        """Each length of text has the next earlier one that ends with the same run; 0 for none."""

    def __len__(self) -> int:
        return len(self._text)

    def extend(self, token_ids: abc.Sequence[int]) -> None:
        """The text goes on."""
        text = self._text
        for token_id in token_ids:
            text.append(token_id)
            run = tuple(text[-MIN_MATCH:])
            self._before.append(self._last.get(run, 0))
            self._last[run] = len(text)

    def match(self, limit: int, ending: abc.Sequence[int] | None = None) -> Match:
        """What may follow `ending` (default: the text itself), at most `limit` tokens."""
        text = self._text
        own = ending is None
        wanted = text if ending is None else ending
        at = self._last.get(tuple(wanted[-MIN_MATCH:]), 0) if len(wanted) >= MIN_MATCH else 0
        best, length = 0, 0
        for _ in range(_MAX_COMPARED):
            if at and own and at == len(text):
                at = self._before[at - 1]
            if not at:
                break
            common = _common(text, at, wanted)
            if common > length and at < len(text):
                best, length = at, common
            at = self._before[at - 1]
        if not best:
            return NO_MATCH
        # What follows may reach the end of the text, where it repeats itself from the match on.
        period = len(text) - best if own else limit
        return Match(length, [text[best + step % period] for step in range(limit) if best + step % period < len(text)])


class History:
    """Recent texts of one tenant and model, one after the other. Bounded: the older half is forgotten at once."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._texts: list[list[int]] = []
        self._index = SuffixIndex()

    def add(self, token_ids: abc.Sequence[int]) -> None:
        """Remembers a text's latest tokens."""
        text = list(token_ids)[-self._max_tokens // 2 :]
        if len(self._index) + len(text) > self._max_tokens:
            while sum(map(len, self._texts)) + len(text) > self._max_tokens // 2 and self._texts:
                del self._texts[0]
            self._index = SuffixIndex()
            for kept in self._texts:
                self._index.extend(kept)
        self._texts.append(text)
        self._index.extend(text)

    def match(self, ending: abc.Sequence[int], limit: int) -> Match:
        """What may follow, by an earlier text."""
        return self._index.match(limit, ending)


def _common(text: abc.Sequence[int], at: int, wanted: abc.Sequence[int]) -> int:
    """Tokens before `at` that equal the last of `wanted`."""
    most = min(at, len(wanted), _MAX_MATCH)
    for count in range(most):
        if text[at - 1 - count] != wanted[len(wanted) - 1 - count]:
            return count
    return most
