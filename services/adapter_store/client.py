"""The other end of AdapterStoreService."""

from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

import grpc
from opentelemetry import trace

from paceline.errors import UnavailableError
from paceline.internal.v1 import adapter_store_pb2 as pb
from paceline.internal.v1 import adapter_store_pb2_grpc
from paceline.upload import upload
from paceline.v1 import adapter_pb2
from services.common.access import credentials
from services.common.health import check_serving
from services.common.lora.config import CONFIG_NAME, WEIGHTS_NAME
from services.common.tracing import headers_of
from services.process.client import Asked, ask_process

SERVICE = pb.DESCRIPTOR.services_by_name["AdapterStoreService"].full_name
_MAX_ADAPTER_BYTES = 1 << 30
_PIECE_BYTES = 1 << 20
"""Most bytes of one message: a store takes messages of some megabytes, gateways larger ones."""


class AdapterStoreClient:
    """One adapter store. Every method raises grpc.aio.AioRpcError; timeouts are in seconds."""

    def __init__(self, target: str, channel: grpc.aio.Channel, max_adapter_bytes: int = _MAX_ADAPTER_BYTES) -> None:
        """Adapters of more than `max_adapter_bytes` are not fetched."""
        self.target = target
        self.incarnation = ""
        """An adapter store has nothing that a restart takes from it."""
        self._channel = channel
        self._stub = adapter_store_pb2_grpc.AdapterStoreServiceStub(channel)
        self._max_adapter_bytes = max_adapter_bytes

    async def store(
        self, token: str, header: pb.StoreAdapterHeader, data: AsyncIterable[bytes], timeout: float
    ) -> adapter_pb2.Adapter:
        """Has an adapter checked and kept; `data` are its files, in the order of the header.

        Whatever `data` raises ends the call and is raised here.
        """
        metadata = (*credentials(token), *headers_of(trace.get_current_span()))
        call: Any = self._stub.StoreAdapter(timeout=timeout, metadata=metadata)
        response = await upload(call, pb.StoreAdapterRequest(header=header), _announced_data(header, data))
        adapter: adapter_pb2.Adapter = response.adapter
        return adapter

    async def resolve(self, token: str, namespace: str, name: str, timeout: float) -> adapter_pb2.Adapter:
        """Which adapter a label is on."""
        request = pb.ResolveAdapterRequest(namespace=namespace, name=name)
        response = await self._stub.ResolveAdapter(request, timeout=timeout, metadata=credentials(token))
        return response.adapter

    async def list(self, token: str, namespace: str, timeout: float) -> "list[adapter_pb2.Adapter]":
        """All labels of a namespace, ordered by name."""
        request = pb.ListStoredAdaptersRequest(namespace=namespace)
        response = await self._stub.ListStoredAdapters(request, timeout=timeout, metadata=credentials(token))
        return list(response.adapters)

    async def remove(self, token: str, namespace: str, name: str, timeout: float) -> None:
        """Takes a label away."""
        request = pb.RemoveAdapterRequest(namespace=namespace, name=name)
        await self._stub.RemoveAdapter(request, timeout=timeout, metadata=credentials(token))

    async def check(self, token: str, namespace: str, digest: str, timeout: float) -> None:
        """Returns when a namespace may fetch an adapter."""
        request = pb.FetchAdapterRequest(namespace=namespace, digest=digest)
        call: Any = self._stub.FetchAdapter(request, timeout=timeout, metadata=credentials(token))
        try:
            await self._announced(aiter(call))
        finally:
            call.cancel()

    async def fetch(self, token: str, namespace: str, digest: str, timeout: float) -> tuple[bytes, bytes]:
        """Configuration and weights of an adapter.

        Raises UnavailableError when they are not of the sizes that were announced. Whether they are what the digest
        says is the caller's to check, with `adapter_digest`.
        """
        request = pb.FetchAdapterRequest(namespace=namespace, digest=digest)
        call: Any = self._stub.FetchAdapter(request, timeout=timeout, metadata=credentials(token))
        try:
            messages = aiter(call)
            sizes = await self._announced(messages)
            data, num_bytes = bytearray(), sum(sizes.values())
            async for message in messages:
                data += message.data
                if len(data) > num_bytes:
                    break
            if len(data) != num_bytes:
                raise UnavailableError(f"the adapter store announced {num_bytes} bytes and sent {len(data)}")
        finally:
            call.cancel()
        files: dict[str, bytes] = {}
        view, start = memoryview(data), 0
        for name, size in sizes.items():
            files[name] = bytes(view[start : start + size])
            start += size
        return files[CONFIG_NAME], files[WEIGHTS_NAME]

    async def ask_process(self, timeout: float) -> Asked | None:
        """What the process says of itself; None where it does not know that question."""
        return await ask_process(self._channel, timeout)

    async def check_serving(self, timeout: float) -> bool:
        """Returns True when the service can be used. Raises UnavailableError too."""
        return await check_serving(self._channel, timeout)

    async def close(self) -> None:
        """Ends the channel."""
        await self._channel.close()

    async def _announced(self, messages: AsyncIterator[pb.FetchAdapterResponse]) -> dict[str, int]:
        """Sizes of the files that will come, by name and in order."""
        first = await anext(messages, None)
        files = () if first is None else first.files
        sizes = {file.name: file.num_bytes for file in files}
        if len(files) != 2 or sizes.keys() != {CONFIG_NAME, WEIGHTS_NAME}:
            raise UnavailableError(f"the adapter store announced files {list(sizes)}")
        if sum(sizes.values()) > self._max_adapter_bytes:
            raise UnavailableError(f"the adapter has more than {self._max_adapter_bytes} bytes")
        return sizes


async def _announced_data(
    header: pb.StoreAdapterHeader, data: AsyncIterable[bytes]
) -> AsyncIterator[pb.StoreAdapterRequest]:
    """Data as messages of the store's size, whatever the size they come in; up to the first byte too many."""
    num_left = sum(file.num_bytes for file in header.upload.files)
    async for piece in data:
        view = memoryview(piece)[: num_left + 1]
        num_left -= len(view)
        for start in range(0, len(view), _PIECE_BYTES):
            yield pb.StoreAdapterRequest(data=bytes(view[start : start + _PIECE_BYTES]))
        if num_left < 0:
            return
