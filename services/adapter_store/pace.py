"""How long the next bytes of an upload may be waited for: it must not stall, nor be slow as a whole."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TypeVar

from paceline.errors import DeadlineExceededError

T = TypeVar("T")


class Pace:
    """Of one upload. Only waiting counts: what is done with the bytes meanwhile is not the sender's time."""

    def __init__(self, stall_seconds: float, bytes_per_second: float) -> None:
        """`stall_seconds` is the longest wait at once, and what an upload may take beside its bytes."""
        self.num_bytes = 0
        """What has come so far."""
        self._stall_seconds = stall_seconds
        self._bytes_per_second = bytes_per_second
        self._waited_seconds = 0.0

    async def next(self, messages: AsyncIterator[T]) -> T | None:
        """The next message, or None at the end. Raises DeadlineExceededError."""
        started = time.monotonic()
        left = self._stall_seconds + self.num_bytes / self._bytes_per_second - self._waited_seconds
        try:
            async with asyncio.timeout(min(self._stall_seconds, left)):
                return await anext(messages, None)
        except TimeoutError as error:
            if left < self._stall_seconds:
                description = f"fewer than {self._bytes_per_second:g} bytes a second came"
            else:
                description = f"nothing came for {self._stall_seconds:g} s"
            raise DeadlineExceededError(description) from error
        finally:
            self._waited_seconds += time.monotonic() - started
