"""A channel that goes on with new certificates when the files of its own change."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Self

import grpc

from paceline.tls import Contents, Tls, TlsFiles


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
        self._num_running = Counter({self._current: 0})
        """Calls by the channel that they run on: of the current one, and of old ones that some run on still."""
        self._closing: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def current(self) -> grpc.aio.Channel:
        """The channel that a call takes which begins now."""
        if (contents := self._files.changed()) is not None:
            old, self._current = self._current, self._connect(contents)
            self._num_running[self._current] = 0
            self._close_if_left(old)
        return self._current

    def begun(self, channel: grpc.aio.Channel, call: Any) -> None:
        """Is told of every call: an old channel is closed with the last one that runs on it."""
        self._num_running[channel] += 1

        def ended(_: object) -> None:
            self._num_running[channel] -= 1
            self._close_if_left(channel)

        call.add_done_callback(ended)

    def _close_if_left(self, channel: grpc.aio.Channel) -> None:
        if channel is not self._current and self._num_running[channel] == 0 and not self._is_closed:
            del self._num_running[channel]
            closing = asyncio.get_running_loop().create_task(channel.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """See grpc.aio.Channel."""
        self._is_closed = True
        await asyncio.gather(*(channel.close(grace) for channel in tuple(self._num_running)), *self._closing)

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
        call = self._call(*args, **kwargs)
        self._channel.begun(current, call)
        return call
