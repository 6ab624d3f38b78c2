"""AdapterStoreService over gRPC."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from paceline.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    PacelineError,
    PermissionDeniedError,
)
from paceline.internal.v1 import adapter_store_pb2 as pb
from paceline.internal.v1 import adapter_store_pb2_grpc
from paceline.upload import ACCEPTED
from paceline.v1 import adapter_pb2
from services.adapter_store.catalog import Catalog
from services.adapter_store.checks import Checked, check_adapter
from services.adapter_store.layout import check_label
from services.adapter_store.metrics import StoreMetrics
from services.adapter_store.pace import Pace
from services.adapter_store.places import UploadPlaces
from services.adapter_store.settings import AdapterStoreSettings
from services.adapter_store.upload import Received, check_announcement, received
from services.common.access import Access
from services.common.identities import Identity, identity_of
from services.common.lora.config import check_digest
from services.common.tokens import PUBLIC_NAMESPACE


class AdapterStoreServicer(adapter_store_pb2_grpc.AdapterStoreServiceServicer):
    """Serves the adapters of a catalog to those whose tokens allow it."""

    def __init__(
        self,
        settings: AdapterStoreSettings,
        catalog: Catalog,
        incoming: Path,
        access: Access,
        owners: Access,
        metrics: StoreMetrics,
    ) -> None:
        """`access` lets through who fetches adapters, `owners` who manages them."""
        self._settings = settings
        self._catalog = catalog
        self._incoming = incoming
        self._access = access
        self._owners = owners
        self._metrics = metrics
        self._places = UploadPlaces(
            settings.max_uploads, settings.max_uploads_per_namespace, settings.upload_wait_seconds
        )

    async def StoreAdapter(
        self, request_iterator: AsyncIterator[pb.StoreAdapterRequest], context: Any
    ) -> pb.StoreAdapterResponse:
        """See adapter_store.proto."""
        requests = aiter(request_iterator)
        first = await Pace(self._settings.stall_seconds, self._settings.min_upload_bytes_per_second).next(requests)
        if first is None or not first.HasField("header"):
            raise InvalidArgumentError("header", "the first message must announce the adapter")
        header = first.header
        _check_access(self._owners, context, header.namespace)
        try:
            check_announcement(header.upload, self._settings.max_adapter_bytes)
            adapter = await self._store(header, self._pieces(requests), context)
        except PacelineError as error:
            self._metrics.refused(type(error).__name__)
            raise
        self._metrics.kept(adapter.num_bytes)
        return pb.StoreAdapterResponse(adapter=adapter)

    async def ResolveAdapter(self, request: pb.ResolveAdapterRequest, context: Any) -> pb.ResolveAdapterResponse:
        """See adapter_store.proto."""
        _check_access(self._owners, context, request.namespace)
        check_label("name", request.name)
        return pb.ResolveAdapterResponse(adapter=await self._catalog.resolve(request.namespace, request.name))

    async def ListStoredAdapters(
        self, request: pb.ListStoredAdaptersRequest, context: Any
    ) -> pb.ListStoredAdaptersResponse:
        """See adapter_store.proto."""
        _check_access(self._owners, context, request.namespace)
        return pb.ListStoredAdaptersResponse(adapters=await self._catalog.labels(request.namespace))

    async def RemoveAdapter(self, request: pb.RemoveAdapterRequest, context: Any) -> pb.RemoveAdapterResponse:
        """See adapter_store.proto."""
        _check_access(self._owners, context, request.namespace)
        check_label("name", request.name)
        await self._catalog.remove(request.namespace, request.name)
        return pb.RemoveAdapterResponse()

    async def FetchAdapter(
        self, request: pb.FetchAdapterRequest, context: Any
    ) -> AsyncIterator[pb.FetchAdapterResponse]:
        """See adapter_store.proto."""
        _check_access(self._access, context, request.namespace)
        check_digest("digest", request.digest)
        if self._is_draft(context) and not await self._catalog.is_for_draft(request.namespace, request.digest):
            raise PermissionDeniedError("a draft may have what was uploaded for drafts, and nothing else")
        async with self._catalog.open(request.namespace, request.digest) as files:
            sizes = [adapter_pb2.AdapterFile(name=name, num_bytes=file.num_bytes) for name, file in files.items()]
            yield pb.FetchAdapterResponse(files=sizes)
            for file in files.values():
                async for chunk in file.chunks:
                    yield pb.FetchAdapterResponse(data=chunk)
        self._metrics.fetched()

    def _is_draft(self, context: Any) -> bool:
        """Whether the caller showed a draft's certificate."""
        tls = self._settings.server.tls
        if tls is None or tls.client_ca is None:
            return False
        return identity_of(context, tls.trust_domain) is Identity.DRAFT

    async def _store(
        self, header: pb.StoreAdapterHeader, pieces: AsyncIterator[bytes], context: Any
    ) -> adapter_pb2.Adapter:
        upload = header.upload
        is_draft = upload.role == adapter_pb2.ADAPTER_ROLE_DRAFT
        try:
            async with self._places.place(header.namespace):
                await self._catalog.check_label(header.namespace, upload.name, draft=is_draft)
                await context.send_initial_metadata(ACCEPTED)  # The client sends no data before.
                return await self._receive(header, pieces)
        except TimeoutError as error:
            description = f"the upload took longer than {self._settings.upload_seconds:g} s"
            raise DeadlineExceededError(description) from error

    async def _receive(self, header: pb.StoreAdapterHeader, pieces: AsyncIterator[bytes]) -> adapter_pb2.Adapter:
        upload = header.upload
        async with (
            asyncio.timeout(self._settings.upload_seconds),
            received(upload, pieces, self._incoming) as files,
        ):
            checked = await asyncio.to_thread(
                check_adapter,
                files.files.config,
                files.files.weights,
                header.base,
                self._settings.max_rank,
                ignore_base_model=upload.ignore_base_model,
            )
            return await self._keep(header, checked, files)

    async def _keep(self, header: pb.StoreAdapterHeader, checked: Checked, files: Received) -> adapter_pb2.Adapter:
        namespace, upload = header.namespace, header.upload
        if upload.role == adapter_pb2.ADAPTER_ROLE_DRAFT:
            return await self._catalog.put_draft(namespace, upload.name, files.digest, files.files)
        now = Timestamp()
        now.GetCurrentTime()
        adapter = adapter_pb2.Adapter(
            name=upload.name,
            digest=files.digest,
            model=header.base.model,
            rank=checked.rank,
            target_modules=checked.target_modules,
            num_bytes=files.num_bytes,
            create_time=now,
        )
        return await self._catalog.put(namespace, adapter, files.files, replace=upload.replace)

    async def _pieces(self, requests: AsyncIterator[pb.StoreAdapterRequest]) -> AsyncIterator[bytes]:
        pace = Pace(self._settings.stall_seconds, self._settings.min_upload_bytes_per_second)
        while (request := await pace.next(requests)) is not None:
            if request.HasField("header"):
                raise InvalidArgumentError("header", "only the first message may announce an adapter")
            pace.num_bytes += len(request.data)
            yield request.data


def _check_access(access: Access, context: Any, namespace: str) -> None:
    """Raises unless the caller may use a namespace. The one that tokens may share has no adapters."""
    access.check(context, namespace)
    if namespace == PUBLIC_NAMESPACE:
        raise PermissionDeniedError("an adapter belongs to one tenant; there are no public ones")
