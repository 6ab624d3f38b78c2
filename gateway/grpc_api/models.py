"""ModelService: which models can be asked for."""

import asyncio
import logging
from collections.abc import Sequence

import grpc

from gateway.audit.auditor import Auditor
from gateway.model.catalogue import Catalogue
from gateway.model.served_model import ServedModel
from gateway.tenants.adapters import Adapters
from gateway.tenants.api_key import Scope
from gateway.tenants.identity import Identity
from gateway.tenants.prices import Prices
from paceline.errors import PacelineError, PermissionDeniedError, UnauthenticatedError
from paceline.v1 import adapter_pb2, model_pb2, model_pb2_grpc
from services.common.access import CallContext

_log = logging.getLogger(__name__)


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Tells everybody of the gateway's models, and who shows a key of its own adapters for them."""

    def __init__(
        self, catalogue: Catalogue, prices: Prices, adapters: Adapters, identity: Identity, auditor: Auditor
    ) -> None:
        self._catalogue = catalogue
        self._prices = prices
        self._adapters = adapters
        self._identity = identity
        self._auditor = auditor

    async def ListModels(
        self, request: model_pb2.ListModelsRequest, context: CallContext
    ) -> model_pb2.ListModelsResponse:
        """See model.proto."""
        adapters = await self._adapters_of(context)
        models = await asyncio.gather(*(self._describe(model, adapters) for model in self._catalogue))
        return model_pb2.ListModelsResponse(models=models)

    async def GetModel(self, request: model_pb2.GetModelRequest, context: CallContext) -> model_pb2.GetModelResponse:
        """See model.proto."""
        model = self._catalogue.get(request.model)
        return model_pb2.GetModelResponse(model=await self._describe(model, await self._adapters_of(context)))

    async def _describe(self, model: ServedModel, adapters: Sequence[adapter_pb2.Adapter]) -> model_pb2.Model:
        described = await model.describe()
        if (prices := self._prices.message(model.id)) is not None:
            described.prices.CopyFrom(prices)
        described.adapters.extend(adapter.name for adapter in adapters if adapter.model in ("", model.id))
        return described

    async def _adapters_of(self, context: CallContext) -> Sequence[adapter_pb2.Adapter]:
        """The caller's adapters; none where they cannot be had: models are told of all the same."""
        if not self._adapters.are_kept:
            return ()
        try:
            return await self._adapters.list(await self._identity.caller(context, Scope.ADAPTERS))
        except (UnauthenticatedError, PermissionDeniedError):
            return ()
        except (PacelineError, grpc.aio.AioRpcError) as error:
            _log.info("models are listed without adapters: %s", error)
            return ()

    async def GetSpeculation(
        self, request: model_pb2.GetSpeculationRequest, context: CallContext
    ) -> model_pb2.GetSpeculationResponse:
        """See model.proto."""
        model = self._catalogue.get(request.model)
        found = self._auditor.found(model.id)
        return model_pb2.GetSpeculationResponse(model=model.id, verifiers=await model.speculation(), audit=found)
