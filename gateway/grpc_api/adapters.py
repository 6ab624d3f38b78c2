"""AdapterService: what callers do with their adapters."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from gateway.model.replicas import ServicePool
from gateway.tenants.adapters import Adapters
from gateway.tenants.grants import Grants
from paceline.internal.v1 import adapter_store_pb2
from paceline.upload import ACCEPTED
from paceline.v1 import adapter_pb2, adapter_pb2_grpc
from services.common.errors import DeadlineExceededError, InvalidArgumentError

_ASK_SECONDS = 5.0
_FIRST_SECONDS = 30.0
_UPLOAD_SECONDS = 600.0


class AdapterServicer(adapter_pb2_grpc.AdapterServiceServicer):
    """Passes uploads on to the store, which checks them, with what is known here: who calls, and the model."""

    def __init__(self, adapters: Adapters, grants: Grants, pool: ServicePool) -> None:
        self._adapters = adapters
        self._grants = grants
        self._pool = pool

    async def UploadAdapter(
        self, request_iterator: AsyncIterator[adapter_pb2.UploadAdapterRequest], context: Any
    ) -> adapter_pb2.UploadAdapterResponse:
        """See adapter.proto."""
        namespace = self._grants.namespace(context)
        client = self._adapters.client
        try:
            first = await asyncio.wait_for(anext(aiter(request_iterator), None), _FIRST_SECONDS)
        except TimeoutError as error:
            raise DeadlineExceededError(f"nothing was announced within {_FIRST_SECONDS:g} s") from error
        if first is None or not first.HasField("upload"):
            raise InvalidArgumentError("upload", "the first message must announce the adapter")
        header = adapter_store_pb2.StoreAdapterHeader(
            namespace=namespace, upload=first.upload, base=await self._base(first.upload)
        )
        token = self._grants.token(namespace)
        adapter = await client.store(token, header, _data(request_iterator, context), _UPLOAD_SECONDS)
        return adapter_pb2.UploadAdapterResponse(adapter=adapter)

    async def GetAdapter(self, request: adapter_pb2.GetAdapterRequest, context: Any) -> adapter_pb2.GetAdapterResponse:
        """See adapter.proto."""
        namespace = self._grants.namespace(context)
        return adapter_pb2.GetAdapterResponse(adapter=await self._adapters.get(namespace, request.name))

    async def ListAdapters(
        self, request: adapter_pb2.ListAdaptersRequest, context: Any
    ) -> adapter_pb2.ListAdaptersResponse:
        """See adapter.proto."""
        namespace = self._grants.namespace(context)
        return adapter_pb2.ListAdaptersResponse(adapters=await self._adapters.list(namespace))

    async def DeleteAdapter(
        self, request: adapter_pb2.DeleteAdapterRequest, context: Any
    ) -> adapter_pb2.DeleteAdapterResponse:
        """See adapter.proto."""
        namespace = self._grants.namespace(context)
        client = self._adapters.client
        await client.remove(self._grants.token(namespace), namespace, request.name, _ASK_SECONDS)
        return adapter_pb2.DeleteAdapterResponse()

    async def _base(self, upload: adapter_pb2.AdapterUpload) -> adapter_store_pb2.AdapterBase:
        """The model that an adapter has to fit."""
        info = self._pool.check_model(upload.model)
        if upload.role == adapter_pb2.ADAPTER_ROLE_DRAFT:
            info, modules = await self._pool.draft_modules()
        else:
            modules = await self._pool.target_modules()
        return adapter_store_pb2.AdapterBase(model=info.id, revision_digest=info.revision_digest, modules=modules)


async def _data(requests: AsyncIterator[adapter_pb2.UploadAdapterRequest], context: Any) -> AsyncIterator[bytes]:
    """The bytes of the files, once the store has accepted their announcement."""
    await context.send_initial_metadata(ACCEPTED)
    async for request in requests:
        if request.HasField("upload"):
            raise InvalidArgumentError("upload", "only the first message may announce an adapter")
        yield request.data
