"""Builds an engine on its thread, serves what a role makes of it, and tears it down."""

from collections import abc
from contextlib import asynccontextmanager
from typing import TypeVar

import grpc

from paceline.internal.v1 import model_server_pb2_grpc
from services.common.server import Lifespan, Served
from services.engine.engine import Engine
from services.engine.engine_loop import EngineLoop
from services.engine.outbox import Outbox
from services.engine.role import Role
from services.model_server.adapter_slots import AdapterSlots
from services.model_server.opening import Opener
from services.model_server.prefix_tier import PrefixTier
from services.model_server.publisher import Computed
from services.model_server.servicer import SERVICE, ModelServerServicer
from services.model_server.settings import ModelServerSettings
from services.process.servicer import add_process_service

R = TypeVar("R", bound=Role)
E = TypeVar("E")


def model_server_lifespan(
    settings: ModelServerSettings,
    make_role: abc.Callable[[Engine, Outbox[E]], R],
    add_servicer: abc.Callable[[EngineLoop[R], Opener, grpc.aio.Server], str],
) -> Lifespan:
    """The life of a process with one engine. `add_servicer` adds what its role is asked by, and returns that's name."""

    @asynccontextmanager
    async def lifespan(server: grpc.aio.Server) -> abc.AsyncIterator[Served]:
        computed = Computed()
        publishes = settings.prefix_cache is not None
        engine_loop = EngineLoop(settings.engine_config(), make_role, computed.put_nowait if publishes else None)
        prefixes = PrefixTier.connect(engine_loop, computed, settings)
        adapters = AdapterSlots.connect(engine_loop, settings)
        try:
            name = add_servicer(engine_loop, Opener(engine_loop, settings, prefixes, adapters), server)
            model_server_pb2_grpc.add_ModelServerServiceServicer_to_server(
                ModelServerServicer(engine_loop, settings, adapters), server
            )
            yield Served((name, SERVICE, add_process_service(server)), engine_loop.ready(), engine_loop.stopped)
        finally:
            for tier in (prefixes, adapters):
                if tier is not None:
                    await tier.close()
            await engine_loop.stop()

    return lifespan
