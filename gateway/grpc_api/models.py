"""ModelService: which model can be asked for."""

from gateway.model.replicas import ServicePool
from gateway.model.tokenizer import ModelTokenizer
from paceline.v1 import model_pb2, model_pb2_grpc


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Tells of the gateway's one model."""

    def __init__(self, pool: ServicePool, tokenizer: ModelTokenizer) -> None:
        self._pool = pool
        self._tokenizer = tokenizer

    async def ListModels(self, request: model_pb2.ListModelsRequest, context: object) -> model_pb2.ListModelsResponse:
        """See model.proto."""
        return model_pb2.ListModelsResponse(models=[await self._model()])

    async def GetModel(self, request: model_pb2.GetModelRequest, context: object) -> model_pb2.GetModelResponse:
        """See model.proto."""
        self._pool.check_model(request.model)
        return model_pb2.GetModelResponse(model=await self._model())

    async def _model(self) -> model_pb2.Model:
        draft = await self._pool.draft_info()
        return model_pb2.Model(
            target=self._pool.target_info, draft=draft, has_chat_template=self._tokenizer.has_chat_template
        )
