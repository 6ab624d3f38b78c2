"""When a prefix cache that failed is asked again."""

import logging

import grpc

from services.common.backoff import Backoff

_log = logging.getLogger(__name__)
_FIRST_PAUSE = 1.0
_MAX_PAUSE = 30.0
_REFUSED = frozenset(
    {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.RESOURCE_EXHAUSTED}
)
"""Statuses of a token that has run out or of a namespace that holds too much, which say nothing about the cache."""


class CacheBackoff(Backoff):
    """The pauses of one prefix cache, from the errors of its calls."""

    def __init__(self, target: str) -> None:
        super().__init__(_FIRST_PAUSE, _MAX_PAUSE)
        self._target = target

    def blame(self, error: grpc.aio.AioRpcError) -> None:
        """Begins a pause, unless the cache only refused."""
        name = error.code().name
        if error.code() in _REFUSED:
            _log.warning("prefix cache %s refused (%s): %s", self._target, name, error.details())
        else:
            _log.warning("prefix cache %s failed (%s); left alone for %.1f s", self._target, name, self.failed())
