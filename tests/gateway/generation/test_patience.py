"""A client that takes nothing loses its place; one that reads, however slowly, does not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import grpc
import pytest

from gateway.generation.patience import while_read
from paceline.errors import DeadlineExceededError
from paceline.v1 import inference_pb2, inference_pb2_grpc, model_pb2
from support.fakes import FakeVerifier, serve_fakes
from support.system import StartGateway

SMALL_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 4096))
INFO = model_pb2.ModelInfo(id="fake", max_context_tokens=1 << 20, vocab_size=256, eos_token_ids=[255])


class Run:
    """Numbers without end, and how they were left."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.error: BaseException | None = None

    @asynccontextmanager
    async def run(self) -> AsyncIterator[AsyncIterator[int]]:
        async def numbers() -> AsyncIterator[int]:
            for number in range(1 << 30):
                yield number

        try:
            async with aclosing(numbers()) as events:  # type: ignore[type-var]
                yield events
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.left.set()


async def test_a_run_is_left_while_nothing_is_taken_and_says_so_afterwards() -> None:
    run = Run()
    async with aclosing(while_read(run.run(), 0.05)) as events:
        assert await anext(events) == 0
        await run.left.wait()
        assert isinstance(run.error, DeadlineExceededError)
        with pytest.raises(DeadlineExceededError, match=r"took nothing for 0\.05 s"):
            await anext(events)


async def test_a_run_of_which_something_is_taken_in_time_goes_on() -> None:
    run = Run()
    async with aclosing(while_read(run.run(), 600.0)) as events:
        assert [await anext(events) for _ in range(1000)] == list(range(1000))
    assert run.left.is_set()
    assert not isinstance(run.error, DeadlineExceededError)


async def test_whoever_goes_away_in_the_meantime_leaves_once() -> None:
    run = Run()
    events = while_read(run.run(), 0.05)
    await anext(events)
    await run.left.wait()
    await events.aclose()
    assert isinstance(run.error, DeadlineExceededError)


async def test_the_place_of_a_client_that_does_not_read_goes_to_another(start_gateway: StartGateway) -> None:
    verifier = FakeVerifier(piece=1, info=INFO)
    request = inference_pb2.GenerateRequest(token_ids={"ids": [70]}, sampling={"max_tokens": 1 << 16})
    async with serve_fakes(verifier) as address:
        async with start_gateway([address], max_active_requests=1, unread_seconds=0.5) as system:
            async with grpc.aio.insecure_channel(system.gateway, options=SMALL_WINDOW) as channel:
                call = inference_pb2_grpc.InferenceServiceStub(channel).Generate(request)
                await verifier.opened.wait()
                assert len((await system.generate([71], max_tokens=5)).token_ids) == 5
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    async for _ in call:
                        pass
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "took nothing" in (caught.value.details() or "")
