"""Which process this is: one that was started again is another one, and has nothing of what its predecessor had."""

import secrets
from typing import Final

INCARNATION: Final = secrets.token_hex(8)
"""Sixteen hexadecimal digits that no other process has, drawn when it starts."""


class Incarnations:
    """Notices that somebody else answers at an address: what was known of who answered before is not true of them."""

    def __init__(self) -> None:
        self._last = ""

    def is_new(self, incarnation: str) -> bool:
        """Whether another process than the last time answers; not the first time, and not for one that says nothing."""
        if not incarnation or incarnation == self._last:
            return False
        self._last, before = incarnation, self._last
        return bool(before)
