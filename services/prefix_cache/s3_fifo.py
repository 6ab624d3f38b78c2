"""Which block goes next: S3-FIFO (Yang et al. 2023, "FIFO queues are all you need for cache eviction", SOSP).

New keys enter a small queue; only those asked for again reach the main one. A scan, whose keys are never asked for
again, so passes through a tenth of the room and leaves the rest alone. Keys that left the small queue are remembered
as ghosts for a while: should they return, they go to the main queue at once.
"""

from collections import OrderedDict

_SMALL_SHARE = 0.1
_MAX_FREQUENCY = 3


class S3Fifo:
    """Orders keys by worth. Sizes in bytes; holds no data."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._small: OrderedDict[bytes, None] = OrderedDict()
        self._main: OrderedDict[bytes, None] = OrderedDict()
        self._ghosts: OrderedDict[bytes, None] = OrderedDict()
        self._sizes: dict[bytes, int] = {}
        self._frequencies: dict[bytes, int] = {}
        self._small_bytes = 0

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, key: bytes) -> bool:
        return key in self._sizes

    def touch(self, key: bytes) -> None:
        """A key was asked for."""
        self._frequencies[key] = min(_MAX_FREQUENCY, self._frequencies[key] + 1)

    def add(self, key: bytes, num_bytes: int) -> None:
        """A new key."""
        self._sizes[key] = num_bytes
        self._frequencies[key] = 0
        self.num_bytes += num_bytes
        if key in self._ghosts:
            del self._ghosts[key]
            self._main[key] = None
        else:
            self._small[key] = None
            self._small_bytes += num_bytes

    def remove(self, key: bytes) -> None:
        """A key is gone."""
        size = self._sizes.pop(key)
        del self._frequencies[key]
        self.num_bytes -= size
        if key in self._small:
            del self._small[key]
            self._small_bytes -= size
        else:
            del self._main[key]

    def evict(self) -> bytes:
        """Removes the key of least worth and returns it. There must be one."""
        while True:
            if self._small and (self._small_bytes > _SMALL_SHARE * self.num_bytes or not self._main):
                key = next(iter(self._small))
                if not self._frequencies[key]:
                    self.remove(key)
                    self._remember(key)
                    return key
                del self._small[key]
                self._small_bytes -= self._sizes[key]
                self._frequencies[key] = 0
                self._main[key] = None
            else:
                key = next(iter(self._main))
                if not self._frequencies[key]:
                    self.remove(key)
                    return key
                self._frequencies[key] -= 1
                self._main.move_to_end(key)

    def _remember(self, key: bytes) -> None:
        self._ghosts[key] = None
        while len(self._ghosts) > max(16, len(self._sizes)):
            self._ghosts.popitem(last=False)
