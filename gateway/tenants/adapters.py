"""The callers' adapters: what their names stand for, and how well the draft does with each."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable
from typing import NamedTuple, TypeVar

import grpc

from gateway.model.replicas import ServicePool
from gateway.tenants.grants import Grants
from paceline.internal.v1 import speculation_pb2
from paceline.v1 import adapter_pb2, inference_pb2
from services.adapter_store.client import AdapterStoreClient
from services.common.errors import FailedPreconditionError, NotFoundError, UnavailableError

_log = logging.getLogger(__name__)
_ASK_SECONDS = 2.0
_PREFETCH_SECONDS = 30.0
_RETRY_AFTER_SECONDS = 1.0
_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})
_MAX_COUNTED = 4096
T = TypeVar("T")


class Resolved(NamedTuple):
    """What the name of an adapter stands for, as digests; empty where the model is used as it is."""

    target: str = ""
    draft: str = ""


class _Drafted(NamedTuple):
    num_drafted: int = 0
    num_accepted: int = 0


class Adapters:
    """Asks the adapter store in the callers' names."""

    def __init__(self, client: AdapterStoreClient | None, grants: Grants, pool: ServicePool) -> None:
        self._client = client
        self._grants = grants
        self._pool = pool
        self._drafted: OrderedDict[tuple[str, str], _Drafted] = OrderedDict()
        """By namespace and digest of the target's adapter."""
        self._prefetches: set[asyncio.Task[None]] = set()

    @property
    def client(self) -> AdapterStoreClient:
        """The store. Raises FailedPreconditionError without one."""
        if self._client is None:
            raise FailedPreconditionError("this gateway knows no adapter store")
        return self._client

    async def resolve(self, namespace: str, name: str) -> Resolved:
        """What a name stands for now. Empty is the base model.

        Raises NotFoundError, or UnavailableError when the store does not answer in time.
        """
        if not name:
            return Resolved()
        if self._client is None:
            raise NotFoundError("adapter", name)
        adapter = await self.get(namespace, name)
        return Resolved(adapter.digest, adapter.draft_digest)

    async def get(self, namespace: str, name: str) -> adapter_pb2.Adapter:
        """Everything about an adapter. Raises as `resolve` does."""
        asking = self.client.resolve(self._grants.token(namespace), namespace, name, _ASK_SECONDS)
        return self._counted(namespace, await _answered(asking))

    async def list(self, namespace: str) -> "list[adapter_pb2.Adapter]":
        """All adapters of a caller."""
        asking = self.client.list(self._grants.token(namespace), namespace, _ASK_SECONDS)
        return [self._counted(namespace, adapter) for adapter in await _answered(asking)]

    def prefetch(self, digest: str, tenant: speculation_pb2.TenantAccess) -> None:
        """Has a verifier load the adapter of a request that waits, while it waits."""
        task = asyncio.create_task(self._prefetch(digest, tenant))
        self._prefetches.add(task)
        task.add_done_callback(self._prefetches.discard)

    def record(self, namespace: str, digest: str, usage: inference_pb2.Usage) -> None:
        """Counts what was drafted for a request."""
        before = self._drafted.pop((namespace, digest), _Drafted())
        self._drafted[namespace, digest] = _Drafted(
            before.num_drafted + usage.num_drafted_tokens, before.num_accepted + usage.num_accepted_tokens
        )
        while len(self._drafted) > _MAX_COUNTED:
            self._drafted.popitem(last=False)

    async def close(self) -> None:
        """Ends the connection to the store."""
        for task in self._prefetches:
            task.cancel()
        if self._client is not None:
            await self._client.close()

    async def _prefetch(self, digest: str, tenant: speculation_pb2.TenantAccess) -> None:
        verifier = self._pool.verifier(None, digest)
        try:
            await verifier.prefetch_adapter(digest, tenant, self._grants.token(tenant.namespace), _PREFETCH_SECONDS)
        except grpc.aio.AioRpcError as error:
            _log.info("verifier %s did not load adapter %s: %s", verifier.target, digest, error.details())

    def _counted(self, namespace: str, adapter: adapter_pb2.Adapter) -> adapter_pb2.Adapter:
        drafted = self._drafted.get((namespace, adapter.digest), _Drafted())
        adapter.num_drafted_tokens, adapter.num_accepted_tokens = drafted
        return adapter


async def _answered(asking: Awaitable[T]) -> T:
    """What the store says. Raises UnavailableError when it is away; what it refuses, as it does."""
    try:
        return await asking
    except grpc.aio.AioRpcError as error:
        if error.code() not in _AWAY:
            raise
        description = f"the adapter store is away ({error.code().name})"
        raise UnavailableError(description, _RETRY_AFTER_SECONDS) from error
