"""How many places of a gateway clients hold that read nothing, once their time is over."""

import asyncio
from contextlib import AsyncExitStack, aclosing, suppress
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
_START_SECONDS = 3.0
_BEFORE_SECONDS = 1.0
"""It takes well under the time that clients may read nothing to see that nobody else is served."""
_SMALL_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 4096))


async def places_held(model: str) -> int:
    """All places are taken by clients that read nothing; how many of them ordinary requests do not get afterwards.

    Raises RuntimeError when they do not hold all places before their time is over.
    """
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
        client = await resources.enter_async_context(Client(launcher.address()))
        if await _has_places(client, 1, _BEFORE_SECONDS):
            raise RuntimeError("clients that read nothing hold no places")
        await asyncio.sleep(UNREAD_SECONDS + _MORE_SECONDS)
        held = 0
        while held < NUM_PLACES and not await _has_places(client, NUM_PLACES - held, _START_SECONDS):
            held += 1
        for call in calls:
            call.cancel()
    return held


async def _has_places(client: Client, count: int, seconds: float) -> bool:
    """Whether a request gets so many places, all at once, within so many seconds: one of as many choices."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds), aclosing(client.generate("import ", max_tokens=4, n=count)) as events:
            return (await anext(events)).HasField("started")
    return False
