"""Builds the verifier's engine on its thread, serves it, and tears it down."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from paceline.v1 import verifier_pb2, verifier_pb2_grpc
from services.common.server import Lifespan, Served
from services.engine.engine import Engine
from services.engine.engine_loop import EngineLoop, Outbox
from services.verifier.servicer import VerifierServicer
from services.verifier.settings import VerifierSettings
from services.verifier.target_role import TargetRole
from services.wire.adapter_slots import AdapterSlots
from services.wire.prefix_tier import PrefixTier


def verifier_lifespan(settings: VerifierSettings) -> Lifespan:
    """The life of a verifier with these settings."""

    def build(outbox: Outbox) -> TargetRole:
        engine = Engine(settings.engine_config())
        engine.warm_up()
        return TargetRole(engine, outbox, suffix_drafting=settings.suffix_drafting)

    @asynccontextmanager
    async def lifespan(server: grpc.aio.Server) -> AsyncIterator[Served]:
        engine_loop = EngineLoop(build, "verifier-engine")
        prefixes = PrefixTier.connect(engine_loop, settings)
        adapters = AdapterSlots.connect(engine_loop, settings)
        try:
            servicer = VerifierServicer(
                engine_loop, prefixes, adapters, settings.access, settings.public_model_id, settings.max_open_sequences
            )
            verifier_pb2_grpc.add_VerifierServiceServicer_to_server(servicer, server)
            name = verifier_pb2.DESCRIPTOR.services_by_name["VerifierService"].full_name
            yield Served((name,), engine_loop.ready(), engine_loop.stopped)
        finally:
            for tier in (prefixes, adapters):
                if tier is not None:
                    await tier.close()
            await engine_loop.stop()

    return lifespan
