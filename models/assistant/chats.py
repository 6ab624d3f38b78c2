"""Conversations that the target wrote, with what it thought of each token, on disk and in memory."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

NUM_TOP = 32
"""Likeliest tokens that are kept of a distribution. They hold 97 % of its mass at temperature 1, on average."""
HELD_OUT_SHARE = 32
_HEAD_TOKENS = 64
"""Conversations that begin with the same tokens are held out together."""


class Chats(NamedTuple):
    """Conversations one behind another."""

    token_ids: NDArray[np.uint16]
    """All tokens, [tokens]."""
    offsets: NDArray[np.int64]
    """Where each conversation begins, and the end of the last, [chats + 1]."""
    kinds: NDArray[np.int8]
    """Kind of each one's opening, [chats]."""
    temperatures: NDArray[np.float32]
    """Of each one's answers, [chats]."""
    is_answer: NDArray[np.bool_]
    """Whether the target wrote the token in an answer, [tokens]."""
    top_ids: NDArray[np.uint16]
    """The likeliest tokens in the token's place, likeliest first, [tokens, NUM_TOP]; zeros where it was given."""
    top_logprobs: NDArray[np.float16]
    """Their log-probabilities in nats at temperature 1, [tokens, NUM_TOP]; zeros where the token was given."""

    def __len__(self) -> int:
        return len(self.kinds)

    def take(self, numbers: NDArray[np.int64]) -> "Chats":
        """Those of these numbers, in this order."""
        spans = [np.arange(self.offsets[n], self.offsets[n + 1]) for n in numbers]
        at = np.concatenate(spans) if spans else np.zeros(0, np.int64)
        offsets = np.cumsum([0, *map(len, spans)])
        return Chats(
            self.token_ids[at], offsets, self.kinds[numbers], self.temperatures[numbers], self.is_answer[at],
            self.top_ids[at], self.top_logprobs[at],
        )  # fmt: skip


def joined(parts: list[Chats]) -> Chats:
    """All of them as one."""
    lengths = [np.diff(part.offsets) for part in parts]
    others = [np.concatenate(field) for field in zip(*parts, strict=True)]
    return Chats(others[0], np.concatenate([[0], np.concatenate(lengths).cumsum()]), *others[2:])


def save_chats(path: Path, chats: Chats) -> None:
    """Writes a file, whole or not at all."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, **chats._asdict())
    partial.replace(path)


def load_chats(folder: Path) -> Chats:
    """All conversations of a folder's files."""
    parts = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as file:
            parts.append(Chats(**{name: file[name] for name in Chats._fields}))
    if not parts:
        raise FileNotFoundError(f"{folder} has no conversations: `python -m models.assistant.writing` writes some")
    return joined(parts)


def split(chats: Chats) -> tuple[Chats, Chats]:
    """Conversations to learn from, and those held out, chosen by a digest of how they begin."""
    held_out = np.array([_bucket(chats.token_ids[start : start + _HEAD_TOKENS]) for start in chats.offsets[:-1]]) == 0
    return chats.take(np.flatnonzero(~held_out)), chats.take(np.flatnonzero(held_out))


def _bucket(token_ids: NDArray[np.uint16]) -> int:
    return int.from_bytes(blake3(token_ids.tobytes()).digest(8), "big") % HELD_OUT_SHARE
