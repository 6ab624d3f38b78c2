"""Several gateways as one channel: a call goes to the one in use, and that is another once one cannot be reached."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Self

import grpc

from paceline.connecting import NOT_CONNECTED


class SeveralChannel(grpc.aio.Channel):
    """A channel of the running event loop to whichever gateway of some can be reached.

    A call that takes and gives one message is repeated at the next gateway where it was not sent at all. Streams are
    not: whoever reads them knows what came.
    """

    def __init__(self, channels: Sequence[grpc.aio.Channel]) -> None:
        self._channels = channels
        self._at = 0

    def __len__(self) -> int:
        """How many gateways there are."""
        return len(self._channels)

    @property
    def in_use(self) -> int:
        """Which one calls go to; one that last could not be reached only where none else can."""
        order = [(self._at + step) % len(self) for step in range(len(self))]
        return next((at for at in order if not self._is_down(at)), self._at)

    def lost(self, at: int) -> None:
        """Says that a gateway was lost: calls go to the next, if they went there."""
        if self._at == at:
            self._at = (at + 1) % len(self)

    def current(self) -> grpc.aio.Channel:
        """The channel that a call takes which begins now."""
        self._at = self.in_use
        return self._channels[self._at]

    def _is_down(self, at: int) -> bool:
        return self._channels[at].get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """See grpc.aio.Channel."""
        await asyncio.gather(*(channel.close(grace) for channel in self._channels))

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """See grpc.aio.Channel."""
        return self.current().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """See grpc.aio.Channel."""
        await self._channels[self._at].wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """See grpc.aio.Channel."""
        await self.current().channel_ready()

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.aio.Channel; what it returns is a coroutine."""
        methods = [channel.unary_unary(*args, **kwargs) for channel in self._channels]

        async def call(*request: Any, **options: Any) -> Any:
            for left in reversed(range(len(self))):
                self.current()
                at = self._at
                try:
                    return await methods[at](*request, **options)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                    self.lost(at)
                    if not left or not (error.details() or "").startswith(NOT_CONNECTED):
                        raise
            raise AssertionError("there is no gateway")

        return call

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.aio.Channel."""
        return self._streaming([channel.unary_stream(*args, **kwargs) for channel in self._channels])

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.aio.Channel."""
        return self._streaming([channel.stream_unary(*args, **kwargs) for channel in self._channels])

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.aio.Channel."""
        return self._streaming([channel.stream_stream(*args, **kwargs) for channel in self._channels])

    def _streaming(self, methods: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
        def call(*request: Any, **options: Any) -> Any:
            self.current()
            return methods[self._at](*request, **options)

        return call
