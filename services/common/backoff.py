"""How long a prefix cache that failed is left alone: a second, then ever longer, until it works again."""

import logging
import time

import grpc

_log = logging.getLogger(__name__)
_FIRST_PAUSE = 1.0
_MAX_PAUSE = 30.0
_REFUSED = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
"""A token that has run out says nothing about the cache."""


class Backoff:
    """Of one cache."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._pause = _FIRST_PAUSE
        self._until = 0.0

    @property
    def is_off(self) -> bool:
        """Whether the cache is to be left alone now."""
        return time.monotonic() < self._until

    def worked(self) -> None:
        """The cache did what it was asked for."""
        self._pause = _FIRST_PAUSE

    def failed(self, error: grpc.aio.AioRpcError) -> None:
        """The cache did not."""
        name = error.code().name
        if error.code() in _REFUSED:
            _log.warning("prefix cache %s refused (%s): %s", self._target, name, error.details())
            return
        _log.warning("prefix cache %s failed (%s); left alone for %.0f s", self._target, name, self._pause)
        self._until = time.monotonic() + self._pause
        self._pause = min(_MAX_PAUSE, 2 * self._pause)
