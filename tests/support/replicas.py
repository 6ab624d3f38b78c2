"""Replicas of services that do what a test wants, in this process."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc import status_pb2
from grpc.aio import AioRpcError, Metadata

from gateway.model.replicas import Replicas
from services.common.backoff import Backoff

LONG = 60.0


def error(code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE, *, by_service: bool = False) -> AioRpcError:
    """A failed call: by gRPC, or with the details that services add."""
    status = status_pb2.Status(code=code.value[0], message="said so").SerializeToString()
    trailing = Metadata(("grpc-status-details-bin", status)) if by_service else Metadata()
    return AioRpcError(code, Metadata(), trailing, details="dead")


@dataclass(eq=False)
class Service:
    """The client of a service that does what a test wants, and counts."""

    target: str
    fails: AioRpcError | None = None
    says: str = "a"
    incarnation: str = "1"
    asks: int = 0
    calls: int = 0
    calling: asyncio.Event = field(default_factory=asyncio.Event)
    answer_when: asyncio.Event | None = None

    async def close(self) -> None:
        pass

    async def describe(self) -> str:
        self.asks += 1
        if self.fails is not None:
            raise self.fails
        return self.says

    async def do(self) -> str:
        self.calls += 1
        self.calling.set()
        if self.fails is not None:
            raise self.fails
        if self.answer_when is not None:
            await self.answer_when.wait()
        return self.target


class Pool(Replicas[Service, str]):
    """Replicas of services in this process, with pauses of one length."""

    def __init__(self, services: list[Service], pause: float = LONG) -> None:
        super().__init__("service", services, Service.describe, lambda: Backoff(pause, pause, lambda longest: longest))
        self.services = services

    async def do(self, **options: Any) -> str:
        return await self.call(Service.do, **options)


def pool(*dead: bool, pause: float = LONG) -> Pool:
    return Pool([Service(f"s{n}", error() if is_dead else None) for n, is_dead in enumerate(dead)], pause)


async def started(*dead: bool, pause: float = LONG) -> Pool:
    """Services that die once all of them were found living."""
    made = pool(*(False for _ in dead), pause=pause)
    await made.look()
    for service, is_dead in zip(made.services, dead, strict=True):
        service.fails = error() if is_dead else None
    return made
