"""How a gateway and the services that it knows fare, found out when somebody asks."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

import grpc
from sqlalchemy import make_url

from gateway.clock import time_of_day
from gateway.model.catalogue import Catalogue
from gateway.model.replica import reason_of
from gateway.model.served_model import ServedModel
from gateway.settings import GatewaySettings
from gateway.tenants.identity import is_loopback
from gateway.tenants.key_store import KeyStore
from paceline.errors import UnavailableError
from paceline.v1 import operations_pb2 as pb
from services.adapter_store.client import AdapterStoreClient
from services.common.incarnation import INCARNATION
from services.draft.client import DraftClient
from services.prefix_cache.client import PrefixCacheClient
from services.process.client import Asked
from services.process.facts import PACKAGE_VERSION, certificates, disks
from services.verifier.client import VerifierClient

_ASK_SECONDS = 3.0
ModelClient: TypeAlias = VerifierClient | DraftClient
StoreClient: TypeAlias = PrefixCacheClient | AdapterStoreClient


class _Client(Protocol):
    target: str

    async def ask_process(self, timeout: float) -> Asked | None:
        """See services.process.client."""


C = TypeVar("C", bound=_Client)


@dataclass(frozen=True, slots=True)
class SystemStatus:
    """Asks everything that a gateway knows of."""

    settings: GatewaySettings
    catalogue: Catalogue
    key_store: KeyStore
    caches: Iterable[PrefixCacheClient]
    stores: Iterable[AdapterStoreClient]

    @property
    def is_local(self) -> bool:
        """Whether nobody from elsewhere reaches the gateway."""
        return is_loopback(self.settings.server.host)

    @property
    def _folders(self) -> dict[str, Path]:
        """Where the gateway keeps something on a disk of its own."""
        url = make_url(self.settings.database_url)
        if url.get_backend_name() != "sqlite" or not url.database:
            return {}
        return {"database": Path(url.database).expanduser().absolute().parent}

    async def find(self) -> pb.GetStatusResponse:
        """All of it. Services are asked at the same time, and each for some seconds at most."""
        gateway, *services = await asyncio.gather(
            self._of_gateway(),
            _each(pb.SERVICE_ROLE_PREFIX_CACHE, self.caches, _of_store),
            _each(pb.SERVICE_ROLE_ADAPTER_STORE, self.stores, _of_store),
            self._of_models(),
        )
        return pb.GetStatusResponse(gateway=gateway, services=[status for found in services for status in found])

    async def _of_gateway(self) -> pb.GatewayStatus:
        return pb.GatewayStatus(
            version=PACKAGE_VERSION,
            admission=await self._admission(),
            is_exposed=not self.is_local,
            disks=await asyncio.to_thread(disks, self._folders),
            certificates=await asyncio.to_thread(certificates, self.settings.server.tls, self.settings.channel_tls),
            clock_seconds=time_of_day(),
            incarnation=INCARNATION,
        )

    async def _admission(self) -> "pb.Admission.ValueType":
        if self.settings.anonymous:
            return pb.ADMISSION_EVERYBODY
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                has_keys = await self.key_store.has_keys()
        except (UnavailableError, TimeoutError):
            return pb.ADMISSION_UNSPECIFIED
        if has_keys:
            return pb.ADMISSION_KEYS
        return pb.ADMISSION_EVERYBODY if self.settings.tenant_header is None else pb.ADMISSION_PROXY

    async def _of_models(self) -> list[pb.ServiceStatus]:
        found = await asyncio.gather(*(self._of_model(model) for model in self.catalogue))
        return [status for of_model in found for status in of_model]

    async def _of_model(self, model: ServedModel) -> list[pb.ServiceStatus]:
        """Its verifiers, then its drafts, which have to fit what a verifier said."""
        verifiers = await _each(
            pb.SERVICE_ROLE_VERIFIER, (replica.client for replica in model.verifiers), _of_engine, model.id
        )

        async def of_draft(status: pb.ServiceStatus, draft: DraftClient) -> None:
            await _of_engine(status, draft)
            if problem := model.problem_of(status.model_info):
                status.state, status.problem = pb.SERVICE_STATE_UNSUITED, problem

        drafts = (replica.client for replica in model.drafts)
        return verifiers + await _each(pb.SERVICE_ROLE_DRAFT, drafts, of_draft, model.id)


async def _each(
    role: "pb.ServiceRole.ValueType",
    clients: Iterable[C],
    look: Callable[[pb.ServiceStatus, C], Awaitable[None]],
    model: str = "",
) -> list[pb.ServiceStatus]:
    """How each of some services fares; `look` sees whether one that answers can be used."""
    return list(await asyncio.gather(*(_one(role, client, look, model) for client in clients)))


async def _one(
    role: "pb.ServiceRole.ValueType",
    client: C,
    look: Callable[[pb.ServiceStatus, C], Awaitable[None]],
    model: str,
) -> pb.ServiceStatus:
    status = pb.ServiceStatus(role=role, model=model, address=client.target, state=pb.SERVICE_STATE_AWAY)
    try:
        asked = await client.ask_process(_ASK_SECONDS)
        if asked is not None:
            status.version = asked.process.version
            status.incarnation = asked.process.incarnation
            status.clock_offset_seconds = asked.clock_offset
            status.round_trip_seconds = asked.round_trip
            status.disks.extend(asked.process.disks)
            status.certificates.extend(asked.process.certificates)
        status.state = pb.SERVICE_STATE_NOT_READY
        await look(status, client)
        if status.state == pb.SERVICE_STATE_NOT_READY:
            status.state = pb.SERVICE_STATE_READY
    except (grpc.aio.AioRpcError, UnavailableError) as error:
        status.problem = reason_of(error)
    return status


async def _of_engine(status: pb.ServiceStatus, client: ModelClient) -> None:
    status.model_info.CopyFrom(await client.get_model(_ASK_SECONDS))
    status.takes_adapters = bool(await client.list_adapter_modules(_ASK_SECONDS))


async def _of_store(_: pb.ServiceStatus, client: StoreClient) -> None:
    await client.check_serving(_ASK_SECONDS)
