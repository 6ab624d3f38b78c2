"""Builds the gateway and tears it down."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc

from gateway.audit.auditor import Auditor
from gateway.batch.work import open_work
from gateway.generation.admission import Admission
from gateway.generation.generation import Generation
from gateway.grpc_api.adapters import AdapterServicer
from gateway.grpc_api.admin import AdminServicer
from gateway.grpc_api.batches import BatchServicer
from gateway.grpc_api.cache import CacheServicer
from gateway.grpc_api.inference import InferenceServicer
from gateway.grpc_api.models import ModelServicer
from gateway.grpc_api.operations import OperationsServicer
from gateway.grpc_api.usage import UsageServicer
from gateway.grpc_api.webhooks import WebhookServicer
from gateway.metrics import GatewayMetrics
from gateway.model.catalogue import Catalogue
from gateway.model.replicas import Replicas
from gateway.model.served_model import ServedModel
from gateway.settings import GatewaySettings
from gateway.status import SystemStatus
from gateway.tenants.adapters import Adapters
from gateway.tenants.blocks import Blocks
from gateway.tenants.grants import Grants
from gateway.tenants.tenancy import open_tenancy
from gateway.webhooks.addresses import Addresses
from gateway.webhooks.delivery import TAKEN_SECONDS, Delivery, open_client
from gateway.webhooks.endpoints import Endpoints
from gateway.webhooks.outbox import Outbox
from paceline.v1 import (
    adapter_pb2,
    adapter_pb2_grpc,
    admin_pb2,
    admin_pb2_grpc,
    batch_pb2,
    batch_pb2_grpc,
    cache_pb2,
    cache_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
    usage_pb2,
    usage_pb2_grpc,
    webhook_pb2,
    webhook_pb2_grpc,
)
from services.adapter_store.client import AdapterStoreClient
from services.common.identities import Identity
from services.common.server import Lifespan, Served
from services.common.tls_settings import tls_to
from services.common.tokens import TokenMint
from services.prefix_cache.client import PrefixCacheClient

_ASK_SECONDS = 2.0
_SERVICES = (
    adapter_pb2.DESCRIPTOR.services_by_name["AdapterService"].full_name,
    admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
    batch_pb2.DESCRIPTOR.services_by_name["BatchService"].full_name,
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    cache_pb2.DESCRIPTOR.services_by_name["CacheService"].full_name,
    model_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
    operations_pb2.DESCRIPTOR.services_by_name["OperationsService"].full_name,
    usage_pb2.DESCRIPTOR.services_by_name["UsageService"].full_name,
    webhook_pb2.DESCRIPTOR.services_by_name["WebhookService"].full_name,
)


def gateway_lifespan(settings: GatewaySettings) -> Lifespan:
    """The life of a gateway with these settings. It serves once a verifier of one of its models lives."""

    @asynccontextmanager
    async def lifespan(server: grpc.aio.Server) -> AsyncIterator[Served]:
        key, tls = settings.signing_key, settings.channel_tls
        grants = Grants(TokenMint(key.get_secret_value(), settings.token_seconds) if key is not None else None)
        admission = Admission(settings.max_active_requests, settings.max_queued_requests)
        async with AsyncExitStack() as stack:
            tenancy = await stack.enter_async_context(open_tenancy(settings))
            identity = tenancy.identity
            catalogue = Catalogue([await ServedModel.load(model, tls) for model in settings.models])
            stack.push_async_callback(catalogue.close)
            stores = Replicas.connect(
                "adapter store", settings.adapter_stores, AdapterStoreClient, _check,
                tls=tls_to(Identity.ADAPTER_STORE, tls),
            )  # fmt: skip
            adapters = Adapters(stores, grants)
            stack.push_async_callback(adapters.close)
            caches = Replicas.connect(
                "prefix cache", settings.prefix_caches, PrefixCacheClient, _check,
                tls=tls_to(Identity.PREFIX_CACHE, tls),
            )  # fmt: skip
            blocks = Blocks(caches, grants)
            stack.push_async_callback(blocks.close)
            metrics = GatewayMetrics(admission, [model.id for model in catalogue])
            auditor = Auditor(settings.audit_share, settings.audit_tokens, catalogue, admission, grants)
            await stack.enter_async_context(auditor.running())
            generation = Generation(
                settings, catalogue, admission, grants, adapters, metrics, tenancy.accounts, auditor.consider
            )
            inference_pb2_grpc.add_InferenceServiceServicer_to_server(
                InferenceServicer(generation, identity, catalogue, settings.max_prompt_bytes, settings.unread_seconds),
                server,
            )
            adapter_pb2_grpc.add_AdapterServiceServicer_to_server(
                AdapterServicer(adapters, identity, catalogue), server
            )
            cache_pb2_grpc.add_CacheServiceServicer_to_server(CacheServicer(blocks, identity), server)
            model_pb2_grpc.add_ModelServiceServicer_to_server(
                ModelServicer(catalogue, tenancy.prices, adapters, identity, auditor), server
            )
            admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminServicer(tenancy.key_store, identity), server)
            status = SystemStatus(
                settings,
                catalogue,
                tenancy.key_store,
                [replica.client for replica in caches],
                [replica.client for replica in stores],
            )
            operations_pb2_grpc.add_OperationsServiceServicer_to_server(OperationsServicer(status, identity), server)
            usage_pb2_grpc.add_UsageServiceServicer_to_server(
                UsageServicer(tenancy.database, identity, tenancy.prices.currency), server
            )
            addresses = Addresses(settings.webhook_networks)
            webhook_pb2_grpc.add_WebhookServiceServicer_to_server(
                WebhookServicer(Endpoints(tenancy.database, addresses), identity), server
            )
            client = await stack.enter_async_context(open_client())
            delivery = Delivery(Outbox(tenancy.database, TAKEN_SECONDS), addresses, client)
            await stack.enter_async_context(delivery.running())
            work = await stack.enter_async_context(open_work(settings, tenancy, generation, catalogue, adapters))
            batch_pb2_grpc.add_BatchServiceServicer_to_server(BatchServicer(*work, identity), server)
            yield Served(_SERVICES, catalogue.ready)

    return lifespan


async def _check(client: AdapterStoreClient | PrefixCacheClient) -> bool:
    return await client.check_serving(_ASK_SECONDS)
