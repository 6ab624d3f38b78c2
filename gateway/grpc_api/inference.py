"""InferenceService: what clients call."""

from collections.abc import AsyncIterator
from typing import TypeVar

from google.protobuf.message import Message

from gateway.generation.generation import Generation
from gateway.generation.validation import Request, check_prompt_bytes
from gateway.model.catalogue import Catalogue
from gateway.tenants.identity import Identity
from paceline.errors import InvalidArgumentError
from paceline.v1 import inference_pb2, inference_pb2_grpc
from services.common.access import CallContext

R = TypeVar("R", bound=Message)
_FIELDS = {
    inference_pb2.Started: "started",
    inference_pb2.Delta: "delta",
    inference_pb2.Finished: "finished",
    inference_pb2.Usage: "usage",
}


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Between gRPC and generation."""

    def __init__(self, generation: Generation, identity: Identity, catalogue: Catalogue, max_prompt_bytes: int) -> None:
        self._generation = generation
        self._identity = identity
        self._catalogue = catalogue
        self._max_prompt_bytes = max_prompt_bytes

    def Generate(
        self, request: inference_pb2.GenerateRequest, context: CallContext
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        """See inference.proto."""
        return self._responses(request, context, inference_pb2.GenerateResponse)

    def Chat(
        self, request: inference_pb2.ChatRequest, context: CallContext
    ) -> AsyncIterator[inference_pb2.ChatResponse]:
        """See inference.proto."""
        return self._responses(request, context, inference_pb2.ChatResponse)

    async def Tokenize(
        self, request: inference_pb2.TokenizeRequest, context: CallContext
    ) -> inference_pb2.TokenizeResponse:
        """See inference.proto."""
        model = self._catalogue.get(request.model)
        check_prompt_bytes(len(request.text.encode()), self._max_prompt_bytes, "text")
        return inference_pb2.TokenizeResponse(token_ids=await model.tokenizer.encode(request.text))

    async def Detokenize(
        self, request: inference_pb2.DetokenizeRequest, context: CallContext
    ) -> inference_pb2.DetokenizeResponse:
        """See inference.proto."""
        model = self._catalogue.get(request.model)
        most, vocab_size = max(request.token_ids, default=0), (await model.info()).vocab_size
        if most >= vocab_size:
            raise InvalidArgumentError("token_ids", f"token id {most} is out of range: the vocabulary has {vocab_size}")
        return inference_pb2.DetokenizeResponse(text=model.tokenizer.decode(list(request.token_ids)))

    async def _responses(self, request: Request, context: CallContext, response: type[R]) -> AsyncIterator[R]:
        """The events of a request, each in a response of its method's type."""
        caller = self._identity.caller(context)
        async with self._generation.run(request, caller, context.time_remaining()) as events:
            async for event in events:
                yield response(**{_FIELDS[type(event)]: event})
