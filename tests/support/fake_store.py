"""A scripted adapter store: real gRPC, and whatever content, refusal or silence a test wants."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from paceline.internal.v1 import adapter_store_pb2, adapter_store_pb2_grpc
from paceline.upload import ACCEPTED
from paceline.v1 import adapter_pb2
from services.common.lora.config import CONFIG_NAME, WEIGHTS_NAME
from services.common.server import Served
from support.lora import digest_of, read_files
from support.served import served


@dataclass
class FakeAdapterStore(adapter_store_pb2_grpc.AdapterStoreServiceServicer):
    """Has the adapters of folders, by their names and digests."""

    folders: dict[str, Path] = field(default_factory=dict)
    owners: dict[str, set[str]] = field(default_factory=dict)
    """Namespaces that may use an adapter, by its name; an adapter that is not there is everybody's."""
    fetched: list[str] = field(default_factory=list)
    """Digests whose content was sent, in order."""
    uploaded: dict[tuple[str, str], adapter_pb2.Adapter] = field(default_factory=dict)
    """What was taken in, by namespace and name; not to be fetched."""
    announced: list[adapter_store_pb2.StoreAdapterHeader] = field(default_factory=list)
    resolved: list[str] = field(default_factory=list)
    break_upload: bool = False
    """Breaks uploads off when their first data come."""
    num_fetches_to_damage: int = 0
    hang: bool = False
    fetching: asyncio.Event = field(default_factory=asyncio.Event)
    fetch_when: asyncio.Event | None = None
    """When set, nothing is sent before it."""

    async def StoreAdapter(
        self, request_iterator: AsyncIterator[adapter_store_pb2.StoreAdapterRequest], context: grpc.aio.ServicerContext
    ) -> adapter_store_pb2.StoreAdapterResponse:
        header = (await anext(aiter(request_iterator))).header
        self.announced.append(header)
        await context.send_initial_metadata(ACCEPTED)
        num_bytes = 0
        async for request in request_iterator:
            num_bytes += len(request.data)
            if self.break_upload:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "broken on purpose")
        adapter = adapter_pb2.Adapter(name=header.upload.name, model=header.base.model, num_bytes=num_bytes)
        self.uploaded[header.namespace, header.upload.name] = adapter
        return adapter_store_pb2.StoreAdapterResponse(adapter=adapter)

    async def ListStoredAdapters(
        self, request: adapter_store_pb2.ListStoredAdaptersRequest, context: object
    ) -> adapter_store_pb2.ListStoredAdaptersResponse:
        own = [adapter for (namespace, _), adapter in self.uploaded.items() if namespace == request.namespace]
        return adapter_store_pb2.ListStoredAdaptersResponse(adapters=own)

    async def ResolveAdapter(
        self, request: adapter_store_pb2.ResolveAdapterRequest, context: grpc.aio.ServicerContext
    ) -> adapter_store_pb2.ResolveAdapterResponse:
        if self.hang:
            await asyncio.Event().wait()
        self.resolved.append(request.name)
        if adapter := self.uploaded.get((request.namespace, request.name)):
            return adapter_store_pb2.ResolveAdapterResponse(adapter=adapter)
        if request.name not in self.folders or not self._may(request.name, request.namespace):
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such adapter")
        adapter = adapter_pb2.Adapter(name=request.name, digest=digest_of(self.folders[request.name]))
        return adapter_store_pb2.ResolveAdapterResponse(adapter=adapter)

    async def FetchAdapter(
        self, request: adapter_store_pb2.FetchAdapterRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[adapter_store_pb2.FetchAdapterResponse]:
        self.fetching.set()
        if self.hang:
            await asyncio.Event().wait()
        if self.fetch_when is not None:
            await self.fetch_when.wait()
        for name, folder in self.folders.items():
            if digest_of(folder) == request.digest and self._may(name, request.namespace):
                config, weights = read_files(folder)
                files = [(CONFIG_NAME, config), (WEIGHTS_NAME, weights)]
                announced = [adapter_pb2.AdapterFile(name=name, num_bytes=len(data)) for name, data in files]
                yield adapter_store_pb2.FetchAdapterResponse(files=announced)
                if self.num_fetches_to_damage:
                    self.num_fetches_to_damage -= 1
                    weights = weights[:-1] + bytes([weights[-1] ^ 1])
                self.fetched.append(request.digest)
                yield adapter_store_pb2.FetchAdapterResponse(data=config + weights)
                return
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such adapter")

    def _may(self, name: str, namespace: str) -> bool:
        return namespace in self.owners.get(name, {namespace})


@asynccontextmanager
async def serve_store(store: FakeAdapterStore) -> AsyncIterator[str]:
    """Address of a server with this store."""

    @asynccontextmanager
    async def lifespan(server: grpc.aio.Server) -> AsyncIterator[Served]:
        adapter_store_pb2_grpc.add_AdapterStoreServiceServicer_to_server(store, server)
        yield Served(())

    async with served(lifespan) as address:
        yield address
