"""InferenceService: what clients call."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TypeVar

from google.protobuf.message import Message

from gateway.generation.generation import Generation
from gateway.generation.patience import while_read
from gateway.generation.validation import Request, check_prompt_bytes, check_vocabulary
from gateway.model.catalogue import Catalogue
from gateway.model.tokenizer import TooManyTokensError
from gateway.tenants.identity import Identity
from paceline.errors import InvalidArgumentError
from paceline.v1 import inference_pb2, inference_pb2_grpc
from services.common.access import CallContext

R = TypeVar("R", bound=Message)
_MAX_TOKENS = 1 << 21
"""Most tokens of a text that is tokenized or detokenized for its own sake."""
_PIECE = 1 << 14
"""Tokens that are copied before others get their turn."""
_FIELDS = {
    inference_pb2.Started: "started",
    inference_pb2.Delta: "delta",
    inference_pb2.Finished: "finished",
    inference_pb2.Usage: "usage",
}


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Between gRPC and generation."""

    def __init__(
        self,
        generation: Generation,
        identity: Identity,
        catalogue: Catalogue,
        max_prompt_bytes: int,
        unread_seconds: float,
    ) -> None:
        self._generation = generation
        self._identity = identity
        self._catalogue = catalogue
        self._max_prompt_bytes = max_prompt_bytes
        self._unread_seconds = unread_seconds

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
        await self._identity.caller(context)
        model = self._catalogue.get(request.model)
        text = request.text  # A message makes its text anew each time that it is asked for it.
        check_prompt_bytes(len(text.encode()), self._max_prompt_bytes, "text")
        try:
            token_ids = await model.tokenizer.encode(text, most=_MAX_TOKENS)
        except TooManyTokensError as error:
            raise InvalidArgumentError("text", f"it has {error}; at most {_MAX_TOKENS} are told") from error
        response = inference_pb2.TokenizeResponse()
        for start in range(0, len(token_ids), _PIECE):
            response.token_ids.extend(token_ids[start : start + _PIECE])
            await asyncio.sleep(0)
        return response

    async def Detokenize(
        self, request: inference_pb2.DetokenizeRequest, context: CallContext
    ) -> inference_pb2.DetokenizeResponse:
        """See inference.proto."""
        await self._identity.caller(context)
        model = self._catalogue.get(request.model)
        num_tokens, vocab_size = len(request.token_ids), (await model.info()).vocab_size
        if num_tokens > _MAX_TOKENS:
            raise InvalidArgumentError(
                "token_ids", f"{num_tokens} are more than {_MAX_TOKENS}, the most that are taken"
            )
        token_ids: list[int] = []
        num_characters = 0
        for start in range(0, num_tokens, _PIECE):
            piece = request.token_ids[start : start + _PIECE]
            check_vocabulary(piece, vocab_size, "token_ids")
            token_ids.extend(piece)
            num_characters += model.tokenizer.num_characters(piece)
            check_prompt_bytes(num_characters, self._max_prompt_bytes, "token_ids")
            await asyncio.sleep(0)
        return inference_pb2.DetokenizeResponse(text=await model.tokenizer.decode(token_ids))

    async def _responses(self, request: Request, context: CallContext, response: type[R]) -> AsyncIterator[R]:
        """The events of a request, each in a response of its method's type."""
        caller = await self._identity.caller(context)
        run = self._generation.run(request, caller, context.time_remaining())
        async with aclosing(while_read(run, self._unread_seconds)) as events:
            async for event in events:
                yield response(**{_FIELDS[type(event)]: event})
