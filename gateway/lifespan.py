"""Builds the gateway and tears it down."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from gateway.generation.admission import Admission
from gateway.grpc_api.adapters import AdapterServicer
from gateway.grpc_api.cache import CacheServicer
from gateway.grpc_api.inference import InferenceServicer
from gateway.grpc_api.models import ModelServicer
from gateway.model.replicas import ServicePool
from gateway.model.tokenizer import ModelTokenizer
from gateway.settings import GatewaySettings
from gateway.tenants.adapters import Adapters
from gateway.tenants.grants import Grants
from paceline.v1 import (
    adapter_pb2,
    adapter_pb2_grpc,
    cache_pb2,
    cache_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
)
from services.adapter_store.client import AdapterStoreClient
from services.common.channel import open_channel
from services.common.server import Lifespan, Served
from services.common.tokens import TokenMint
from services.prefix_cache.client import PrefixCacheClient


def gateway_lifespan(settings: GatewaySettings) -> Lifespan:
    """The life of a gateway with these settings. It serves once a verifier has said what it runs."""

    @asynccontextmanager
    async def lifespan(server: grpc.aio.Server) -> AsyncIterator[Served]:
        tokenizer = ModelTokenizer(settings.tokenizer)
        admission = Admission(settings.max_active_requests, settings.max_queued_requests)
        pool = ServicePool(settings.verifiers, settings.drafts)
        grants = await _grants(settings, tokenizer)
        target = settings.prefix_cache
        cache = PrefixCacheClient(target, open_channel(target)) if target else None
        store = settings.adapter_store
        adapters = Adapters(AdapterStoreClient(store, open_channel(store)) if store else None, grants, pool)
        try:
            inference_pb2_grpc.add_InferenceServiceServicer_to_server(
                InferenceServicer(settings, pool, tokenizer, admission, grants, adapters), server
            )
            adapter_pb2_grpc.add_AdapterServiceServicer_to_server(AdapterServicer(adapters, grants, pool), server)
            cache_pb2_grpc.add_CacheServiceServicer_to_server(CacheServicer(cache, grants), server)
            model_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(pool, tokenizer), server)
            names = (
                adapter_pb2.DESCRIPTOR.services_by_name["AdapterService"].full_name,
                inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
                cache_pb2.DESCRIPTOR.services_by_name["CacheService"].full_name,
                model_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
            )
            yield Served(names, pool.ready())
        finally:
            await adapters.close()
            await pool.close()
            if cache is not None:
                await cache.close()

    return lifespan


async def _grants(settings: GatewaySettings, tokenizer: ModelTokenizer) -> Grants:
    key = settings.signing_key
    mint = TokenMint(key.get_secret_value(), settings.token_seconds) if key is not None else None
    public = [await tokenizer.encode(prefix) for prefix in settings.public_prefixes]
    # What comes after the system message, here an empty user message, is left out when prompts are compared.
    chats = [
        [{"role": "system", "content": message}, {"role": "user", "content": ""}]
        for message in settings.public_system_messages
    ]
    public += [await tokenizer.encode_chat(chat) for chat in chats]
    return Grants(mint, settings.tenant_header, public)
