"""What a store sends that is not what it announced is not taken for an adapter."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import pytest

from paceline.errors import UnavailableError
from paceline.internal.v1 import adapter_store_pb2 as pb
from paceline.internal.v1 import adapter_store_pb2_grpc
from paceline.v1 import adapter_pb2
from services.adapter_store.client import AdapterStoreClient
from services.common.channel import open_channel
from services.common.lora.config import CONFIG_NAME, WEIGHTS_NAME
from services.common.server import Served
from support.served import served

Announced = list[tuple[str, int]]
BOTH: Announced = [(CONFIG_NAME, 2), (WEIGHTS_NAME, 4)]


@dataclass
class Sending(adapter_store_pb2_grpc.AdapterStoreServiceServicer):
    """Announces and sends what it is told to."""

    announced: Announced = field(default_factory=list)
    data: tuple[bytes, ...] = ()

    async def FetchAdapter(
        self, request: pb.FetchAdapterRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.FetchAdapterResponse]:
        files = [adapter_pb2.AdapterFile(name=name, num_bytes=size) for name, size in self.announced]
        yield pb.FetchAdapterResponse(files=files)
        for data in self.data:
            yield pb.FetchAdapterResponse(data=data)


@pytest.fixture
async def sending() -> AsyncIterator[tuple[Sending, AdapterStoreClient]]:
    servicer = Sending()

    @asynccontextmanager
    async def lifespan(server: grpc.aio.Server) -> AsyncIterator[Served]:
        adapter_store_pb2_grpc.add_AdapterStoreServiceServicer_to_server(servicer, server)
        yield Served(())

    async with served(lifespan) as address:
        client = AdapterStoreClient(address, open_channel(address), max_adapter_bytes=100)
        yield servicer, client
        await client.close()


@pytest.mark.parametrize("data", [(b"c!ssss",), (b"c", b"!s", b"sss"), (b"c!", b"", b"ssss")])
async def test_files_are_told_apart_by_their_sizes(
    sending: tuple[Sending, AdapterStoreClient], data: tuple[bytes, ...]
) -> None:
    servicer, client = sending
    servicer.announced, servicer.data = BOTH, data
    assert await client.fetch("", "a", "0" * 64, 5) == (b"c!", b"ssss")
    servicer.announced, servicer.data = BOTH[::-1], (b"ssssc!",)
    assert await client.fetch("", "a", "0" * 64, 5) == (b"c!", b"ssss")
    await client.check("", "a", "0" * 64, 5)


@pytest.mark.parametrize(
    ("announced", "data", "reason"),
    [
        (BOTH, (b"c!sss",), "announced 6 bytes and sent 5"),
        (BOTH, (b"c!sssss",), "announced 6 bytes and sent 7"),
        ([(CONFIG_NAME, 2), (WEIGHTS_NAME, 99)], (), "more than 100 bytes"),
        ([(CONFIG_NAME, 2)], (b"c!",), "announced files"),
        ([(CONFIG_NAME, 2), (CONFIG_NAME, 2), (WEIGHTS_NAME, 4)], (b"c!c!ssss",), "announced files"),
        ([(CONFIG_NAME, 2), ("adapter_model.bin", 4)], (b"c!ssss",), "announced files"),
        ([], (b"c!ssss",), "announced files"),
    ],
)
async def test_what_was_not_announced_is_not_taken(
    sending: tuple[Sending, AdapterStoreClient], announced: Announced, data: tuple[bytes, ...], reason: str
) -> None:
    servicer, client = sending
    servicer.announced, servicer.data = announced, data
    with pytest.raises(UnavailableError, match=reason):
        await client.fetch("", "a", "0" * 64, 5)
