"""What makes a process with an engine a verifier."""

import grpc

from paceline.internal.v1 import verifier_pb2, verifier_pb2_grpc
from services.common.server import Lifespan
from services.engine.engine import Engine
from services.engine.engine_loop import EngineLoop
from services.engine.outbox import Outbox
from services.model_server.lifespan import model_server_lifespan
from services.model_server.opening import Opener
from services.verifier.servicer import VerifierServicer
from services.verifier.settings import VerifierSettings
from services.verifier.target_role import TargetRole
from services.verifier.target_sequence import Event


def verifier_lifespan(settings: VerifierSettings) -> Lifespan:
    """The life of a verifier with these settings."""

    def make_role(engine: Engine, outbox: Outbox[Event]) -> TargetRole:
        return TargetRole(engine, outbox, suffix_drafting=settings.suffix_drafting)

    def add_servicer(engine_loop: EngineLoop[TargetRole], opener: Opener, server: grpc.aio.Server) -> str:
        verifier_pb2_grpc.add_VerifierServiceServicer_to_server(VerifierServicer(engine_loop, opener), server)
        return verifier_pb2.DESCRIPTOR.services_by_name["VerifierService"].full_name

    return model_server_lifespan(settings, make_role, add_servicer)
