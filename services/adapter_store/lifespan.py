"""Builds an adapter store, serves it, and tears it down."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from paceline.internal.v1 import adapter_store_pb2_grpc
from services.adapter_store.catalog import Catalog
from services.adapter_store.client import SERVICE
from services.adapter_store.folder_objects import FolderObjects, own_folder
from services.adapter_store.metrics import StoreMetrics
from services.adapter_store.objects import Objects
from services.adapter_store.s3_objects import S3Objects
from services.adapter_store.servicer import AdapterStoreServicer
from services.adapter_store.settings import AdapterStoreSettings
from services.common.access import Access
from services.common.server import Lifespan, Served
from services.common.tokens import ADAPTER_STORE, ADAPTER_STORE_OWNER, TokenVerifier
from services.process.servicer import add_process_service

_log = logging.getLogger(__name__)


def adapter_store_lifespan(settings: AdapterStoreSettings) -> Lifespan:
    """The life of an adapter store with these settings."""

    @asynccontextmanager
    async def lifespan(server: grpc.aio.Server) -> AsyncIterator[Served]:
        access = Access(TokenVerifier(settings.token_keys, ADAPTER_STORE))
        owners = Access(TokenVerifier(settings.token_keys, ADAPTER_STORE_OWNER))
        metrics = StoreMetrics()
        with own_folder(settings.folder) as incoming:
            objects = _objects(settings, incoming)
            catalog = Catalog(objects, settings.max_adapters_per_namespace, settings.keep_seconds)
            sweeping = asyncio.create_task(_sweep(catalog, metrics, settings.sweep_seconds))
            try:
                servicer = AdapterStoreServicer(settings, catalog, incoming, access, owners, metrics)
                adapter_store_pb2_grpc.add_AdapterStoreServiceServicer_to_server(servicer, server)
                own = add_process_service(server, {"adapters": settings.folder}, settings.server.tls)
                yield Served((SERVICE, own))
            finally:
                sweeping.cancel()
                await asyncio.gather(sweeping, return_exceptions=True)

    return lifespan


def _objects(settings: AdapterStoreSettings, incoming: Path) -> Objects:
    return S3Objects.connect(settings) if settings.s3_url is not None else FolderObjects(settings.folder, incoming)


async def _sweep(catalog: Catalog, metrics: StoreMetrics, seconds: float) -> None:
    """Deletes forgotten content at the start, and then ever again."""
    while True:
        try:
            metrics.forgotten(await catalog.sweep())
        except Exception:  # A label that cannot be read, say: what it is on must not be taken for forgotten.
            _log.exception("forgotten adapters could not be looked for")
        await asyncio.sleep(seconds)
