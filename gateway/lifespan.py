"""Builds the gateway and tears it down."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from gateway.admission import Admission
from gateway.model_servicer import ModelServicer
from gateway.pool import ServicePool
from gateway.servicer import InferenceServicer
from gateway.settings import GatewaySettings
from gateway.tokenizer import ModelTokenizer
from paceline.v1 import inference_pb2, inference_pb2_grpc, model_pb2, model_pb2_grpc
from services.common.server import Lifespan, Served


def gateway_lifespan(settings: GatewaySettings) -> Lifespan:
    """The life of a gateway with these settings. It serves once a verifier has said what it runs."""

    @asynccontextmanager
    async def lifespan(server: grpc.aio.Server) -> AsyncIterator[Served]:
        tokenizer = ModelTokenizer(settings.tokenizer)
        admission = Admission(settings.max_active_requests, settings.max_queued_requests)
        pool = ServicePool(settings.verifiers, settings.drafts)
        try:
            inference_pb2_grpc.add_InferenceServiceServicer_to_server(
                InferenceServicer(settings, pool, tokenizer, admission), server
            )
            model_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(pool, tokenizer), server)
            names = (
                inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
                model_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
            )
            yield Served(names, pool.ready())
        finally:
            await pool.close()

    return lifespan
