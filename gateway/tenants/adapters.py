"""The callers' adapters: kept by the adapter stores, which are asked in the callers' names."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import NamedTuple, TypeAlias

import grpc

from gateway.model.affinity import Affinity
from gateway.model.replicas import Replicas
from gateway.model.served_model import ServedModel
from gateway.tenants.grants import Grants
from gateway.tenants.identity import Caller
from paceline.errors import FailedPreconditionError, NotFoundError, PacelineError
from paceline.internal.v1 import adapter_store_pb2, speculation_pb2
from paceline.v1 import adapter_pb2
from services.adapter_store.client import AdapterStoreClient
from services.verifier.client import VerifierClient

_log = logging.getLogger(__name__)
_ASK_SECONDS = 2.0
_PREFETCH_SECONDS = 30.0
_UPLOAD_SECONDS = 600.0
Stores: TypeAlias = Replicas[AdapterStoreClient, bool]


class Resolved(NamedTuple):
    """What the name of an adapter stands for, as digests; empty where the model is used as it is."""

    target: str = ""
    draft: str = ""


class Adapters:
    """What callers do with adapters. Stores that are away are UnavailableError; what they refuse is passed on."""

    def __init__(self, stores: Stores, grants: Grants) -> None:
        self._all_stores = stores
        self._grants = grants
        self._prefetches: set[asyncio.Task[None]] = set()

    @property
    def are_kept(self) -> bool:
        """Whether there is a store."""
        return len(self._all_stores) > 0

    async def resolve(self, caller: Caller, model: ServedModel, name: str) -> Resolved:
        """What a name stands for now. Empty is the base model. Raises NotFoundError for an adapter of another model."""
        if not name:
            return Resolved()
        if not len(self._all_stores):
            raise NotFoundError("adapter", name)
        adapter = await self.get(caller, name)
        if adapter.model not in ("", model.id):
            raise NotFoundError("adapter", name, f"the one of that name is for model {adapter.model!r}")
        return Resolved(adapter.digest, adapter.draft_digest)

    async def get(self, caller: Caller, name: str) -> adapter_pb2.Adapter:
        """Everything about an adapter."""
        token = self._grants.token(caller)
        return await self._stores.call(lambda store: store.resolve(token, caller.namespace, name, _ASK_SECONDS))

    async def list(self, caller: Caller) -> "list[adapter_pb2.Adapter]":
        """All adapters of a caller, ordered by name."""
        token = self._grants.token(caller)
        return await self._stores.call(lambda store: store.list(token, caller.namespace, _ASK_SECONDS))

    async def delete(self, caller: Caller, name: str) -> None:
        """Takes a name away."""
        token = self._grants.token(caller)
        await self._stores.call(lambda store: store.remove(token, caller.namespace, name, _ASK_SECONDS))

    async def upload(
        self, caller: Caller, model: ServedModel, upload: adapter_pb2.AdapterUpload, data: AsyncIterator[bytes]
    ) -> adapter_pb2.Adapter:
        """Has an adapter checked and kept. A store is chosen by the announcement; once it has begun to read the data,
        another cannot take its place.
        """
        stores, token = self._stores, self._grants.token(caller)
        header = adapter_store_pb2.StoreAdapterHeader(
            namespace=caller.namespace, upload=upload, base=await model.adapter_base(upload.role)
        )
        has_begun = False

        async def read() -> AsyncIterator[bytes]:
            nonlocal has_begun
            has_begun = True
            async for piece in data:
                yield piece

        return await stores.call(
            lambda store: store.store(token, header, read(), _UPLOAD_SECONDS), may_repeat=lambda: not has_begun
        )

    def prefetch(self, caller: Caller, model: ServedModel, affinity: Affinity) -> "asyncio.Task[None]":
        """Has a verifier load the adapter of a request that waits, while it waits; returns the task that does."""
        task = asyncio.create_task(self._prefetch(caller, model, affinity))
        self._prefetches.add(task)
        task.add_done_callback(self._prefetches.discard)
        return task

    async def close(self) -> None:
        """Ends the connections to the stores."""
        for task in self._prefetches:
            task.cancel()
        await self._all_stores.close()

    @property
    def _stores(self) -> Stores:
        if not len(self._all_stores):
            raise FailedPreconditionError("this gateway knows no adapter store")
        return self._all_stores

    async def _prefetch(self, caller: Caller, model: ServedModel, affinity: Affinity) -> None:
        tenant = speculation_pb2.TenantAccess(namespace=caller.namespace)
        token = self._grants.sequence_token(tenant)

        async def load(verifier: VerifierClient) -> None:
            try:
                await verifier.prefetch_adapter(affinity.adapter, tenant, token, _PREFETCH_SECONDS)
            except grpc.aio.AioRpcError as error:
                # That loading takes long is no fault of the verifier.
                if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise

        try:
            await model.verifiers.call(load, affinity=affinity)
        except (grpc.aio.AioRpcError, PacelineError) as error:
            _log.info("adapter %s was not loaded ahead: %s", affinity.adapter, error)
