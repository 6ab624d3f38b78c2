"""ModelServerService over gRPC: the same at verifiers and drafts."""

import time
from collections import abc
from typing import Any, NamedTuple

from paceline.errors import FailedPreconditionError, NotFoundError
from paceline.internal.v1 import model_server_pb2 as pb
from paceline.internal.v1 import model_server_pb2_grpc
from paceline.v1 import model_pb2, sampling_pb2
from services.common.access import CallContext
from services.common.incarnation import INCARNATION
from services.common.machine import machine_id
from services.engine.engine import EngineFacts
from services.engine.engine_loop import EngineLoop
from services.engine.loading import Phase
from services.model_server.adapter_slots import AdapterSlots
from services.model_server.opening import to_tenant
from services.model_server.settings import ModelServerSettings

SERVICE = pb.DESCRIPTOR.services_by_name["ModelServerService"].full_name
_PHASES = {
    Phase.WEIGHTS: pb.WatchLoadingResponse.PHASE_WEIGHTS,
    Phase.FORWARD: pb.WatchLoadingResponse.PHASE_FORWARD,
    Phase.MEASURING: pb.WatchLoadingResponse.PHASE_MEASURING,
    Phase.READY: pb.WatchLoadingResponse.PHASE_READY,
}


class OwnModel(NamedTuple):
    """A model of this process."""

    id: str
    facts: EngineFacts
    step_seconds: str
    """Name of the readings that say how long its steps take."""


class ModelServerServicer(model_server_pb2_grpc.ModelServerServiceServicer):
    """Says what one engine runs."""

    def __init__(
        self,
        engine_loop: EngineLoop[Any],
        settings: ModelServerSettings,
        adapters: AdapterSlots | None,
        own_draft: abc.Callable[[], OwnModel | None] = lambda: None,
    ) -> None:
        """`own_draft` describes the draft that proposes in the same process, if there is one."""
        self._own_draft = own_draft
        self._engine_loop = engine_loop
        self._access = settings.access
        self._model_id = settings.public_model_id
        self._adapters = adapters

    async def GetModel(self, request: pb.GetModelRequest, context: object) -> pb.GetModelResponse:
        """See model_server.proto."""
        facts = self._engine_loop.facts
        began, own = self._engine_loop.step_began, self._own_draft()
        return pb.GetModelResponse(
            model_info=self._to_model_info(OwnModel(self._model_id, facts, "step_seconds")),
            max_kv_tokens=facts.max_kv_tokens,
            place=f"{machine_id()}/{facts.description.device}",
            step_seconds=0.0 if began is None else time.monotonic() - began,
            incarnation=INCARNATION,
            own_draft=None if own is None else self._to_model_info(own),
        )

    async def ListAdapterModules(
        self, request: pb.ListAdapterModulesRequest, context: object
    ) -> pb.ListAdapterModulesResponse:
        """See model_server.proto."""
        return pb.ListAdapterModulesResponse(
            modules=[
                pb.AdapterModule(name=name, in_features=in_features, out_features=out_features)
                for name, in_features, out_features in self._engine_loop.facts.targets.values()
            ]
        )

    async def PrefetchAdapter(
        self, request: pb.PrefetchAdapterRequest, context: CallContext
    ) -> pb.PrefetchAdapterResponse:
        """See model_server.proto."""
        if self._adapters is None:
            raise NotFoundError("adapter", request.adapter_digest, "this service has no adapters")
        await self._adapters.load(request.adapter_digest, to_tenant(request.tenant, context, self._access))
        return pb.PrefetchAdapterResponse()

    async def WatchLoading(
        self, request: pb.WatchLoadingRequest, context: object
    ) -> abc.AsyncIterator[pb.WatchLoadingResponse]:
        """See model_server.proto."""
        try:
            async for phase, fraction in self._engine_loop.watch_loading():
                yield pb.WatchLoadingResponse(phase=_PHASES[phase], fraction=fraction)
        except Exception as error:
            raise FailedPreconditionError(f"the model could not be loaded: {error}") from error

    def _to_model_info(self, model: OwnModel) -> model_pb2.ModelInfo:
        """The message that describes a model of this process."""
        description = model.facts.description
        return model_pb2.ModelInfo(
            id=model.id,
            revision_digest=description.revision_digest,
            architecture=description.architecture,
            max_context_tokens=model.facts.max_context_tokens,
            vocab_size=description.vocab_size,
            eos_token_ids=description.eos_token_ids,
            num_parameters=description.num_parameters,
            dtype=description.dtype,
            device=description.device,
            sampling_defaults=sampling_pb2.SamplingParams(**description.sampling_defaults),
            vocabulary_digest=description.vocabulary_digest,
            step_times=[
                model_pb2.StepTime(num_rows=int(one.attributes["rows"]), seconds=one.value)
                for one in self._engine_loop.readings.get(model.step_seconds, ())
            ],
        )
