"""A system of real processes under attack: nobody else notices, and afterwards all is as before.

This is a share of `make attack`, from a seed that does not change.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
import pytest
import pytest_asyncio

from attacks.attack import Attack
from attacks.identities import TENANT_HEADER
from attacks.ordinary import adapter_upload
from attacks.siege import STALL_SECONDS, Findings, Siege, besieged
from paceline.sent import response_to_stream
from paceline.v1 import adapter_pb2, adapter_pb2_grpc, inference_pb2, inference_pb2_grpc

NUM_ATTACKS = 1_500
SEED = 20
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def siege(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Siege]:
    async with besieged(tmp_path_factory.mktemp("siege")) as made:
        yield made


def ignore(_attack: Attack, _outcome: str) -> None:
    """Whoever attacks is told how each attack ended."""


async def test_attacks_end_in_words_and_hurt_nobody(siege: Siege) -> None:
    generator = siege.generator(SEED, huge=0.02)
    found = await siege.endure((generator.attack(number) for number in range(NUM_ATTACKS)), ignore)
    assert not found.faults, "\n".join(found.faults)
    assert found.outcomes.total() == NUM_ATTACKS
    assert found.outcomes["OK"] > NUM_ATTACKS // 10, "attacks get past the checks, too"
    assert found.outcomes["INVALID_ARGUMENT"] > NUM_ATTACKS // 10
    assert min(found.num_answers.values()) > 1, "others were there"


async def test_a_storm_of_cancels_takes_nothing_from_others(siege: Siege) -> None:
    """More calls than there are places, each left after a moment."""
    request = inference_pb2.GenerateRequest(prompt="x", n=4, sampling={"max_tokens": 400, "ignore_eos": True})

    async def attack(_: Findings) -> None:
        async with grpc.aio.insecure_channel(siege.addresses["gateway"]) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            calls: list[Any] = [stub.Generate(request, metadata=((TENANT_HEADER, "mallory"),)) for _ in range(400)]
            first = [asyncio.create_task(call.read()) for call in calls[:40]]
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            for call in calls:
                call.cancel()
            await asyncio.wait(first)

    found = await siege.beside(attack)
    assert not found.faults, "\n".join(found.faults)


async def test_uploads_that_dribble_end_and_keep_nobody_from_uploading(siege: Siege) -> None:
    """More of them than there are places, a byte at a time."""
    codes: list[grpc.StatusCode] = []

    async def dribble(stub: adapter_pb2_grpc.AdapterServiceStub, name: str) -> None:
        call: Any = stub.UploadAdapter(metadata=((TENANT_HEADER, "mallory"),))
        announcement, *_ = adapter_upload(name)
        ended = asyncio.create_task(response_to_stream(call))
        with suppress(grpc.RpcError, asyncio.InvalidStateError):
            await call.write(announcement)
            while not (await asyncio.wait([ended], timeout=STALL_SECONDS / 2))[0]:
                await call.write(adapter_pb2.UploadAdapterRequest(data=b"x"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ended
        codes.append(caught.value.code())

    async def attack(_: Findings) -> None:
        async with grpc.aio.insecure_channel(siege.addresses["gateway"]) as channel:
            stub = adapter_pb2_grpc.AdapterServiceStub(channel)
            dribbling = [asyncio.create_task(dribble(stub, f"slow-{number}")) for number in range(4)]
            answer = await stub.UploadAdapter(iter(adapter_upload("quick")), metadata=((TENANT_HEADER, "victim"),))
            assert answer.adapter.name == "quick"
            assert not all(task.done() for task in dribbling)
            await asyncio.gather(*dribbling)

    found = await siege.beside(attack)
    assert not found.faults, "\n".join(found.faults)
    assert set(codes) <= {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert grpc.StatusCode.DEADLINE_EXCEEDED in codes
