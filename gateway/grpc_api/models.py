"""ModelService: which models can be asked for."""

import asyncio

from gateway.model.catalogue import Catalogue
from paceline.v1 import model_pb2, model_pb2_grpc
from services.common.access import CallContext


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Tells of the gateway's models."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    async def ListModels(
        self, request: model_pb2.ListModelsRequest, context: CallContext
    ) -> model_pb2.ListModelsResponse:
        """See model.proto."""
        models = await asyncio.gather(*(model.describe() for model in self._catalogue))
        return model_pb2.ListModelsResponse(models=models)

    async def GetModel(self, request: model_pb2.GetModelRequest, context: CallContext) -> model_pb2.GetModelResponse:
        """See model.proto."""
        return model_pb2.GetModelResponse(model=await self._catalogue.get(request.model).describe())
