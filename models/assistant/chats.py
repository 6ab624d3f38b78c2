"""Conversations that the target wrote, on disk and in memory."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

HELD_OUT_SHARE = 64
_HEAD_TOKENS = 64
"""Conversations that begin with the same tokens are held out together."""


class Chats(NamedTuple):
    """Conversations one behind another."""

    token_ids: NDArray[np.uint16]
    """All tokens, [tokens]."""
    is_answer: NDArray[np.bool_]
    """Whether the target wrote the token in an answer, [tokens]."""
    offsets: NDArray[np.int64]
    """Where each conversation begins, and the end of the last, [chats + 1]."""
    kinds: NDArray[np.int8]
    """Kind of each one's opening, [chats]."""

    def __len__(self) -> int:
        return len(self.kinds)

    def take(self, numbers: NDArray[np.int64]) -> "Chats":
        """Those of these numbers, in this order."""
        spans = [np.arange(self.offsets[n], self.offsets[n + 1]) for n in numbers]
        at = np.concatenate(spans) if spans else np.zeros(0, np.int64)
        return Chats(self.token_ids[at], self.is_answer[at], np.cumsum([0, *map(len, spans)]), self.kinds[numbers])


def save_chats(path: Path, chats: Chats) -> None:
    """Writes a file, whole or not at all."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, **chats._asdict())
    partial.replace(path)


def load_chats(path: Path) -> Chats:
    """All conversations of a file."""
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}: `python -m models.assistant.writing` writes conversations")
    with np.load(path) as file:
        return Chats(**{name: file[name] for name in Chats._fields})


def split(chats: Chats) -> tuple[Chats, Chats]:
    """Conversations to learn from, and those held out, chosen by a digest of how they begin."""
    starts = chats.offsets[:-1]
    held_out = np.array([_bucket(chats.token_ids[start : start + _HEAD_TOKENS]) for start in starts]) == 0
    return chats.take(np.flatnonzero(~held_out)), chats.take(np.flatnonzero(held_out))


def without(chats: Chats, beginnings: list[list[int]]) -> Chats:
    """Those that begin in none of these ways."""
    by_length: dict[int, set[bytes]] = {}
    for ids in beginnings:
        by_length.setdefault(len(ids), set()).add(np.array(ids, np.uint16).tobytes())

    def begins_so(start: int) -> bool:
        return any(chats.token_ids[start : start + n].tobytes() in those for n, those in by_length.items())

    return chats.take(np.flatnonzero([not begins_so(int(start)) for start in chats.offsets[:-1]]))


def _bucket(token_ids: NDArray[np.uint16]) -> int:
    return int.from_bytes(blake3(token_ids.tobytes()).digest(8), "big") % HELD_OUT_SHARE
