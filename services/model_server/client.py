"""The other end of ModelServerService, and what the clients of all services with an engine share."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Generic, Self, TypeVar

import grpc
from opentelemetry.trace import INVALID_SPAN, Span

from paceline.internal.v1 import model_server_pb2 as pb
from paceline.internal.v1 import model_server_pb2_grpc, speculation_pb2
from paceline.v1 import model_pb2
from services.common.access import credentials
from services.common.tracing import end_span
from services.process.client import Asked, ask_process

Q = TypeVar("Q")
R = TypeVar("R")
REVISION_CHANGED = "REVISION_CHANGED"
"""Reason of a refusal: the sequence was begun on another revision of the model."""
TAKEN = (("paceline-sequence", "taken"),)
"""Initial metadata of a stream whose sequence is in the engine from then on."""

_PREFIX_HEADER = "paceline-prefix"
"""Metadata entry that is the same for sequences that begin alike: a proxy sends them to one replica."""


def opening_metadata(token: str, route: str) -> tuple[tuple[str, str], ...]:
    """Metadata of a sequence's stream: its tenant's token, and what a proxy chooses a replica by; empty: neither."""
    return (*credentials(token), *(((_PREFIX_HEADER, route),) if route else ()))


class ModelServerClient:
    """One service that runs a model. Every method raises grpc.aio.AioRpcError; timeouts are in seconds."""

    def __init__(self, target: str, channel: grpc.aio.Channel) -> None:
        self.target = target
        self.incarnation = ""
        """Which process answered last; empty while none has."""
        self._channel = channel
        self._server = model_server_pb2_grpc.ModelServerServiceStub(channel)

    async def get_model(self, timeout: float) -> model_pb2.ModelInfo:
        """The model that runs there."""
        return (await self.describe(timeout)).model_info

    async def describe(self, timeout: float) -> pb.GetModelResponse:
        """The model that runs there, and where that is."""
        found = await self._server.GetModel(pb.GetModelRequest(), timeout=timeout)
        self.incarnation = found.incarnation or self.incarnation
        return found

    async def list_adapter_modules(self, timeout: float) -> list[pb.AdapterModule]:
        """The layers that adapters may change."""
        return list((await self._server.ListAdapterModules(pb.ListAdapterModulesRequest(), timeout=timeout)).modules)

    async def prefetch_adapter(
        self, digest: str, tenant: speculation_pb2.TenantAccess, token: str, timeout: float
    ) -> None:
        """Has an adapter loaded that will be needed soon."""
        request = pb.PrefetchAdapterRequest(adapter_digest=digest, tenant=tenant)
        await self._server.PrefetchAdapter(request, timeout=timeout, metadata=credentials(token))

    async def watch_loading(self, timeout: float | None = None) -> AsyncIterator[pb.WatchLoadingResponse]:
        """How far the model is loaded, now and whenever that changes; the last one says that it is ready."""
        async for progress in self._server.WatchLoading(pb.WatchLoadingRequest(), timeout=timeout):
            yield progress

    async def ask_process(self, timeout: float) -> Asked | None:
        """What the process says of itself; None where it does not know that question."""
        return await ask_process(self._channel, timeout)

    async def close(self) -> None:
        """Ends the channel."""
        await self._channel.close()


class SequenceStream(Generic[Q, R]):
    """One sequence at a service. Use as an async context manager: leaving it cancels what is still running."""

    def __init__(self, call: Any, span: Span = INVALID_SPAN) -> None:
        """`span` is that of the call, and ends with it."""
        self._call = call
        self._span = span
        self._writing = asyncio.Lock()
        self._writes: set[asyncio.Task[None]] = set()
        call.add_done_callback(self._end_writes)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self._call.cancel()
        end_span(self._span, error if isinstance(error, Exception) else None)

    async def write(self, request: Q) -> None:
        """Sends a message. gRPC takes one write at a time, and ends the call when a task that is writing is cancelled:
        so a caller that is cancelled meanwhile does not take the stream with it.
        """
        write = asyncio.create_task(self._write(request))
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)
        await asyncio.shield(write)

    async def read(self) -> R | None:
        """The next message, or None at the end of the stream. Raises grpc.aio.AioRpcError.

        A task that is cancelled while gRPC opens the call is not told so, if the call ends in that moment. It would go
        on.
        """
        task = asyncio.current_task()
        num_cancels = task.cancelling() if task is not None else 0
        try:
            response = await self._call.read()
        finally:
            if task is not None and task.cancelling() > num_cancels:
                raise asyncio.CancelledError
        return None if response is grpc.aio.EOF else response

    def cancel(self) -> None:
        """Ends the stream: whoever reads it or writes to it is cancelled."""
        self._call.cancel()

    async def was_taken(self) -> bool:
        """Whether the sequence got as far as the engine. Asked when the stream has ended, it waits for nothing."""
        if self._call.cancelled():
            return False
        return any((key, value) == TAKEN[0] for key, value in await self._call.initial_metadata())

    async def _write(self, request: Q) -> None:
        async with self._writing:
            await self._call.write(request)

    def _end_writes(self, _call: object) -> None:
        """gRPC has a write wait for ever whose call was cancelled before it was open."""
        if self._call.cancelled():
            for write in self._writes:
                write.cancel()
