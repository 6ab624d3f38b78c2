"""Builds an engine on its thread, serves what a role makes of it, and tears it down."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import grpc

from paceline.internal.v1 import model_server_pb2_grpc
from services.common.server import Lifespan, Served
from services.engine.engine import Engine
from services.engine.engine_loop import EngineLoop, Outbox, Role
from services.model_server.adapter_slots import AdapterSlots
from services.model_server.opening import Opener
from services.model_server.prefix_tier import PrefixTier
from services.model_server.servicer import SERVICE, ModelServerServicer
from services.model_server.settings import ModelServerSettings

R = TypeVar("R", bound=Role)


def model_server_lifespan(
    settings: ModelServerSettings,
    make_role: Callable[[Engine, Outbox], R],
    add_servicer: Callable[[EngineLoop[R], Opener, grpc.aio.Server], str],
) -> Lifespan:
    """The life of a process with one engine. `add_servicer` adds what its role is asked by, and returns that's name."""

    def build(outbox: Outbox) -> R:
        engine = Engine(settings.engine_config())
        engine.warm_up()
        return make_role(engine, outbox)

    @asynccontextmanager
    async def lifespan(server: grpc.aio.Server) -> AsyncIterator[Served]:
        engine_loop = EngineLoop(build, "engine")
        prefixes = PrefixTier.connect(engine_loop, settings)
        adapters = AdapterSlots.connect(engine_loop, settings)
        try:
            name = add_servicer(engine_loop, Opener(engine_loop, settings, prefixes, adapters), server)
            model_server_pb2_grpc.add_ModelServerServiceServicer_to_server(
                ModelServerServicer(engine_loop, settings, adapters), server
            )
            yield Served((name, SERVICE), engine_loop.ready(), engine_loop.stopped)
        finally:
            for tier in (prefixes, adapters):
                if tier is not None:
                    await tier.close()
            await engine_loop.stop()

    return lifespan
