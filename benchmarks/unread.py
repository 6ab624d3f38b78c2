"""How many places of a gateway clients hold that read nothing, once their time is over."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import grpc

from paceline import Client
from paceline.v1 import inference_pb2, inference_pb2_grpc, sampling_pb2
from services.local.launcher import running
from services.local.pair import Pair
from services.local.system import SystemSettings

NUM_PLACES = 8
UNREAD_SECONDS = 5.0
_MORE_SECONDS = 3.0
_START_SECONDS = 10.0
_SMALL_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 4096))


async def places_held(model: str) -> int:
    """All places are taken by clients that read nothing; how many of them ordinary requests do not get afterwards."""
    limits = {"max_active_requests": NUM_PLACES, "unread_seconds": UNREAD_SECONDS}
    settings = SystemSettings((Pair(model=model),), log_level="WARNING", overrides={"gateway": limits})
    request = inference_pb2.GenerateRequest(
        prompt="import ", sampling=sampling_pb2.SamplingParams(max_tokens=1_500, ignore_eos=True, logprobs=20)
    )
    async with AsyncExitStack() as resources:
        launcher = await resources.enter_async_context(running(settings))
        channel = grpc.aio.insecure_channel(launcher.address(), options=_SMALL_WINDOW)
        await resources.enter_async_context(channel)
        calls: list[Any] = [
            inference_pb2_grpc.InferenceServiceStub(channel).Generate(request) for _ in range(NUM_PLACES)
        ]
        for call in calls:
            await call.read()
        await asyncio.sleep(UNREAD_SECONDS + _MORE_SECONDS)
        client = await resources.enter_async_context(Client(launcher.address()))
        started = await asyncio.gather(*(_starts(client) for _ in range(NUM_PLACES)))
        for call in calls:
            call.cancel()
    return NUM_PLACES - sum(started)


async def _starts(client: Client) -> bool:
    """Whether a request that takes its place for a while is admitted in time."""
    try:
        async with asyncio.timeout(_START_SECONDS):
            async for event in client.generate("import ", max_tokens=400, ignore_eos=True):
                if event.HasField("finished"):
                    return True
    except TimeoutError:
        return False
    return False
