"""Blocks that have begun to come and are not whole yet: what they take of memory is bounded for each namespace."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from paceline.errors import ResourceExhaustedError

_RETRY_AFTER_SECONDS = 1.0


class Incoming:
    """Accounts in bytes, over all streams. A namespace of which nothing is on its way takes no memory."""

    def __init__(self, max_bytes: int) -> None:
        """Of each namespace so many bytes may be on their way; one block alone always may."""
        self._max_bytes = max_bytes
        self._held: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._held)

    @contextmanager
    def block(self, namespace: str, num_bytes: int) -> Iterator[None]:
        """A block of so many bytes is on its way until this ends. Raises ResourceExhaustedError."""
        held = self._held[namespace]
        if held and held + num_bytes > self._max_bytes:
            raise ResourceExhaustedError(
                f"{held} bytes of namespace {namespace!r} are on their way already, of at most {self._max_bytes}",
                _RETRY_AFTER_SECONDS,
            )
        self._held[namespace] += num_bytes
        try:
            yield
        finally:
            self._held[namespace] -= num_bytes
            if not self._held[namespace]:
                del self._held[namespace]
