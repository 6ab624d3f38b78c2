"""Others who use the system meanwhile: they ask ordinary things, and must get what they always get."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from attacks.identities import TENANT_HEADER
from paceline.v1 import inference_pb2, inference_pb2_grpc, model_pb2, model_pb2_grpc

_PATIENCE_SECONDS = 60.0
_PAUSE_SECONDS = 0.2
_METADATA = ((TENANT_HEADER, "victim"),)
_REQUESTS = (
    inference_pb2.GenerateRequest(prompt="def f(", sampling={"seed": 9, "max_tokens": 40, "ignore_eos": True}),
    inference_pb2.GenerateRequest(prompt="class A:\n" * 20, sampling={"temperature": 0, "max_tokens": 24}, n=2),
)


class Bystanders:
    """Generates, lists models, checks the health of every process, one after the other, over and over."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self.num_answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self._channels = {name: grpc.aio.insecure_channel(address) for name, address in addresses.items()}
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channels["gateway"])
        self._models = model_pb2_grpc.ModelServiceStub(self._channels["gateway"])
        self._expected: list[list[int]] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Learns what ordinary requests get, and begins to ask."""
        self._expected = [await self._tokens(request) for request in _REQUESTS]
        asked: dict[str, Callable[[], Awaitable[object]]] = {"generate": self._generate, "list models": self._list}
        asked |= {f"check {name}": lambda name=name: self._check(name) for name in self._channels}
        self._tasks = [asyncio.create_task(self._ask(name, question)) for name, question in asked.items()]

    async def check(self) -> None:
        """Asks everything once more. Raises AssertionError or grpc.RpcError."""
        await self._generate()
        await self._list()
        for name in self._channels:
            await self._check(name)

    async def stop(self) -> None:
        """Asks no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for channel in self._channels.values():
            await channel.close()

    async def _ask(self, name: str, question: Callable[[], Awaitable[object]]) -> None:
        while True:
            try:
                await question()
            except (grpc.RpcError, AssertionError) as error:
                said = f"{error.code().name}: {error.details()}" if isinstance(error, grpc.aio.AioRpcError) else error
                self.failures.append(f"{name}: {said}")
            self.num_answers[name] += 1
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _generate(self) -> None:
        for request, expected in zip(_REQUESTS, self._expected, strict=True):
            found = await self._tokens(request)
            assert found == expected, f"tokens differ: {found} instead of {expected}"

    async def _list(self) -> None:
        response = await self._models.ListModels(model_pb2.ListModelsRequest(), timeout=_PATIENCE_SECONDS)
        assert [model.available for model in response.models] == [True], "the model is not there"

    async def _check(self, name: str) -> None:
        stub = health_pb2_grpc.HealthStub(self._channels[name])
        response = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_PATIENCE_SECONDS)
        assert response.status == health_pb2.HealthCheckResponse.SERVING, f"{name} does not serve"

    async def _tokens(self, request: inference_pb2.GenerateRequest) -> list[int]:
        call: Any = self._inference.Generate(request, timeout=_PATIENCE_SECONDS, metadata=_METADATA)
        found: list[int] = []
        async for event in call:
            found.extend(token for token in event.delta.token_ids if event.delta.choice == 0)
        return found
