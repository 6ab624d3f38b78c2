"""Builds the draft's engine on its thread, serves it, and tears it down."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from paceline.v1 import draft_pb2, draft_pb2_grpc
from services.common.server import Lifespan, Served
from services.draft.draft_role import DraftRole
from services.draft.servicer import DraftServicer
from services.draft.settings import DraftSettings
from services.engine.engine import Engine
from services.engine.engine_loop import EngineLoop, Outbox
from services.wire.adapter_slots import AdapterSlots
from services.wire.prefix_tier import PrefixTier


def draft_lifespan(settings: DraftSettings) -> Lifespan:
    """The life of a draft service with these settings."""

    def build(outbox: Outbox) -> DraftRole:
        engine = Engine(settings.engine_config())
        engine.warm_up()
        return DraftRole(engine, outbox, settings.max_branches)

    @asynccontextmanager
    async def lifespan(server: grpc.aio.Server) -> AsyncIterator[Served]:
        engine_loop = EngineLoop(build, "draft-engine")
        prefixes = PrefixTier.connect(engine_loop, settings)
        adapters = AdapterSlots.connect(engine_loop, settings)
        try:
            servicer = DraftServicer(
                engine_loop,
                prefixes,
                adapters,
                settings.access,
                settings.public_model_id,
                settings.max_open_sequences,
                settings.max_proposal_tokens,
                ahead=settings.ahead,
            )
            draft_pb2_grpc.add_DraftServiceServicer_to_server(servicer, server)
            name = draft_pb2.DESCRIPTOR.services_by_name["DraftService"].full_name
            yield Served((name,), engine_loop.ready(), engine_loop.stopped)
        finally:
            for tier in (prefixes, adapters):
                if tier is not None:
                    await tier.close()
            await engine_loop.stop()

    return lifespan
