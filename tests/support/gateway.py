"""A scripted gateway: real gRPC, no model."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from paceline.errors import InvalidArgumentError, NotFoundError, PermissionDeniedError
from paceline.upload import ACCEPTED
from paceline.v1 import (
    adapter_pb2,
    adapter_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
)
from services.common.server import Served
from services.common.settings import ServerSettings
from support.served import SERVER, served


@dataclass
class FakeGateway(
    inference_pb2_grpc.InferenceServiceServicer,
    model_pb2_grpc.ModelServiceServicer,
    adapter_pb2_grpc.AdapterServiceServicer,
    operations_pb2_grpc.OperationsServiceServicer,
):
    """Says numbers without end, and keeps what it was asked."""

    requests: list[Any] = field(default_factory=list)
    models: list[model_pb2.Model] = field(default_factory=lambda: [model_pb2.Model(target={"id": "scripted"})])
    status: operations_pb2.GetStatusResponse | None = None
    """How it says that the system fares, but for its clock, which is right; none: nobody may know."""
    num_running: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: object
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        self.requests.append(request)
        if request.model:
            raise NotFoundError("model", request.model)
        self.num_running += 1
        self.idle.clear()
        try:
            for number in range(request.sampling.max_tokens or 1 << 30):
                yield inference_pb2.GenerateResponse(delta={"text": f"{number} ", "token_ids": [number]})
                await asyncio.sleep(0)
        finally:
            self.num_running -= 1
            if not self.num_running:
                self.idle.set()

    async def Chat(
        self, request: inference_pb2.ChatRequest, context: object
    ) -> AsyncIterator[inference_pb2.ChatResponse]:
        """Repeats the conversation; "endless" has it count on, and "refuse" is refused."""
        self.requests.append(request)
        if request.messages[-1].content == "refuse":
            raise InvalidArgumentError("messages", "not that one")
        for message in request.messages:
            yield inference_pb2.ChatResponse(delta={"text": f"[{message.content}]"})
        if request.messages[-1].content == "endless":
            self.num_running += 1
            self.idle.clear()
            try:
                for number in range(1 << 30):
                    yield inference_pb2.ChatResponse(delta={"text": f" {number}"})
                    await asyncio.sleep(0)
            finally:
                self.num_running -= 1
                self.idle.set()
        yield inference_pb2.ChatResponse(usage={"num_completion_tokens": 1})

    async def Tokenize(self, request: inference_pb2.TokenizeRequest, context: object) -> inference_pb2.TokenizeResponse:
        if request.text == "hang":
            await asyncio.Event().wait()
        return inference_pb2.TokenizeResponse(token_ids=request.text.encode())

    async def Detokenize(
        self, request: inference_pb2.DetokenizeRequest, context: object
    ) -> inference_pb2.DetokenizeResponse:
        if max(request.token_ids) > 255:
            raise InvalidArgumentError("token_ids", "must be below 256")
        return inference_pb2.DetokenizeResponse(text=bytes(request.token_ids).decode())

    async def ListModels(self, request: object, context: object) -> model_pb2.ListModelsResponse:
        return model_pb2.ListModelsResponse(models=self.models)

    async def GetSpeculation(self, request: object, context: object) -> model_pb2.GetSpeculationResponse:
        return model_pb2.GetSpeculationResponse()

    async def UploadAdapter(
        self, request_iterator: AsyncIterator[adapter_pb2.UploadAdapterRequest], context: Any
    ) -> adapter_pb2.UploadAdapterResponse:
        announced = await anext(request_iterator)
        self.requests.append(announced)
        if announced.upload.name == "hang":
            await asyncio.Event().wait()
        await context.send_initial_metadata(ACCEPTED)
        num_bytes = sum([len(request.data) async for request in request_iterator])
        name = announced.upload.name
        return adapter_pb2.UploadAdapterResponse(adapter={"name": name, "rank": 4, "num_bytes": num_bytes})

    async def ListAdapters(self, request: object, context: object) -> adapter_pb2.ListAdaptersResponse:
        return adapter_pb2.ListAdaptersResponse(adapters=[{"name": "mine", "digest": "ab" * 32}])

    async def GetStatus(self, request: object, context: object) -> operations_pb2.GetStatusResponse:
        if self.status is None:
            raise PermissionDeniedError("the API key is not for 'admin'")
        self.status.gateway.clock_seconds = time.time()
        return self.status


@asynccontextmanager
async def serve_gateway(gateway: FakeGateway, settings: ServerSettings = SERVER) -> AsyncIterator[str]:
    """Address of a server with this gateway."""

    @asynccontextmanager
    async def lifespan(server: grpc.aio.Server) -> AsyncIterator[Served]:
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(gateway, server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(gateway, server)
        adapter_pb2_grpc.add_AdapterServiceServicer_to_server(gateway, server)
        operations_pb2_grpc.add_OperationsServiceServicer_to_server(gateway, server)
        yield Served(())

    async with served(lifespan, settings) as address:
        yield address
