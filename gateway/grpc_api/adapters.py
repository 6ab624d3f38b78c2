"""AdapterService: what callers do with their adapters."""

import asyncio
from collections.abc import AsyncIterator

from gateway.model.catalogue import Catalogue
from gateway.tenants.adapters import Adapters
from gateway.tenants.api_key import Scope
from gateway.tenants.identity import Identity
from paceline.errors import DeadlineExceededError, InvalidArgumentError
from paceline.upload import ACCEPTED
from paceline.v1 import adapter_pb2, adapter_pb2_grpc
from services.common.access import CallContext

_FIRST_SECONDS = 30.0


class AdapterServicer(adapter_pb2_grpc.AdapterServiceServicer):
    """Between gRPC and the callers' adapters."""

    def __init__(self, adapters: Adapters, identity: Identity, catalogue: Catalogue) -> None:
        self._adapters = adapters
        self._identity = identity
        self._catalogue = catalogue

    async def UploadAdapter(
        self, request_iterator: AsyncIterator[adapter_pb2.UploadAdapterRequest], context: CallContext
    ) -> adapter_pb2.UploadAdapterResponse:
        """See adapter.proto."""
        caller = await self._identity.caller(context, Scope.ADAPTERS)
        try:
            async with asyncio.timeout(_FIRST_SECONDS):
                first = await anext(aiter(request_iterator), None)
        except TimeoutError as error:
            raise DeadlineExceededError(f"nothing was announced within {_FIRST_SECONDS:g} s") from error
        if first is None or not first.HasField("upload"):
            raise InvalidArgumentError("upload", "the first message must announce the adapter")
        model = self._catalogue.get(first.upload.model)
        adapter = await self._adapters.upload(caller, model, first.upload, _data(request_iterator, context))
        return adapter_pb2.UploadAdapterResponse(adapter=adapter)

    async def GetAdapter(
        self, request: adapter_pb2.GetAdapterRequest, context: CallContext
    ) -> adapter_pb2.GetAdapterResponse:
        """See adapter.proto."""
        adapter = await self._adapters.get(await self._identity.caller(context, Scope.ADAPTERS), request.name)
        return adapter_pb2.GetAdapterResponse(adapter=adapter)

    async def ListAdapters(
        self, request: adapter_pb2.ListAdaptersRequest, context: CallContext
    ) -> adapter_pb2.ListAdaptersResponse:
        """See adapter.proto."""
        adapters = await self._adapters.list(await self._identity.caller(context, Scope.ADAPTERS))
        return adapter_pb2.ListAdaptersResponse(adapters=adapters)

    async def DeleteAdapter(
        self, request: adapter_pb2.DeleteAdapterRequest, context: CallContext
    ) -> adapter_pb2.DeleteAdapterResponse:
        """See adapter.proto."""
        await self._adapters.delete(await self._identity.caller(context, Scope.ADAPTERS), request.name)
        return adapter_pb2.DeleteAdapterResponse()


async def _data(
    requests: AsyncIterator[adapter_pb2.UploadAdapterRequest], context: CallContext
) -> AsyncIterator[bytes]:
    """The bytes of the files, once the store has accepted their announcement."""
    await context.send_initial_metadata(ACCEPTED)
    async for request in requests:
        if request.HasField("upload"):
            raise InvalidArgumentError("upload", "only the first message may announce an adapter")
        yield request.data
