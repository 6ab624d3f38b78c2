"""ModelServerService over gRPC: the same at verifiers and drafts."""

from typing import Any

from paceline.internal.v1 import model_server_pb2 as pb
from paceline.internal.v1 import model_server_pb2_grpc
from services.common.access import CallContext
from services.common.errors import NotFoundError
from services.engine.engine_loop import EngineLoop
from services.model_server.adapter_slots import AdapterSlots
from services.model_server.opening import to_model_info, to_modules, to_tenant
from services.model_server.settings import ModelServerSettings

SERVICE = pb.DESCRIPTOR.services_by_name["ModelServerService"].full_name


class ModelServerServicer(model_server_pb2_grpc.ModelServerServiceServicer):
    """Says what one engine runs."""

    def __init__(
        self, engine_loop: EngineLoop[Any], settings: ModelServerSettings, adapters: AdapterSlots | None
    ) -> None:
        self._engine_loop = engine_loop
        self._access = settings.access
        self._model_id = settings.public_model_id
        self._adapters = adapters

    async def GetModel(self, request: pb.GetModelRequest, context: object) -> pb.GetModelResponse:
        """See model_server.proto."""
        return pb.GetModelResponse(model_info=to_model_info(self._engine_loop.role.engine, self._model_id))

    async def ListAdapterModules(
        self, request: pb.ListAdapterModulesRequest, context: object
    ) -> pb.ListAdapterModulesResponse:
        """See model_server.proto."""
        return pb.ListAdapterModulesResponse(modules=to_modules(self._engine_loop.role.engine))

    async def PrefetchAdapter(
        self, request: pb.PrefetchAdapterRequest, context: CallContext
    ) -> pb.PrefetchAdapterResponse:
        """See model_server.proto."""
        if self._adapters is None:
            raise NotFoundError("adapter", request.adapter_digest, "this service has no adapters")
        await self._adapters.load(request.adapter_digest, to_tenant(request.tenant, context, self._access))
        return pb.PrefetchAdapterResponse()
