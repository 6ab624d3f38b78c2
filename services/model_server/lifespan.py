"""Builds an engine on its thread, serves what a role makes of it, and tears it down."""

from collections import abc
from contextlib import asynccontextmanager
from typing import NamedTuple, TypeVar

import grpc

from paceline.internal.v1 import model_server_pb2_grpc
from services.common.prometheus import read_by_prometheus
from services.common.server import Lifespan, Served
from services.engine.engine import Engine
from services.engine.engine_loop import EngineLoop
from services.engine.outbox import Outbox
from services.engine.role import Role
from services.model_server.adapter_slots import AdapterSlots
from services.model_server.load_reports import LoadReports
from services.model_server.opening import Opener
from services.model_server.prefix_tier import PrefixTier
from services.model_server.publisher import Computed
from services.model_server.servicer import SERVICE, ModelServerServicer, OwnModel
from services.model_server.settings import ModelServerSettings
from services.model_server.vllm_metrics import Drafts, VllmMetrics
from services.process.servicer import add_process_service

R = TypeVar("R", bound=Role)
E = TypeVar("E")


class Asked(NamedTuple):
    """What a role is asked by."""

    service_name: str
    drafts: abc.Callable[[], Drafts] | None = None
    """Says what was verified of drafts; None for a role that verifies nothing."""
    own_draft: abc.Callable[[], OwnModel | None] = lambda: None
    """Describes the draft that proposes in the same process."""


def model_server_lifespan(
    settings: ModelServerSettings,
    make_role: abc.Callable[[Engine, Outbox[E]], R],
    add_servicer: abc.Callable[[EngineLoop[R], Opener, grpc.aio.Server], Asked],
) -> Lifespan:
    """The life of a process with one engine. `add_servicer` adds what its role is asked by."""

    @asynccontextmanager
    async def lifespan(server: grpc.aio.Server) -> abc.AsyncIterator[Served]:
        computed = Computed()
        publishes = settings.prefix_cache is not None
        engine_loop = EngineLoop(settings.engine_config(), make_role, computed.put_nowait if publishes else None)
        prefixes = PrefixTier.connect(engine_loop, computed, settings)
        adapters = AdapterSlots.connect(engine_loop, settings)
        try:
            opener = Opener(engine_loop, settings, prefixes, adapters)
            name, drafts, own_draft = add_servicer(engine_loop, opener, server)
            model_server_pb2_grpc.add_ModelServerServiceServicer_to_server(
                ModelServerServicer(engine_loop, settings, adapters, own_draft), server
            )
            own = add_process_service(server, tls=settings.server.tls, channel_tls=settings.channel_tls)
            names = (name, SERVICE, own)
            reports = LoadReports(engine_loop, opener.open_streams, settings.engine.max_sequences)
            reports.add_to(server)
            shown = VllmMetrics(settings.public_model_id, engine_loop, opener.open_streams, adapters, drafts)
            with read_by_prometheus(settings.telemetry, shown):
                yield Served(names, engine_loop.ready, engine_loop.stopped, reports.drain)
        finally:
            for tier in (prefixes, adapters):
                if tier is not None:
                    await tier.close()
            await engine_loop.stop()

    return lifespan
