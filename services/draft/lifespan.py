"""What makes a process with an engine a draft service."""

import grpc

from paceline.internal.v1 import draft_pb2, draft_pb2_grpc
from services.common.server import Lifespan
from services.draft.draft_role import DraftRole
from services.draft.draft_sequence import Event
from services.draft.servicer import DraftServicer
from services.draft.settings import DraftSettings
from services.engine.engine import Engine
from services.engine.engine_loop import EngineLoop
from services.engine.outbox import Outbox
from services.model_server.lifespan import Asked, model_server_lifespan
from services.model_server.opening import Opener


def draft_lifespan(settings: DraftSettings) -> Lifespan:
    """The life of a draft service with these settings."""

    def make_role(engine: Engine, outbox: Outbox[Event]) -> DraftRole:
        return DraftRole(engine, outbox, settings.max_branches)

    def add_servicer(engine_loop: EngineLoop[DraftRole], opener: Opener, server: grpc.aio.Server) -> Asked:
        servicer = DraftServicer(engine_loop, opener, settings.max_proposal_tokens, ahead=settings.ahead)
        draft_pb2_grpc.add_DraftServiceServicer_to_server(servicer, server)
        return Asked(draft_pb2.DESCRIPTOR.services_by_name["DraftService"].full_name)

    return model_server_lifespan(settings, make_role, add_servicer)
