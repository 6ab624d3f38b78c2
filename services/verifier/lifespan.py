"""What makes a process with an engine a verifier."""

import asyncio
from collections import abc
from contextlib import asynccontextmanager, suppress

import grpc

from paceline.errors import UnavailableError
from paceline.internal.v1 import verifier_pb2, verifier_pb2_grpc
from services.common.server import Lifespan, Served
from services.engine.engine import Engine
from services.engine.engine_loop import EngineLoop
from services.engine.outbox import Outbox
from services.model_server.lifespan import Asked, model_server_lifespan
from services.model_server.opening import Opener
from services.model_server.servicer import OwnModel
from services.model_server.settings import name_of
from services.verifier.own_draft import DRAFT_STEP_SECONDS, OwnDraft
from services.verifier.planner import Planner
from services.verifier.servicer import VerifierServicer
from services.verifier.settings import VerifierSettings
from services.verifier.target_role import TargetRole
from services.verifier.target_sequence import Event
from services.verifier.verdicts import Verdicts, setup_of

_KEEP_SECONDS = 300.0
"""How often verdicts are written while the process runs; and once more when it stops."""


def verifier_lifespan(settings: VerifierSettings) -> Lifespan:
    """The life of a verifier with these settings."""

    def make_role(engine: Engine, outbox: Outbox[Event]) -> TargetRole:
        known = Verdicts(settings.verdict_file, setup_of(engine)).load()
        planner = Planner(settings.speculation, known, suffix_drafting=settings.suffix_drafting)
        if settings.draft is not None:
            own_drafts.append(OwnDraft.load(settings.draft, engine))
        own = own_drafts[0] if own_drafts else None
        return TargetRole(engine, outbox, planner, own, suffix_drafting=settings.suffix_drafting)

    def own_draft() -> OwnModel | None:
        """One that has failed is none."""
        if settings.draft is None or not own_drafts or not own_drafts[0].digest:
            return None
        return OwnModel(name_of(settings.draft.model), own_drafts[0].engine.facts, DRAFT_STEP_SECONDS)

    own_drafts: list[OwnDraft] = []
    loops: list[EngineLoop[TargetRole]] = []

    def add_servicer(engine_loop: EngineLoop[TargetRole], opener: Opener, server: grpc.aio.Server) -> Asked:
        loops.append(engine_loop)
        servicer = VerifierServicer(engine_loop, opener)
        verifier_pb2_grpc.add_VerifierServiceServicer_to_server(servicer, server)
        name = verifier_pb2.DESCRIPTOR.services_by_name["VerifierService"].full_name
        return Asked(name, servicer.metrics.drafts, own_draft)

    @asynccontextmanager
    async def lifespan(server: grpc.aio.Server) -> abc.AsyncIterator[Served]:
        async with model_server_lifespan(settings, make_role, add_servicer)(server) as served:
            keeper = asyncio.create_task(_keep(loops[-1], settings.verdict_file))
            try:
                yield served
            finally:
                keeper.cancel()
                await _save(loops[-1], settings.verdict_file)

    return lifespan


async def _keep(engine_loop: EngineLoop[TargetRole], path: str) -> None:
    """Keeps verdicts now and then, for a process that is killed."""
    while True:
        await asyncio.sleep(_KEEP_SECONDS)
        await _save(engine_loop, path)


async def _save(engine_loop: EngineLoop[TargetRole], path: str) -> None:
    """Writes the file between two steps: it is small, and that is rare. An engine that is not there has none."""
    with suppress(UnavailableError):
        _ = engine_loop.facts
        await engine_loop.ask(
            lambda role: Verdicts(path, setup_of(role.engine)).save(role.planner.decider.loads.values())
        )
