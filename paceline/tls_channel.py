"""A channel that goes on with new certificates when the files of its own change."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Self

import grpc

from paceline.tls import Contents, Tls, TlsFiles

_NEVER_SECONDS = 10 * 365 * 24 * 3600.0


class TlsChannel(grpc.aio.Channel):
    """An encrypted channel of the running event loop.

    gRPC's own has one certificate for ever. Of this one a call that begins after the files changed goes over a new
    connection; what runs on the old one goes on there to its end.
    """

    def __init__(
        self,
        target: str,
        tls: Tls,
        options: Sequence[tuple[str, Any]],
        interceptors: Sequence[grpc.aio.ClientInterceptor],
    ) -> None:
        """Raises TlsError for files of which no connection can be made."""
        self._files = TlsFiles(tls.ca, tls.certificate, tls.key)
        named = [*options, *([("grpc.ssl_target_name_override", tls.name)] if tls.name else [])]

        def connect(contents: Contents) -> grpc.aio.Channel:
            credentials = grpc.ssl_channel_credentials(contents.ca, contents.key, contents.certificate)
            return grpc.aio.secure_channel(target, credentials, options=named, interceptors=interceptors)

        self._connect = connect
        self._current = connect(self._files.contents)
        self._old: dict[asyncio.Task[None], grpc.aio.Channel] = {}

    def current(self) -> grpc.aio.Channel:
        """The channel that a call takes which begins now."""
        if (contents := self._files.changed()) is not None:
            old, self._current = self._current, self._connect(contents)
            ending = asyncio.get_running_loop().create_task(old.close(_NEVER_SECONDS))
            self._old[ending] = old
            ending.add_done_callback(self._old.pop)
        return self._current

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """See grpc.aio.Channel."""
        await asyncio.gather(*(channel.close(grace) for channel in (self._current, *self._old.values())))
        for ending in tuple(self._old):
            ending.cancel()
        await asyncio.gather(*self._old, return_exceptions=True)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """See grpc.aio.Channel."""
        return self.current().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """See grpc.aio.Channel."""
        await self._current.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """See grpc.aio.Channel."""
        await self.current().channel_ready()

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.aio.Channel."""
        return _Method(self, lambda channel: channel.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.aio.Channel."""
        return _Method(self, lambda channel: channel.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.aio.Channel."""
        return _Method(self, lambda channel: channel.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.aio.Channel."""
        return _Method(self, lambda channel: channel.stream_stream(*args, **kwargs))


class _Method:
    """One method, called over whatever channel is the current one."""

    def __init__(self, channel: TlsChannel, make: Callable[[grpc.aio.Channel], Callable[..., Any]]) -> None:
        self._channel = channel
        self._make = make
        self._of = channel.current()
        self._call = make(self._of)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        current = self._channel.current()
        if current is not self._of:
            self._of, self._call = current, self._make(current)
        return self._call(*args, **kwargs)
