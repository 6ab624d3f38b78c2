"""What the prefix cache measures of itself, over all namespaces."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry.metrics import Histogram

from services.common.telemetry import counter, meter

_DIRECTIONS = ({"direction": "fetched"}, {"direction": "stored"})


@dataclass(slots=True)
class Moved:
    """Blocks that one call has moved so far."""

    num_blocks: int = 0
    num_bytes: int = 0

    def add(self, num_bytes: int) -> None:
        """One more block."""
        self.num_blocks += 1
        self.num_bytes += num_bytes


class CacheMetrics:
    """Counters of blocks and bytes, and how long calls took."""

    def __init__(self) -> None:
        instruments = meter("paceline.prefix_cache")
        self._blocks = counter(
            instruments, "paceline.cache_blocks", "{block}", "Blocks moved, by direction.", _DIRECTIONS
        )
        self._bytes = counter(instruments, "paceline.cache_bytes", "By", "Bytes moved, by direction.", _DIRECTIONS)
        self._fetch = instruments.create_histogram("paceline.cache_fetch_seconds", "s", "Time of a fetch.")
        self._store = instruments.create_histogram("paceline.cache_store_seconds", "s", "Time of a store.")

    @contextmanager
    def fetching(self) -> Iterator[Moved]:
        """Counts a fetch."""
        with self._counting("fetched", self._fetch) as moved:
            yield moved

    @contextmanager
    def storing(self) -> Iterator[Moved]:
        """Counts a store."""
        with self._counting("stored", self._store) as moved:
            yield moved

    @contextmanager
    def _counting(self, direction: str, seconds: Histogram) -> Iterator[Moved]:
        moved, started = Moved(), time.perf_counter()
        try:
            yield moved
        finally:
            self._blocks.add(moved.num_blocks, {"direction": direction})
            self._bytes.add(moved.num_bytes, {"direction": direction})
            seconds.record(time.perf_counter() - started)
